"""A run's folder as a scan writes it; a unit is done when its part is in place, and a crash costs at most one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.checkpoints.formats import checkpoint_format
from workbench.files.atomic import (
    advisory_lock,
    append_line,
    prove_writable,
    replace_file,
    replacing_file,
    sweep_temporaries,
)
from workbench.files.plain_json import json_text
from workbench.heads import Metric, Row, StoreTooNew, WorkbenchError
from workbench.hub.named_models import did_you_mean
from workbench.store.map_parts import (
    MapArrays,
    MapSource,
    check_maps,
    map_path,
    write_maps,
)
from workbench.store.part_files import Part, Problem, check_parts, part_files, read_label, read_rows
from workbench.store.part_format import (
    SCHEMA,
    Label,
    Origin,
    Table,
    canonical_digest,
    canonical_json,
    labelled_table,
    part_table,
)
from workbench.store.refiling import refile_maps, refile_rows
from workbench.store.run_description import PACKAGE, JobDescription, RunDescription, Versions
from workbench.store.run_reader import Reader, plain_text
from workbench.store.scan_requests import WrittenProbe, note_current, write_request
from workbench.store.series_order import Record, in_training_order
from workbench.store.timings import Timing, Timings, add_timing, begin, read_timings


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit, or a whole checkpoint where `unit` is None, has no score.

    `kind` is a short class such as `bad_checkpoint`, `oom` or `worker_died`; `attempts` counts tries.
    """

    ckpt: str
    unit: str | None
    kind: str
    message: str
    traceback: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Store:
    """A run's folder. Only a part in its place makes a unit done."""

    path: Path

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, job: Mapping[str, Any], versions: Mapping[str, Any]) -> Store:
        """Make a run's folder, or open the one that is there, for writing.

        `job` (the fields of a scan's job) and `versions` (of packages, by name) are stored as JSON, the first time
        only. A reader that is too old is told to install the version of `attention-workbench`.

        Raises:
            StoreNotWritable: if the folder cannot be written.
            StoreTooNew: if a newer workbench wrote it.
        """
        store = cls(Path(path))
        prove_writable(store.path, temporaries=store._temporaries)
        if store._run_json.exists():
            store._require_readable()
            return store
        description = RunDescription(SCHEMA, JobDescription.from_json(job), Versions(versions), _now())
        store._put_json(store._run_json, description.as_dict())
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """Open a run's folder for reading.

        Raises:
            WorkbenchError: if it holds no run.
            StoreTooNew: if a newer workbench wrote it.
        """
        store = cls(Path(path))
        if not store._run_json.is_file():
            raise WorkbenchError(_why_no_run(store.path))
        store._require_readable()
        return store

    def require_there(self) -> None:
        """Refuse to go on reading a folder that held a run and is gone: its parts would seem never to have been there.

        Raises:
            WorkbenchError: if there is no run.json any more.
        """
        if not self._run_json.is_file():
            raise WorkbenchError(
                f"the run folder {self.path} is gone: it was there when it was opened; put it back, or open the run "
                "where it is now"
            )

    def description(self) -> RunDescription:
        """What run.json says: schema, job, versions, created."""
        self.require_there()
        return RunDescription.from_json(_load_json(self._run_json))

    def last_job(self) -> JobDescription:
        """The job of the last scan; that of run.json where job.toml is missing or damaged."""
        try:
            return JobDescription.from_json(tomllib.loads((self.path / "job.toml").read_text("utf-8")))
        except (OSError, ValueError):
            return self.description().job

    def locked(self, *, is_shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Hold the run alone; raises RunLocked when another process does. Freed however the process ends.

        With `is_shared`, hold it beside others that do so too, and beside one that holds it alone. The lock only keeps
        work from being done twice; correctness rests on whole parts.
        """
        return advisory_lock(self.path / "run.lock", is_shared=is_shared)

    def sweep(self) -> list[Path]:
        """Remove the temporaries of writers that are dead and return them."""
        return sweep_temporaries(self._temporaries)

    def renew(self) -> None:
        """Write the parts of an older schema in this one, with the columns that it lacks: other readers see one schema.

        Their numbers and times stay.

        Raises:
            StoreNotWritable: if the disk is full or refuses; each part is then as it was, or renewed.
        """
        for part in self.whole_parts():
            if part.label.schema == SCHEMA:
                continue
            first_schema = part.label.first_schema or part.label.schema
            self._relabel(part, replace(part.label, schema=SCHEMA, first_schema=first_schema))

    def has(self, table: Table, origin: Origin, unit: str) -> bool:
        """Whether the unit is done."""
        return self._part_path(table, origin, unit).exists()

    def settle(self, table: Table, origin: Origin, unit: str) -> bool:
        """Whether the unit is done. Its part says this origin afterwards: a checkpoint may have been renamed.

        A damaged part stays as it is, for `check` to name.

        Raises:
            StoreNotWritable: if the disk is full or refuses; the part is then as it was.
        """
        return refile_rows(self.path, table, origin, unit, relabel=self._relabel)

    def commit_scores(  # noqa: PLR0913  # what a part is labelled with
        self,
        origin: Origin,
        unit: str,
        rows: Sequence[Row],
        *,
        probe_digest: str,
        seq_len: int,
        probe: str = "",
        detector: str = "",
        version: int = 0,
        determined: Mapping[str, Any] | None = None,
    ) -> Path:
        """Put the scores of one unit in place, whole or not at all.

        `probe`, `detector` and `version` are those of the rows; pass them where there may be no row.
        `determined`: what determines the numbers, whose digest `unit` is, for `check` to compare.

        Raises:
            StoreNotWritable: if the disk is full or refuses; nothing is left behind.
        """
        named = {(row.probe, row.detector, row.version) for row in rows} or {(probe, detector, version)}
        assert len(named) == 1, f"a unit is one probe and one detector, not {sorted(named)}"
        ((probe, detector, version),) = named
        label = Label(
            SCHEMA,
            table="scores",
            unit=unit,
            rows=len(rows),
            origin=origin,
            probe=probe,
            probe_digest=probe_digest,
            seq_len=seq_len,
            detector=detector,
            version=version,
            determined="" if determined is None else canonical_json(determined),
        )
        return self._commit(rows, label)

    def commit_metrics(  # noqa: PLR0913  # what a part is labelled with
        self,
        origin: Origin,
        unit: str,
        metrics: Sequence[Metric],
        *,
        probe_digest: str,
        seq_len: int,
        probe: str = "",
        detector: str = "",
        version: int = 0,
        determined: Mapping[str, Any] | None = None,
    ) -> Path:
        """Put the model-level numbers of one unit in place, whole or not at all.

        `detector` and `version` name what measured them, to count what is done; `probe` is that of the rows.

        Raises:
            StoreNotWritable: if the disk is full or refuses; nothing is left behind.
        """
        named = {metric.probe for metric in metrics} or {probe}
        assert len(named) == 1, f"a unit is one probe, not {sorted(named)}"
        label = Label(
            SCHEMA,
            table="metrics",
            unit=unit,
            rows=len(metrics),
            origin=origin,
            probe=named.pop(),
            probe_digest=probe_digest,
            seq_len=seq_len,
            detector=detector,
            version=version,
            determined="" if determined is None else canonical_json(determined),
        )
        return self._commit(metrics, label)

    def settle_maps(self, origin: Origin, unit: str) -> bool:
        """Whether the patterns of a unit are in place; as `settle`."""
        return refile_maps(self.path, origin, unit, put=partial(replace_file, temporaries=self._temporaries))

    def commit_maps(self, origin: Origin, unit: str, arrays: MapArrays, *, probe: str, probe_digest: str) -> int:
        """Put the patterns of one checkpoint and probe in place, whole or not at all; returns their size in bytes.

        Raises:
            StoreNotWritable: if the disk is full or refuses; nothing is left behind.
        """
        source = MapSource(origin, unit, probe, probe_digest)
        return write_maps(map_path(self.path, origin, unit), arrays, source, temporaries=self._temporaries)

    def fail(self, failure: Failure) -> Failure:
        """Record a failure; attempts add up over repeats. Returns what is stored."""
        path = self._failure_path(failure.ckpt, failure.unit)
        if path.exists():
            failure = replace(failure, attempts=failure.attempts + Failure(**_load_json(path)).attempts)
        self._put_json(path, asdict(failure))
        return failure

    def failures(self) -> list[Failure]:
        """What failed and was not forgiven, by checkpoint name and unit."""
        failures = [Failure(**_load_json(path)) for path in sorted((self.path / "failures").glob("*.json"))]
        return sorted(failures, key=lambda failure: (failure.ckpt, failure.unit or ""))

    def failures_changed_ns(self) -> int:
        """When the failures last changed, in nanoseconds since 1970; 0 where there are none."""
        folder = self.path / "failures"
        return folder.stat().st_mtime_ns if folder.is_dir() else 0

    def last_written(self) -> float | None:
        """When the newest part or failure was put in place, in seconds since 1970; None before the first."""
        folders = [*self.path.glob("scores/*"), *self.path.glob("metrics/*"), *self.path.glob("failures")]
        return max((folder.stat().st_mtime for folder in folders), default=None)

    def forgive(self, ckpt: str, unit: str | None) -> None:
        """Forget a failure, because the unit is done or is to be tried anew."""
        self._failure_path(ckpt, unit).unlink(missing_ok=True)

    def forgive_all_but(self, ckpt: str, units: Collection[str]) -> None:
        """Forget failures of a checkpoint's units that are no longer asked for; a scan that asks again tries again."""
        for path in (self.path / "failures").glob(f"{canonical_digest(ckpt)[:8]}-*.json"):
            unit = path.stem.partition("-")[2]
            if unit not in {*units, "load"} and Failure(**_load_json(path)).ckpt == ckpt:
                self.forgive(ckpt, unit)

    def write_job(self, toml: str) -> None:
        """Keep a job file that makes this run again, that of the last call."""
        path = self.path / "job.toml"
        if not path.is_file() or path.read_text("utf-8") != toml:
            replace_file(path, toml.encode(), temporaries=self._temporaries)

    def begin_timing(self) -> None:
        """Note that a scan begins: the time to go follows from its pace."""
        begin(self.path)

    def add_timing(self, timing: Timing) -> None:
        """Note how long units took."""
        add_timing(self.path, timing)

    def timings(self) -> Timings:
        """How long units took, by any process."""
        return read_timings(self.path)

    def write_checkpoints(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Replace the series: one record per checkpoint, in series order, with at least its `name`."""
        self._put_json(self.path / "checkpoints.json", [dict(record) for record in records])

    def checkpoints(self) -> list[dict[str, Any]]:
        """The series in order; empty before a scan has written it."""
        path = self.path / "checkpoints.json"
        return _load_json(path) if path.exists() else []

    def series(self) -> list[Record]:
        """The series in order with every other checkpoint that has parts at its place; see `series_order`."""
        return in_training_order(self.checkpoints(), (part.label.origin for part in self.parts()))

    def series_changed_ns(self) -> int:
        """When the series was last written, in nanoseconds since 1970; 0 before the first."""
        path = self.path / "checkpoints.json"
        return path.stat().st_mtime_ns if path.exists() else 0

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Replace the plan, what the scan will commit: each of `units` for each of `checkpoints` (names)."""
        self._put_json(self.path / "plan.json", dict(plan))

    def write_request(
        self, units: Sequence[Mapping[str, Any]], probes: Mapping[str, WrittenProbe], *, checkpoints: Path | str
    ) -> None:
        """Make what a scan asks for the newest request: what readers show. `units`: as in the plan, with settings."""
        write_request(self.path, units, probes, checkpoints=checkpoints, temporaries=self._temporaries)

    def note_current(self, origin: Origin, probes: Mapping[str, str]) -> None:
        """Note which weights, configuration and place a checkpoint's name stands for now; `probes`: their digests.

        Failures of what it stood for before are forgotten.
        """
        if note_current(self.path, origin, probes, temporaries=self._temporaries):
            for failure in self.failures():
                if failure.ckpt == origin.ckpt and failure.unit is not None:
                    self.forgive(failure.ckpt, failure.unit)

    def write_architectures(self, architectures: Sequence[Mapping[str, str]]) -> None:
        """Keep what models the run is of: settings of their config.json by name, those of several stages if several."""
        if list(map(dict, architectures)) != self.architectures():
            self._put_json(self.path / "architectures.json", [dict(each) for each in architectures])

    def architectures(self) -> list[dict[str, str]]:
        """What models the run is of; empty where no scan wrote it."""
        path = self.path / "architectures.json"
        return _load_json(path) if path.exists() else []

    def plan(self) -> dict[str, Any]:
        """What the scan will commit; no checkpoints and no units before `write_plan`."""
        path = self.path / "plan.json"
        return _load_json(path) if path.exists() else {"checkpoints": [], "units": []}

    def parts(self) -> tuple[Part, ...]:
        """Every committed unit, by folder."""
        return Reader(self.path).parts()

    def whole_parts(self) -> Iterator[Part]:
        """Every committed unit but those that are damaged, which `check` names."""
        tables: tuple[Table, ...] = ("scores", "metrics")
        for table in tables:
            for path in part_files(self.path, table):
                with contextlib.suppress(FileNotFoundError, WorkbenchError):
                    yield read_label(self.path, path)

    def scores(self) -> pd.DataFrame:
        """All scores, exact duplicates dropped.

        Raises:
            WorkbenchError: naming the first file that is not a whole part.
        """
        reader = Reader(self.path)
        return plain_text(reader.frame("scores", reader.parts("scores")))

    def metrics(self) -> pd.DataFrame:
        """All model-level numbers, exact duplicates dropped, with ckpt, step_total, probe_digest and seq_len.

        Raises:
            WorkbenchError: naming the first file that is not a whole part.
        """
        reader = Reader(self.path)
        return plain_text(reader.frame("metrics", reader.parts("metrics")))

    def check(self) -> list[Problem]:
        """Read every file again and list what is not whole: rows, columns, page checksums, unit, folder, schema."""
        return [*check_parts(self.path), *check_maps(self.path)]

    def log(self, **event: Any) -> None:
        """Append an event to this process's log, for people; nothing reads it back."""
        path = self.path / "log" / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        append_line(path, json_text({"time": _now(), **event}))

    @property
    def _temporaries(self) -> Path:
        return self.path / ".tmp"

    @property
    def _run_json(self) -> Path:
        return self.path / "run.json"

    def _part_path(self, table: Table, origin: Origin, unit: str) -> Path:
        assert re.fullmatch("[0-9a-f]{32}", unit), f"unit {unit!r} is not 32 hex digits"
        return self.path / table / origin.folder / f"{unit}.parquet"

    def _failure_path(self, ckpt: str, unit: str | None) -> Path:
        return self.path / "failures" / f"{canonical_digest(ckpt)[:8]}-{unit or 'load'}.json"

    def _commit(self, rows: Sequence[Row] | Sequence[Metric], label: Label) -> Path:
        path = self._part_path(label.table, label.origin, label.unit)
        replace_file(path, _as_parquet(part_table(rows, label)), temporaries=self._temporaries)
        return path

    def _relabel(self, part: Part, label: Label) -> None:
        """Write a part's rows again under another label, with their time, where the label belongs."""
        stat = part.path.stat()
        with replacing_file(
            self._part_path(label.table, label.origin, label.unit), temporaries=self._temporaries
        ) as stream:
            stream.write(_as_parquet(labelled_table(read_rows(self.path, part), label)))
            stream.flush()
            os.utime(stream.fileno(), ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def _put_json(self, path: Path, value: Any) -> None:
        replace_file(path, f"{json_text(value, indent=1)}\n".encode(), temporaries=self._temporaries)

    def _require_readable(self) -> None:
        document = _load_json(self._run_json)
        schema = document.get("schema") if isinstance(document, dict) else None
        if not isinstance(schema, int):
            raise WorkbenchError(
                f"{self._run_json} does not say its schema: it is no run of this workbench; pass another"
            )
        if schema > SCHEMA:
            version = Versions(document.get("versions", {})).workbench
            newer = f"{PACKAGE}=={version}" if version else f"--upgrade {PACKAGE}"
            raise StoreTooNew(
                f"{self.path} was written with schema {schema}, this version reads up to {SCHEMA}; pip install {newer}"
            )


def _why_no_run(path: Path) -> str:
    """What a path is instead of a run, and how to make one: never inside of what it holds."""
    if not path.is_dir():
        next_step = did_you_mean(str(path)) or f"make one with `workbench scan DIR --out {path}`"
        return f"{path} is not a run: there is no such folder; {next_step}"
    folders = [path, *(entry for entry in path.iterdir() if entry.is_dir())]
    if any(checkpoint_format(folder) != "none" for folder in folders):
        return (
            f"{path} is not a run: it holds weights; scan them into another folder: `workbench scan {path} --out "
            f"runs/{path.resolve().name}`"
        )
    place = "RUN, another folder" if any(path.iterdir()) else str(path)
    return f"{path} is not a run: there is no run.json in it; make one with `workbench scan DIR --out {place}`"


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise WorkbenchError(f"{path} cannot be read ({error.strerror}); is the run still there?") from error
    except ValueError as error:
        raise WorkbenchError(
            f"{path} is not JSON ({error}); restore it from a copy, or delete it and run the scan again"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# The columns that readers choose parts by. Statistics of the others would be a third of a small part, and Arrow's own
# copy of the schema another third; Parquet has every column's type.
_CHOSEN_BY = ("ckpt", "branch", "step", "layer", "detector", "probe", "metric")
# From here on zstd makes smaller parts than snappy; below it makes larger ones, in three times the time.
_MANY_ROWS = 256


def _as_parquet(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    chosen_by = [name for name in table.schema.names if name in _CHOSEN_BY]
    compression = "zstd" if table.num_rows >= _MANY_ROWS else "snappy"
    options: dict[str, Any] = {"compression": compression, "write_page_checksum": True, "write_statistics": chosen_by}
    with pq.ParquetWriter(buffer, table.schema, store_schema=False, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(table.schema.metadata)
    return buffer.getvalue().to_pybytes()
