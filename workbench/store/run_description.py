"""What run.json says of a run: the job that a scan was given, the versions that wrote it, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PACKAGE = "attention-workbench"


@dataclass(frozen=True, slots=True)
class JobDescription:
    """The fields of a scan's job (`workbench.scanning.job.Job`); None where run.json does not name one.

    `made_in_python`: `name:digest` of probes that no command can name. `others`: keys that this version does not know.
    """

    checkpoints: str | None = None
    revisions: str | None = None
    keep_downloads: bool | None = None
    disk: str | None = None
    out: str | None = None
    detectors: tuple[str, ...] | None = None
    probes: tuple[str, ...] | None = None
    tokenizer: str | None = None
    made_in_python: tuple[str, ...] | None = None
    engine: str | None = None
    workers: int | None = None
    address: str | None = None
    rows: int | None = None
    far_window: int | None = None
    far_sink: int | None = None
    seed: int | None = None
    device: str | None = None
    dtype: str | None = None
    allow_pickle: bool | None = None
    allow_nonfinite: bool | None = None
    verify: bool | None = None
    maps: bool | None = None
    keep: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> JobDescription:
        """Read the job of a run.json."""
        known = {f.name for f in fields(cls)} - {"others"}
        values = {name: _frozen(value) for name, value in document.items() if name in known}
        return cls(**values, others={name: value for name, value in document.items() if name not in known})

    def as_dict(self) -> dict[str, Any]:
        """The job as JSON has it; fields that are None are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "others"}
        plain = {name: _thawed(value) for name, value in values.items() if value is not None}
        return {**plain, **self.others}

    def options(self) -> dict[str, Any]:
        """How the scan was run: all but its paths, detectors and probes, as far as it is not a job's default."""
        named = {"checkpoints", "out", "detectors", "probes", "made_in_python", *self.others}
        values = {name: value for name, value in self.as_dict().items() if name not in named}
        return {name: value for name, value in values.items() if value != JOB_DEFAULTS.get(name)}


# What a job has where nobody sets it, for the fields that `JobDescription.options` lists.
JOB_DEFAULTS = {
    "keep_downloads": False,
    "engine": "inline",
    "far_sink": 0,
    "seed": 0,
    "allow_pickle": False,
    "allow_nonfinite": False,
    "verify": False,
    "maps": True,
}


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of the packages that wrote a run."""

    packages: Mapping[str, str]

    @property
    def workbench(self) -> str | None:
        """The version of the workbench; None where run.json does not name it."""
        return self.packages.get(PACKAGE, self.packages.get("workbench"))


@dataclass(frozen=True, slots=True, eq=False)
class RunDescription(Mapping[str, Any]):
    """A run.json. As a mapping it is the JSON document: `description["job"]["seed"]` is `description.job.seed`.

    `created`: when the run was made, ISO 8601 in UTC.
    """

    schema: int
    job: JobDescription
    versions: Versions
    created: str | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RunDescription:
        """Read a run.json."""
        job, versions = document.get("job") or {}, document.get("versions") or {}
        return cls(document["schema"], JobDescription.from_json(job), Versions(versions), document.get("created"))

    def as_dict(self) -> dict[str, Any]:
        """The JSON document."""
        parts = {"schema": self.schema, "job": self.job.as_dict(), "versions": dict(self.versions.packages)}
        return parts if self.created is None else {**parts, "created": self.created}

    def __getitem__(self, name: str) -> Any:
        return self.as_dict()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_dict())

    def __len__(self) -> int:
        return len(self.as_dict())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
