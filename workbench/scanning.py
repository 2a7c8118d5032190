"""Scan a directory of checkpoints: every detector on every probe of every checkpoint, into a run that can be resumed.

The work is a product of units (checkpoint, probe, detector); the units of one checkpoint and probe share one forward
pass, and each is committed on its own. Detectors that read weights share one reading of them in place of a probe. A
unit is known by what determines its numbers: weights, configuration, detector version, probe digest, settings. So the
same command run again does what is missing, and nothing twice.
"""

from __future__ import annotations

import time
import tomllib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.checkpoints import Checkpoint, find_checkpoints, fingerprint
from workbench.detectors import (
    WEIGHTS,
    AnyDetector,
    Detector,
    Measured,
    WeightDetector,
    find_detectors,
    measure,
    measure_weights,
    series_far,
)
from workbench.heads import BadCheckpoint, Row, StoreNotWritable, WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.hooks.vocabulary import ModelWords, model_words, words_digest
from workbench.interrupts import Interrupts
from workbench.kernels import Far
from workbench.mapping import MapOptions, flagged, map_probe, map_unit, unmapped
from workbench.probes import Probe, build, default
from workbench.run import Run, open_run
from workbench.store import SCHEMA, Failure, Origin, Store, Table, canonical_digest

METRICS_VERSION = 1
# The probe digest of scores that are read off weights: the same in every run.
_NO_PROBE = canonical_digest({"probe": WEIGHTS})


class Job(BaseModel):
    """What to scan and how; the same in Python, on the command line and in a job file.

    `probes`: as `workbench.probes.build` reads them; None: the default ones. `rows`: query rows per sequence to sample;
    None: all. `far_window`, `far_sink` of `far_mass` in tokens; None: the model's smallest window, else min(256, T/4).
    `dtype`: a torch dtype's name; None: float32 on the CPU, the checkpoint's own on CUDA.
    `maps`: keep pooled patterns of one sequence per probe; `keep`: of flagged heads also queries and keys, for exact
    crops (see docs/patterns.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoints: Path
    out: Path
    detectors: tuple[str, ...] | None = None
    probes: tuple[str, ...] | None = None
    engine: Literal["inline"] = "inline"
    workers: Literal[1] = 1
    rows: int | None = Field(default=None, ge=1)
    far_window: int | None = Field(default=None, ge=1)
    far_sink: int = Field(default=0, ge=0)
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    maps: bool = True
    keep: Literal["qk"] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a scan stands: units done and planned, failures stored, the checkpoint and probe at work, seconds to go."""

    done: int
    failed: int
    planned: int
    checkpoint: str
    probe: str
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class _Unit:
    """One part to be: `detector` None is the probe's metrics."""

    key: str
    detector: AnyDetector | None

    @property
    def name(self) -> str:
        return "metrics" if self.detector is None else self.detector.name

    @property
    def version(self) -> int:
        return METRICS_VERSION if self.detector is None else self.detector.version

    @property
    def table(self) -> Table:
        return "metrics" if self.detector is None else "scores"


class _PartFields(TypedDict):
    """What a part is filed under besides its checkpoint."""

    probe: str
    probe_digest: str
    seq_len: int
    detector: str
    version: int


OnProgress = Callable[[Progress], None]


def scan(
    checkpoint_dir: str | Path,
    out: str | Path,
    detectors: Iterable[str] | None = None,
    probes: Iterable[str | Probe] | str | Probe | None = None,
    engine: str = "inline",
    workers: int = 1,
    *,
    on_progress: OnProgress | None = None,
    **job: Any,
) -> Run:
    """Score every checkpoint of a directory and return the run; run again to resume.

    A checkpoint that must not be scored becomes a stored failure, and the scan goes on.

    Args:
        probes: written probes (`"repeats:n=64"`) or Probe objects; default `probes.default` of each model.
        engine, workers: `inline` with one worker runs in this process.
        job: further fields of `Job`: rows, far_window, far_sink, seed, device, dtype.

    Raises:
        NoCheckpoints, StoreNotWritable, StoreTooNew, RunLocked, and WorkbenchError for a bad job.
    """
    listed = [probes] if isinstance(probes, str | Probe) else None if probes is None else list(probes)
    ready = [p for p in listed or [] if isinstance(p, Probe)]
    written = None if listed is None else tuple(p for p in listed if isinstance(p, str))
    names = (detectors,) if isinstance(detectors, str) else None if detectors is None else tuple(detectors)
    described = make_job(
        {
            "checkpoints": Path(checkpoint_dir),
            "out": Path(out),
            "detectors": names,
            "probes": written,
            "engine": engine,
            "workers": workers,
            **job,
        }
    )
    return run_job(described, ready=ready, on_progress=on_progress)


def make_job(fields: Mapping[str, Any]) -> Job:
    """Check the fields of a job.

    Raises:
        WorkbenchError: naming each field that is unknown or has a value it cannot have.
    """
    try:
        return Job(**fields)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given: {e['input']!r})" for e in error.errors())
        raise WorkbenchError(f"the job cannot be run: {told}") from error


def read_job(path: Path, **overrides: Any) -> Job:
    """Read a job file (TOML, the fields of `Job`; paths relative to the file), with overrides that are not None.

    Raises:
        WorkbenchError: if the file cannot be read or a field is wrong.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WorkbenchError(f"cannot read the job file {path}: {error}") from error
    for name in ("checkpoints", "out"):
        if isinstance(fields.get(name), str):
            fields[name] = path.parent / fields[name]
    return make_job({**fields, **{k: v for k, v in overrides.items() if v is not None}})


def run_job(job: Job, *, ready: Sequence[Probe] = (), on_progress: OnProgress | None = None) -> Run:
    """Run a job in this process; `ready` are probes beside those the job writes."""
    chosen = find_detectors(job.detectors)
    dtype = _dtype(job.dtype)
    series = find_checkpoints(job.checkpoints)
    described = {**job.model_dump(mode="json"), "ready": [[p.name, p.digest] for p in ready]}
    versions = {name: version(name) for name in ("attention-workbench", "torch", "transformers")}
    store = Store.create(job.out, job=described, versions=versions)
    checkpoints = [c for c in series.checkpoints if c.alias_of is None]
    with store.locked(), Interrupts() as interrupts:
        store.sweep()
        store.write_checkpoints(series.records())
        unlike = {change.checkpoint: str(change) for change in series.config_changes if change.is_fatal}
        work = _Work(
            job,
            store,
            chosen,
            ready,
            dtype=dtype,
            checkpoints=checkpoints,
            on_progress=on_progress,
            interrupts=interrupts,
        )
        work.prepare()
        for checkpoint in checkpoints:
            work.checkpoint(checkpoint, unlike.get(checkpoint.name))
            interrupts.check()
    return open_run(job.out)


class _Work:
    """A scan in progress: what is planned, what is done, how long it takes."""

    def __init__(
        self,
        job: Job,
        store: Store,
        detectors: Sequence[AnyDetector],
        ready: Sequence[Probe],
        *,
        dtype: torch.dtype | None,
        checkpoints: Sequence[Checkpoint],
        on_progress: OnProgress | None,
        interrupts: Interrupts,
    ):
        self._job, self._store, self._detectors, self._ready = job, store, detectors, ready
        self._checkpoints, self._on_progress, self._interrupts = checkpoints, on_progress, interrupts
        self._dtype = dtype
        self._map_options = MapOptions(job.keep == "qk", job.dtype, job.far_window)
        self._probes: dict[str, list[Probe]] = {}
        self._done = self._failed = self._computed = 0
        self._started = time.monotonic()
        self._per_checkpoint = 0
        self._passed = 0
        self._write_plan([])

    def prepare(self) -> None:
        """Make the probes of the first checkpoint that can be read, so that a bad one stops the job, not each unit."""
        for checkpoint in self._checkpoints:
            try:
                self._probes_for(checkpoint.path)
            except BadCheckpoint:
                continue
            return

    def checkpoint(self, checkpoint: Checkpoint, unlike: str | None) -> None:
        """Do what is missing of one checkpoint; its failure is stored, not raised.

        `unlike`: why its configuration cannot be of the same series, if it cannot.
        """
        self._report(checkpoint.name, "")
        try:
            if unlike is not None:
                raise BadCheckpoint(unlike)
            marks = fingerprint(checkpoint.path, self._store.path / "fingerprints.json")
            origin = _origin(self._store.path.name, checkpoint, marks.weights, marks.config)
            missing = self._missing(origin, checkpoint.path)
            probes = self._probes_for(checkpoint.path) if self._job.maps else []
            is_needed = missing or unmapped(self._store, origin, probes, self._map_options)
            model = open_model(checkpoint.path, self._job.device, self._dtype) if is_needed else None
            self._store.forgive(checkpoint.name, None)
            for probe, units in missing:
                assert model is not None
                self._probe(origin, model, probe, units)
                self._interrupts.check()
            if model is not None:
                self._map(origin, model, probes)
        except StoreNotWritable:
            raise
        except Exception as error:  # one checkpoint's failure is a stored row with its reason, not the scan's end
            self._fail(checkpoint.name, [None], error)
        self._passed += 1
        self._report(checkpoint.name, "")

    def _missing(self, origin: Origin, path: Path) -> list[tuple[Probe | None, list[_Unit]]]:
        missing = []
        for probe in [*self._probes_for(path), None]:
            units = self._units(origin, probe)
            todo = [u for u in units if not self._store.has(u.table, origin, u.key)]
            self._done += len(units) - len(todo)
            if todo:
                missing.append((probe, todo))
        return missing

    def _probes_for(self, path: Path) -> list[Probe]:
        """The probes in a checkpoint's vocabulary, made once for all checkpoints that share it."""
        digest = words_digest(path)
        if digest not in self._probes:
            self._probes[digest] = self._make_probes(model_words(path))
            self._write_plan(self._probes[digest])
        return self._probes[digest]

    def _make_probes(self, words: ModelWords) -> list[Probe]:
        made = [build(words, written) for written in self._job.probes or ()]
        probes = [*made, *self._ready]
        if self._job.probes is None and not self._ready:
            probes = default(words) if any(isinstance(d, Detector) for d in self._detectors) else []
        names = [WEIGHTS, *(p.name for p in probes)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise WorkbenchError(
                f"two probes are called {twice}, or one as the scores of weights are; give one of them another name="
            )
        return probes

    def _write_plan(self, probes: Sequence[Probe]) -> None:
        units = [
            {"probe": WEIGHTS if p is None else p.name, "detector": u.name, "version": u.version, "table": u.table}
            for p in [*probes, None]
            for u in self._units(None, p)
        ]
        self._per_checkpoint = len(units)
        self._store.write_plan({"checkpoints": [c.name for c in self._checkpoints], "units": units})

    def _units(self, origin: Origin | None, probe: Probe | None) -> list[_Unit]:
        """The units of a probe: detectors that are defined on it, and its metrics if it has answers.

        In place of a probe, None: the detectors that read weights.
        """
        if probe is None:
            wanted: list[AnyDetector | None] = [d for d in self._detectors if isinstance(d, WeightDetector)]
        else:
            on_probe = [d for d in self._detectors if isinstance(d, Detector)]
            wanted = [d for d in on_probe if d.fits(probe)]
            if probe.answer_rows is not None:
                wanted.append(None)
        return [_Unit("" if origin is None else self._key(origin, probe, d), d) for d in wanted]

    def _key(self, origin: Origin, probe: Probe | None, detector: AnyDetector | None) -> str:
        """What determines a unit's numbers, and where they are filed; not the device, the batch or the time."""
        job = self._job
        has_far = isinstance(detector, Detector) and "far_mass" in detector.needs
        determined = {
            "schema": SCHEMA,
            "weights": origin.weights,
            "config": origin.config,
            "place": [origin.stage, origin.branch, origin.step],
            "detector": [detector.name, detector.version] if detector else ["metrics", METRICS_VERSION],
            "dtype": job.dtype,
        }
        if probe is None:
            return canonical_digest(determined)
        return canonical_digest(
            {
                **determined,
                "probe": [probe.name, probe.digest],
                "rows": job.rows,
                "far": [job.far_window, job.far_sink] if has_far else None,
                "seed": job.seed,
            }
        )

    def _probe(self, origin: Origin, model: HookedModel, probe: Probe | None, units: Sequence[_Unit]) -> None:
        """Compute the units of a probe, or of the weights, and commit each."""
        name = WEIGHTS if probe is None else probe.name
        self._report(origin.ckpt, name)
        try:
            measured = self._measure(model, probe, units)
        except Exception as error:  # one checkpoint's failure is a stored row with its reason, not the scan's end
            self._fail(origin.ckpt, [u.key for u in units], error)
            return
        for unit in units:
            of_unit: _PartFields = {
                "probe": name,
                "probe_digest": _NO_PROBE if probe is None else probe.digest,
                "seq_len": 0 if probe is None else probe.tokens.shape[1],
                "detector": unit.name,
                "version": unit.version,
            }
            if unit.detector is None:
                self._store.commit_metrics(origin, unit.key, measured.metrics, **of_unit)
            else:
                rows: list[Row] = measured.rows[unit.name]
                self._store.commit_scores(origin, unit.key, rows, **of_unit)
            self._store.forgive(origin.ckpt, unit.key)
            self._done += 1
            self._computed += 1
        self._report(origin.ckpt, name)

    def _map(self, origin: Origin, model: HookedModel, probes: Sequence[Probe]) -> None:
        """Make the patterns that are missing, when the scores say which heads stand out."""
        missing = unmapped(self._store, origin, probes, self._map_options)
        fine = flagged(self._store, origin) if missing else []
        for probe in missing:
            try:
                map_probe(self._store, origin, model, probe, self._map_options, fine=fine)
            except StoreNotWritable:
                raise
            except Exception as error:  # scores stand without them; the reason is stored
                self._fail(origin.ckpt, [map_unit(origin, probe, self._map_options)], error)
            self._interrupts.check()

    def _measure(self, model: HookedModel, probe: Probe | None, units: Sequence[_Unit]) -> Measured:
        if probe is None:
            of_weights = [u.detector for u in units if isinstance(u.detector, WeightDetector)]
            return Measured(measure_weights(model, of_weights), [])
        job = self._job
        window = series_far(model, probe).window if job.far_window is None else job.far_window
        detectors = [u.detector for u in units if isinstance(u.detector, Detector)]
        return measure(model, probe, detectors, far=Far(window, job.far_sink), seed=job.seed, rows=job.rows or "all")

    def _fail(self, ckpt: str, units: Sequence[str | None], error: Exception) -> None:
        told = "".join(traceback.format_exception(error))
        for unit in units:
            self._store.fail(Failure(ckpt, unit, type(error).__name__, str(error), told))
            self._failed += 1
        self._store.log(event="failed", ckpt=ckpt, kind=type(error).__name__, message=str(error))

    def _report(self, checkpoint: str, probe: str) -> None:
        if self._on_progress is None:
            return
        planned = self._per_checkpoint * len(self._checkpoints)
        behind = self._per_checkpoint * self._passed
        left = max(0, planned - max(self._done, behind))
        pace = (time.monotonic() - self._started) / self._computed if self._computed else None
        eta = None if pace is None else pace * left
        self._on_progress(Progress(self._done, self._failed, planned, checkpoint, probe, eta))


def _origin(run: str, checkpoint: Checkpoint, weights: str, config: str) -> Origin:
    return Origin(
        run=run,
        ckpt=checkpoint.name,
        weights=weights,
        config=config,
        stage=checkpoint.stage,
        branch=checkpoint.branch,
        step=checkpoint.step,
        step_total=checkpoint.step_total,
        tokens=checkpoint.tokens,
    )


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise WorkbenchError(
            f"dtype {name!r} is not a floating-point torch dtype; expected float32, bfloat16 or float16"
        )
    return dtype
