"""The job of a scan: one object for TOML files, the command line and Python. No torch."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from workbench.checkpoints.series_sources import ids_in, settled_source
from workbench.heads import WorkbenchError
from workbench.hub.byte_sizes import parse_bytes
from workbench.hub.references import HubReference, parse_reference, parse_references
from workbench.hub.repositories import revision_pattern

EngineName = Literal["inline", "local", "ray"]
ENGINES: tuple[str, ...] = get_args(EngineName)
ENVIRONMENT = "WB_"
# Paths in a job file are relative to its folder.
_PATHS = ("checkpoints", "out")
# These describe one call and change no number, so the run does not keep them.
_NOT_KEPT = frozenset({"shard", "join", "retry", "same_series"})


class Job(BaseModel):
    """What to scan and how.

    Args:
        checkpoints, out: the directory of checkpoints and the run's folder. Checkpoints may also be the id of a model
            at a hub (`org/name`, `org/name@revision`), a glob of ids, or several: a list, or a text with commas
            between. The id of a model in the Hugging Face cache is kept as its folder there.
        revisions: which branches and tags of the model at the hub are checkpoints: a glob (`step*`), several with
            commas between, or `/regular expression/`. None: those in the cache, else `main`.
        keep_downloads: leave what is fetched from a hub in the Hugging Face cache; else each checkpoint is removed when
            it was scored.
        disk: the most that a scan may hold of what it fetches (`50GB`); None: what is free, less a reserve.
        detectors: names; None: those that `docs/detectors.md` calls default.
        probes: in the notation of `workbench.probes.build`; None: the default ones.
        tokenizer: of all checkpoints: a folder, a tokenizer.json, or a model's name in the hub's cache; None: the one
            that the checkpoints or their folder have.
        made_in_python: `name:digest` of probes that were made in Python; no file can hold them.
        engine: `inline` in this process, `local` in worker processes, `ray` on a cluster.
        workers: the largest number of checkpoints at a time; None: one inline, one per GPU or core locally, as many as
            a cluster has room for.
        address: of a Ray cluster, `auto` or host:port; None: one is started here for the length of the scan.
        shard: `i/n`: only every n-th checkpoint, from the i-th, as for job i of a Slurm array; i from 0.
        join: work on a run that another scan is writing.
        retry: also try the checkpoints that were given up because every worker died.
        same_series: the directory continues the run's training although it is another and shares no checkpoint with it.
        rows: query rows per sequence to sample; None: all.
        far_window, far_sink: of `far_mass` in tokens; None: the model's smallest window, else min(256, T/4).
        seed: of the bootstrap.
        device: `cpu`, `cuda`, `cuda:1`; None: CUDA where there is one.
        dtype: a torch dtype's name; None: float32 on the CPU, the checkpoint's own on CUDA.
        allow_pickle: also read `.bin`, `.pt` and distributed checkpoints, tensors only; no code in them is run.
        allow_nonfinite: also score checkpoints with NaN or infinity in their weights; their rows are flagged.
        maps: keep pooled patterns of one sequence per probe (see docs/patterns.md).
        keep: `qk`: also keep queries and keys of flagged heads, for exact crops.
        verify: compare every weight file with the digest written beside it, and refuse a file that differs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoints: Path | str
    out: Path
    revisions: StrictStr | None = None
    keep_downloads: StrictBool = False
    disk: StrictStr | None = None
    detectors: tuple[StrictStr, ...] | None = None
    probes: tuple[StrictStr, ...] | None = None
    tokenizer: StrictStr | None = None
    made_in_python: tuple[StrictStr, ...] = ()
    engine: EngineName = "inline"
    workers: StrictInt | None = Field(default=None, ge=1)
    address: StrictStr | None = None
    shard: StrictStr | None = None
    join: StrictBool = False
    retry: StrictBool = False
    same_series: StrictBool = False
    rows: StrictInt | None = Field(default=None, ge=1)
    far_window: StrictInt | None = Field(default=None, ge=1)
    far_sink: StrictInt = Field(default=0, ge=0)
    seed: StrictInt = 0
    device: StrictStr | None = None
    dtype: StrictStr | None = None
    allow_pickle: StrictBool = False
    allow_nonfinite: StrictBool = False
    verify: StrictBool = False
    maps: StrictBool = True
    keep: Literal["qk"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _checkpoints_are_a_folder_or_ids(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        source: Any = fields.get("checkpoints")
        revisions: Any = fields.get("revisions")
        is_list = isinstance(source, list | tuple) and source and all(isinstance(r, str | HubReference) for r in source)
        if not (is_list or isinstance(source, str | Path)) or not isinstance(revisions, str | None):
            return fields  # the fields' own validators say what is wrong
        if revisions is not None:
            revision_pattern(revisions)
        return {**fields, "checkpoints": settled_source(source, revisions)}

    @field_validator("shard")
    @classmethod
    def _shard_is_one_of_n(cls, shard: str | None) -> str | None:
        if shard is not None:
            parse_shard(shard)
        return shard

    @field_validator("disk", mode="before")
    @classmethod
    def _disk_is_a_size(cls, disk: Any) -> Any:
        if isinstance(disk, int) and not isinstance(disk, bool):
            disk = str(disk)
        if isinstance(disk, str):
            parse_bytes(disk)
        return disk

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _tokenizer_is_a_place(cls, tokenizer: object) -> object:
        return str(tokenizer) if isinstance(tokenizer, Path) else tokenizer

    @model_validator(mode="after")
    def _one_process_is_one_worker(self) -> Job:
        if self.engine == "inline" and self.workers not in (None, 1):
            raise ValueError(f"{self.workers} workers need --engine local (or ray); inline is this one process")
        if self.engine != "ray" and self.address is not None:
            raise ValueError(f"an address is one of a Ray cluster: pass --engine ray, given {self.engine!r}")
        return self

    @property
    def shard_of(self) -> tuple[int, int]:
        """Index and number of shards; (0, 1) for all checkpoints."""
        return (0, 1) if self.shard is None else parse_shard(self.shard)

    @property
    def references(self) -> tuple[HubReference, ...]:
        """The references to a hub that name the checkpoints; none where a folder does."""
        if isinstance(self.checkpoints, Path):
            return ()
        return tuple(parse_references(self.checkpoints, exists=False) or ())

    @property
    def source(self) -> Path | tuple[HubReference, ...]:
        """The checkpoints, as `find_checkpoints` takes them: a folder, or references to a hub."""
        return self.checkpoints if isinstance(self.checkpoints, Path) else self.references

    def absolute(self) -> Job:
        """The same job with absolute paths, for a process with another working directory."""
        paths = {name: path.absolute() for name in _PATHS if isinstance(path := getattr(self, name), Path)}
        return self.model_copy(update=paths)

    def kept(self) -> dict[str, Any]:
        """The fields that determine the run, as plain values with absolute paths; without those that are None."""
        fields = self.model_dump(mode="json", exclude=set(_NOT_KEPT), exclude_none=True)
        if self.tokenizer is not None and Path(self.tokenizer).exists():
            fields["tokenizer"] = str(Path(self.tokenizer).resolve())
        paths = {name: path.resolve() for name in _PATHS if isinstance(path := getattr(self, name), Path)}
        return {**fields, **{name: str(path) for name, path in paths.items()}}

    def to_toml(self) -> str:
        """A job file that makes the same run from anywhere on this machine."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in self.kept().items())


def make_job(fields: Mapping[str, Any]) -> Job:
    """Check the fields of a job.

    Raises:
        WorkbenchError: naming each unknown key and each wrong value, with what was given and expected.
    """
    try:
        return Job(**fields)
    except ValidationError as error:
        messages = dict.fromkeys(_message(e) for e in error.errors())
        raise WorkbenchError(f"the job cannot be run: {'; '.join(messages)}") from error


def read_job(
    path: Path,
    *,
    settings: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
    **fields: Any,
) -> Job:
    """Read a job file: TOML with the fields of `Job`, paths relative to its folder.

    `environment` (`WB_SEED=3`; None: none) overrides the file, `settings` (`seed=3`) override both, and `fields` that
    are not None override all.

    Raises:
        WorkbenchError: if the file cannot be read or a field is wrong.
    """
    try:
        job = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WorkbenchError(f"cannot read the job file {path}: {error}") from error
    for name in _PATHS:
        if isinstance(job.get(name), str):
            beside = path.parent / job[name]
            # A folder goes before a model of its name.
            references = None if name == "out" or beside.exists() else ids_in(job[name], job.get("revisions"))
            job[name] = references or beside
    if isinstance(job.get("checkpoints"), list):
        job["checkpoints"] = [_beside(path.parent, each) for each in job["checkpoints"]]
    tokenizer = job.get("tokenizer")
    if isinstance(tokenizer, str) and (path.parent / tokenizer).exists():  # else a model's name
        job["tokenizer"] = str(path.parent / tokenizer)
    return make_job({**job, **overrides(settings=settings, environment=environment, **fields)})


def overrides(
    *, settings: Iterable[str] = (), environment: Mapping[str, str] | None = None, **fields: Any
) -> dict[str, Any]:
    """Merge fields of the environment, `key=value` settings, and `fields` that are not None; later ones win.

    Raises:
        WorkbenchError: for a setting without `=`.
    """
    merged: dict[str, Any] = {}
    for name in Job.model_fields:
        text = (environment or {}).get(ENVIRONMENT + name.upper())
        if text is not None:
            merged[name] = _value(text)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise WorkbenchError(f"--set {setting!r} has no '='; expected key=value, as in --set seed=3")
        merged[key.strip()] = _value(text)
    return {**merged, **{name: value for name, value in fields.items() if value is not None}}


def parse_shard(shard: str) -> tuple[int, int]:
    """Read `i/n` with 0 <= i < n.

    Raises:
        ValueError: for any other text.
    """
    i, slash, n = shard.partition("/")
    if not (slash and i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise ValueError("i/n with 0 <= i < n; for a Slurm array: --array=0-15 and --shard $SLURM_ARRAY_TASK_ID/16")
    return int(i), int(n)


def _beside(folder: Path, written: Any) -> Any:
    """A reference to a hub, unless there is a path of its name in the job file's folder."""
    if not isinstance(written, str):
        return written
    beside = folder / written
    return str(beside) if beside.exists() else parse_reference(written, exists=False) or written


def _value(text: str) -> Any:
    """A TOML value, or the text itself if it is none, so that `--set device=cpu` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _message(error: Any) -> str:
    """The message for one wrong key, with what was given and expected."""
    key, value = ".".join(map(str, error["loc"])), error["input"]
    if key.startswith("checkpoints."):  # the rest names the kinds of value that it may be
        key = "checkpoints"
    if not key:
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, Job.model_fields, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(Job.model_fields)}"
        return f"{key}: unknown key (given {value!r}); {hint}"
    if error["type"] == "missing":
        return f"{key}: missing, expected {_EXPECTED.get(key, 'a value')}"
    field = str(error["loc"][0])
    return f"{key}: given {value!r}, expected {_EXPECTED.get(field) or error['msg'].lower()}"


_EXPECTED = {
    "checkpoints": "the path of a directory of checkpoints, or ids of models at a hub, as org/name",
    "revisions": "a glob of branches and tags, as 'step*', or '/regular expression/'",
    "keep_downloads": "true or false",
    "disk": "a size, as '50GB' or '1.5TB'",
    "out": "the path of the run folder to write",
    "detectors": 'a list of names, as ["induction", "sink"]',
    "probes": 'a list of probes, as ["repeats:n=64"]',
    "tokenizer": "the folder of a tokenizer, or a model's name",
    "engine": " or ".join(repr(name) for name in ENGINES),
    "workers": "a whole number of at least 1",
    "address": "'auto' or host:port of a Ray cluster",
    "shard": "i/n with 0 <= i < n, as for a Slurm array: --array=0-15 and --shard $SLURM_ARRAY_TASK_ID/16",
    "join": "true or false",
    "retry": "true or false",
    "same_series": "true or false",
    "rows": "a whole number of at least 1",
    "far_window": "a whole number of tokens, at least 1",
    "far_sink": "a whole number of tokens, at least 0",
    "seed": "a whole number",
    "device": "a device's name, as 'cpu' or 'cuda:1'",
    "dtype": "a dtype's name, as 'float32' or 'bfloat16'",
    "allow_pickle": "true or false",
    "allow_nonfinite": "true or false",
    "verify": "true or false",
}


def _toml(value: Any) -> str:
    """A plain value as TOML. Strings, numbers, booleans and lists of them are written as in JSON."""
    return json.dumps(value, ensure_ascii=False)
