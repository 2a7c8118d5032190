"""The work on one checkpoint: load it once, run each probe that has something missing, commit the parts."""

from __future__ import annotations

import threading
import time
import traceback
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import torch

from workbench.checkpoints import Checkpoint, fingerprint, verify_digests
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
from workbench.kernels import Far
from workbench.loading.pretrained import is_out_of_memory, nonfinite_tensors
from workbench.probes import Probe
from workbench.scanning.engines.tasks import ShouldStop, Tell
from workbench.scanning.job import Job
from workbench.scanning.kept_patterns import MapOptions, commit_map, flagged, make_map, map_unit, unmapped
from workbench.scanning.memory import give_memory_back, read_ahead
from workbench.scanning.progress import Event
from workbench.scanning.units import Unit, Units
from workbench.store import Failure, Origin, Store, Timing, canonical_digest

# The probe digest of scores that are read off weights: the same in every run.
_NO_PROBE = canonical_digest({"probe": WEIGHTS})


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker needs besides its checkpoints; can be pickled.

    `modules` register the detectors that are named; `names` are those chosen.
    """

    job: Job
    ready: tuple[Probe, ...]
    names: tuple[str, ...] | None
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckpointTask:
    """One checkpoint to be worked on.

    `unlike`: why its configuration cannot be of the same series, if it cannot. `upcoming`: another that will be next.
    """

    checkpoint: Checkpoint
    unlike: str | None
    upcoming: Path | None


class _PartFields(TypedDict):
    """What a part is filed under besides its checkpoint."""

    probe: str
    probe_digest: str
    seq_len: int
    detector: str
    version: int
    determined: dict[str, Any]


@dataclass(slots=True)
class _Clock:
    """Seconds spent on a probe, by what they were spent on."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, what: str) -> Generator[None]:
        started = time.perf_counter()
        yield
        self.spent[what] = self.spent.get(what, 0.0) + time.perf_counter() - started


def open_worker(setup: Setup) -> ScanWorker:
    """A worker for this process.

    Raises:
        WorkbenchError: if a detector is not registered here, or the dtype is none.
    """
    for module in setup.modules:
        import_module(module)
    return ScanWorker(setup.job, setup.ready, find_detectors(setup.names))


class ScanWorker:
    """Does what is missing of a checkpoint; its failures are stored, not raised."""

    def __init__(self, job: Job, ready: Sequence[Probe], detectors: Sequence[AnyDetector]) -> None:
        self._job, self._store = job, Store(job.out)
        self._dtype = dtype_of(job.dtype)
        self._map_options = MapOptions(job.keep == "qk", job.dtype, job.far_window)
        self.units = Units(job, ready, detectors)

    def __call__(self, argument: CheckpointTask, *, tell: Tell, should_stop: ShouldStop) -> None:
        """Work on one checkpoint; told to stop, come back after the probe at hand.

        Raises:
            StoreNotWritable: if the disk is full or refuses: no checkpoint could go on.
        """
        name = argument.checkpoint.name
        tell(Event(name))
        try:
            self._work_on(argument, tell, should_stop)
        except StoreNotWritable:
            raise
        except Exception as error:  # one checkpoint's failure is a stored row with its reason, not the scan's end
            self._fail(name, [None], error, tell)

    def _work_on(self, argument: CheckpointTask, tell: Tell, should_stop: ShouldStop) -> None:
        checkpoint, clock = argument.checkpoint, _Clock()
        if argument.unlike is not None:
            raise BadCheckpoint(argument.unlike)
        with clock.on("digest"):
            if self._job.verify:
                verify_digests(checkpoint.path)
            marks = fingerprint(checkpoint.path, self._store.path / "fingerprints.json")
        origin = _origin(self._store.path.name, checkpoint, marks.weights, marks.config)
        missing = self._missing(origin, checkpoint.path, tell)
        to_map = self._unmapped(origin, checkpoint.path, tell)
        if not (missing or to_map):
            self._store.forgive(checkpoint.name, None)
            return
        with clock.on("load"):
            model = open_model(
                checkpoint.path,
                self._job.device,
                self._dtype,
                allow_pickle=self._job.allow_pickle,
                allow_nonfinite=self._job.allow_nonfinite,
            )
            flags = self._flags(origin, model)
        self._store.forgive(checkpoint.name, None)
        if argument.upcoming is not None:
            threading.Thread(target=read_ahead, args=(argument.upcoming,), daemon=True).start()
        for probe, units in missing:
            self._probe(origin, model, probe, units, flags=flags, clock=clock, tell=tell)
            clock = _Clock()
            if should_stop():
                break
        else:
            self._map(origin, model, to_map, clock=clock, tell=tell, should_stop=should_stop)
        kept = weakref.ref(model.model)
        del model
        if kept() is not None:  # a knot of references: without this, two checkpoints would be in memory at a time
            give_memory_back()

    def _missing(self, origin: Origin, path: Path, tell: Tell) -> list[tuple[Probe | None, list[Unit]]]:
        missing: list[tuple[Probe | None, list[Unit]]] = []
        for probe in [*self.units.probes(path), None]:
            units = self.units.of(origin, probe)
            todo = [u for u in units if not self._store.has(u.table, origin, u.key)]
            tell(Event(origin.ckpt, found=len(units) - len(todo)))
            if todo:
                missing.append((probe, todo))
        return missing

    def _unmapped(self, origin: Origin, path: Path, tell: Tell) -> list[Probe]:
        probes = self.units.probes(path) if self._job.maps else []
        todo = unmapped(self._store, origin, probes, self._map_options)
        tell(Event(origin.ckpt, found=len(probes) - len(todo)))
        return todo

    def _flags(self, origin: Origin, model: HookedModel) -> str:
        """What every row of this checkpoint says of its weights: how many tensors are not finite, where that may be."""
        bad = nonfinite_tensors(model.model) if self._job.allow_nonfinite else []
        if not bad:
            return ""
        self._store.log(event="non-finite weights", ckpt=origin.ckpt, tensors=bad)
        return f"nonfinite_weights={len(bad)}"

    def _probe(
        self,
        origin: Origin,
        model: HookedModel,
        probe: Probe | None,
        units: Sequence[Unit],
        *,
        flags: str,
        clock: _Clock,
        tell: Tell,
    ) -> None:
        """Compute the units of a probe, or of the weights, and commit each."""
        name = WEIGHTS if probe is None else probe.name
        tell(Event(origin.ckpt, name))
        try:
            with clock.on("measure"):
                measured = self._measure(model, probe, units)
        except Exception as error:  # one checkpoint's failure is a stored row with its reason, not the scan's end
            self._fail(origin.ckpt, [u.key for u in units], error, tell)
            return
        with clock.on("write"):
            self._commit(origin, probe, units, measured, flags=flags)
        self._store.add_timing(_timing(origin.ckpt, name, len(units), clock, measured.forward_s))
        tell(Event(origin.ckpt, name, committed=len(units)))

    def _measure(self, model: HookedModel, probe: Probe | None, units: Sequence[Unit]) -> Measured:
        if probe is None:
            of_weights = [u.detector for u in units if isinstance(u.detector, WeightDetector)]
            return Measured(measure_weights(model, of_weights), [])
        job = self._job
        window = series_far(model, probe).window if job.far_window is None else job.far_window
        detectors = [u.detector for u in units if isinstance(u.detector, Detector)]
        return measure(model, probe, detectors, far=Far(window, job.far_sink), seed=job.seed, rows=job.rows or "all")

    def _commit(
        self, origin: Origin, probe: Probe | None, units: Sequence[Unit], measured: Measured, *, flags: str
    ) -> None:
        """Turn what was measured into parts: the one place where a checkpoint's recording goes to disk."""
        for unit in units:
            of_unit: _PartFields = {
                "probe": WEIGHTS if probe is None else probe.name,
                "probe_digest": _NO_PROBE if probe is None else probe.digest,
                "seq_len": 0 if probe is None else probe.tokens.shape[1],
                "detector": unit.name,
                "version": unit.version,
                "determined": unit.determined,
            }
            if unit.detector is None:
                self._store.commit_metrics(origin, unit.key, measured.metrics, **of_unit)
            else:
                rows = [_flagged(row, flags) for row in measured.rows[unit.name]]
                self._store.commit_scores(origin, unit.key, rows, **of_unit)
            self._store.forgive(origin.ckpt, unit.key)

    def _map(
        self,
        origin: Origin,
        model: HookedModel,
        probes: Sequence[Probe],
        *,
        clock: _Clock,
        tell: Tell,
        should_stop: ShouldStop,
    ) -> None:
        """Keep the patterns that are missing, now that the scores say which heads stand out."""
        fine = flagged(self._store, origin) if probes else []
        for probe in probes:
            if should_stop():
                return
            tell(Event(origin.ckpt, probe.name))
            try:
                with clock.on("measure"):
                    arrays = make_map(model, probe, self._map_options, fine=fine)
            except Exception as error:  # scores stand without patterns; the reason is stored
                self._fail(origin.ckpt, [map_unit(origin, probe, self._map_options)], error, tell)
                continue
            with clock.on("write"):
                commit_map(self._store, origin, probe, arrays, self._map_options)
            timing = _timing(origin.ckpt, probe.name, 1, clock, clock.spent["measure"])
            self._store.add_timing(replace(timing, what="maps"))
            tell(Event(origin.ckpt, probe.name, committed=1))
            clock = _Clock()

    def _fail(self, ckpt: str, units: Sequence[str | None], error: Exception, tell: Tell) -> None:
        kind = type(error).__name__
        if is_out_of_memory(error):
            kind = "oom"
            give_memory_back()
        told = "".join(traceback.format_exception(error))
        for unit in units:
            self._store.fail(Failure(ckpt, unit, kind, str(error), told))
        self._store.log(event="failed", ckpt=ckpt, kind=kind, message=str(error))
        tell(Event(ckpt, failed=len(units)))


def dtype_of(name: str | None) -> torch.dtype | None:
    """The torch dtype of a name.

    Raises:
        WorkbenchError: if there is none that models have.
    """
    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise WorkbenchError(
            f"dtype {name!r} is not a floating-point torch dtype; expected float32, bfloat16 or float16"
        )
    return dtype


def _timing(ckpt: str, probe: str, n_units: int, clock: _Clock, forward_s: float) -> Timing:
    spent = clock.spent
    return Timing(
        ckpt=ckpt,
        probe=probe,
        units=n_units,
        digest_s=spent.get("digest", 0.0),
        load_s=spent.get("load", 0.0),
        forward_s=forward_s,
        statistics_s=spent["measure"] - forward_s,
        write_s=spent["write"],
    )


def _flagged(row: Row, flags: str) -> Row:
    """The row with flags of its checkpoint beside its own."""
    return replace(row, flags=";".join(f for f in (row.flags, flags) if f)) if flags else row


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
