"""The work on one checkpoint: load it once, run each probe that has missing units, commit the parts."""

from __future__ import annotations

import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

from workbench.checkpoints import Checkpoint, Fingerprint, files_stamp, fingerprint, verify_digests
from workbench.checkpoints.digests import FINGERPRINTS, note_at_hub
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
from workbench.heads import BadCheckpoint, Row, StoreNotWritable
from workbench.hooks import HookedModel, open_model
from workbench.kernels import Far
from workbench.loading.pretrained import is_out_of_memory, nonfinite_tensors
from workbench.loading.series_words import SeriesWords
from workbench.loading.tokenizer_files import open_tokenizer
from workbench.probes import Probe
from workbench.probes.token_ids import BeyondContext
from workbench.scanning.engines.tasks import Channel
from workbench.scanning.job import Job
from workbench.scanning.kept_patterns import commit_map, flagged, make_map, map_key, probes_without_maps
from workbench.scanning.machine import dtype_of, free_memory, read_ahead
from workbench.scanning.progress import Event
from workbench.scanning.units import Unit, Units, tokens_of_pattern, with_patterns
from workbench.store import Failure, Origin, Store, Timing, canonical_digest

# The probe digest of scores of weights: the same in every run.
_NO_PROBE = canonical_digest({"probe": WEIGHTS})


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a worker needs besides its checkpoints; can be pickled.

    `names` are the chosen detectors; None: the default ones. Importing `modules` registers them.
    """

    job: Job
    ready: tuple[Probe, ...]
    names: tuple[str, ...] | None
    modules: tuple[str, ...]
    words: SeriesWords


@dataclass(frozen=True, slots=True)
class CheckpointTask:
    """One checkpoint to process.

    `mismatch`: why its configuration cannot belong to the series; None if it can. `upcoming`: a checkpoint whose files
    are read ahead meanwhile. Of one at a hub, `blobs` are the hub's digests of its weights, with which the files in its
    folder were compared; `known` is its fingerprint if an earlier scan had it; `unfetched` is why it is not here.
    """

    checkpoint: Checkpoint
    mismatch: str | None
    upcoming: Path | None = None
    blobs: Mapping[str, str] | None = None
    known: Fingerprint | None = None
    unfetched: Exception | None = None


@dataclass(frozen=True, slots=True)
class _OpenCheckpoint:
    """A checkpoint in memory. `flags` are added to each of its rows; `stamp`: its files before they were read."""

    origin: Origin
    path: Path
    stamp: Mapping[str, tuple[int, int, int]]
    model: HookedModel
    flags: str

    def require_unchanged(self) -> None:
        """Raise BadCheckpoint if other files lie there now; a deleted file changes nothing that was read before."""
        now = files_stamp(self.path)
        if changed := sorted(name for name in now if now[name] != self.stamp.get(name)):
            raise BadCheckpoint(
                f"{', '.join(changed)}: overwritten while it was scanned, so its scores may be of either version and "
                "were dropped; run the same scan again"
            )


class _PartFields(TypedDict):
    """What a part is filed under besides its checkpoint."""

    probe: str
    probe_digest: str
    seq_len: int
    detector: str
    version: int
    determined: dict[str, Any]


@dataclass(slots=True)
class _Stopwatch:
    """Seconds per stage of the work on a probe: digest, load, measure, write."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def during(self, stage: str) -> Generator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def open_worker(setup: Setup) -> ScanWorker:
    """Open the worker of this process.

    Raises:
        WorkbenchError: if a detector is not registered here, or the dtype does not exist.
    """
    for module in setup.modules:
        import_module(module)
    return ScanWorker(setup.job, setup.ready, find_detectors(setup.names), setup.words)


class ScanWorker:
    """Computes the missing units of a checkpoint. Failures are stored, not raised."""

    def __init__(self, job: Job, ready: Sequence[Probe], detectors: Sequence[AnyDetector], words: SeriesWords) -> None:
        self._job, self._store = job, Store(job.out)
        self._dtype = dtype_of(job.dtype)
        self.units = Units(job, ready, detectors, words)
        self._map_options = self.units.map_options
        self._tokenizer = None if words.tokenizer is None else open_tokenizer(words.tokenizer)

    def __call__(self, argument: CheckpointTask, channel: Channel) -> None:
        """Process one checkpoint. After a stop request, return when the current probe is done.

        Raises:
            StoreNotWritable: if the disk is full or cannot be written; no checkpoint could continue.
        """
        name = argument.checkpoint.name
        channel.send(Event(name))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", BeyondContext)  # the scan says it once, where it makes the probes
                self._process(argument, channel)
        except StoreNotWritable:
            raise
        except Exception as error:  # the failure of one checkpoint is stored and does not end the scan
            self._fail(name, [None], error, channel)

    def _process(self, task: CheckpointTask, channel: Channel) -> None:
        checkpoint, stopwatch = task.checkpoint, _Stopwatch()
        if task.mismatch is not None:
            raise BadCheckpoint(task.mismatch)
        if task.unfetched is not None:
            raise task.unfetched
        stamp = files_stamp(checkpoint.path)
        with stopwatch.during("digest"):
            digests = self._digests(task)
        origin = _origin(self._store.path.name, checkpoint, digests.weights, digests.config)
        self._note_current(origin, checkpoint.path)
        self._store.forgive_all_but(checkpoint.name, self._units_asked_for(origin, checkpoint.path))
        missing = self._missing_units(origin, checkpoint.path, channel)
        to_map = self._missing_maps(origin, checkpoint.path, channel)
        if not (missing or to_map):
            self._store.forgive(checkpoint.name, None)
            return
        with stopwatch.during("load"):
            opened = self._open(origin, checkpoint.path, stamp)
            opened.require_unchanged()
        self._store.forgive(checkpoint.name, None)
        if task.upcoming is not None:
            threading.Thread(target=read_ahead, args=(task.upcoming,), daemon=True).start()
        for probe, units in missing:
            self._score(opened, probe, units, stopwatch=stopwatch, channel=channel)
            stopwatch = _Stopwatch()
            if channel.should_stop():
                break
        else:
            self._map(opened, to_map, stopwatch, channel)
        model = weakref.ref(opened.model.model)
        del opened
        if model() is not None:  # a reference cycle holds it, and the next checkpoint would be loaded beside it
            free_memory()

    def is_done(self, checkpoint: Checkpoint, digests: Fingerprint) -> bool:
        """Whether every unit of a checkpoint of this fingerprint is in the run; its weights need not be here."""
        origin = _origin(self._store.path.name, checkpoint, digests.weights, digests.config)
        try:
            probes = self.units.probes(checkpoint.path)
        except Exception:  # raised again, and stored, when it is processed
            return False
        units = [unit for probe in [*probes, None] for unit in self.units.of_probe(origin, probe)]
        is_scored = all(
            self._store.has(unit.table, origin, unit.key) or self._store.settle(unit.table, origin, unit.key)
            for unit in units
        )
        to_map = probes if self._job.maps else []
        return is_scored and not probes_without_maps(self._store, origin, to_map, self._map_options)

    def _digests(self, task: CheckpointTask) -> Fingerprint:
        """The fingerprint of a checkpoint; of weights from a hub, it is kept by the hub's digests."""
        if task.known is not None:
            return task.known
        path, cache = task.checkpoint.path, self._store.path / FINGERPRINTS
        if task.blobs is None and self._job.verify:
            verify_digests(path)
        digests = fingerprint(path, cache)
        if task.blobs is not None:
            note_at_hub(task.blobs, digests.weights, cache)
        return digests

    def _note_current(self, origin: Origin, path: Path) -> None:
        """Note what the checkpoint's name stands for now, also where no probe can be made and so nothing is scored."""
        try:
            probes = {probe.name: probe.digest for probe in self.units.probes(path)}
        except Exception:  # raised again, and stored, when its units are listed
            probes = dict[str, str]()
        self._store.note_current(origin, probes)

    def _units_asked_for(self, origin: Origin, path: Path) -> set[str]:
        probes = self.units.probes(path)
        units = {unit.key for probe in [*probes, None] for unit in self.units.of_probe(origin, probe)}
        return units | {map_key(origin, probe, self._map_options) for probe in probes}

    def _missing_units(self, origin: Origin, path: Path, channel: Channel) -> list[tuple[Probe | None, list[Unit]]]:
        missing: list[tuple[Probe | None, list[Unit]]] = []
        for probe in [*self.units.probes(path), None]:
            units = self.units.of_probe(origin, probe)
            todo = [u for u in units if not self._store.settle(u.table, origin, u.key)]
            tokens = 0 if todo or probe is None else probe.tokens.numel()
            channel.send(Event(origin.ckpt, found=len(units) - len(todo), tokens=tokens))
            if todo:
                missing.append((probe, todo))
        return missing

    def _missing_maps(self, origin: Origin, path: Path, channel: Channel) -> list[Probe]:
        probes = with_patterns(self.units.probes(path)) if self._job.maps else []
        todo = probes_without_maps(self._store, origin, probes, self._map_options)
        missing = {probe.name for probe in todo}
        tokens = sum(tokens_of_pattern(probe) for probe in probes if probe.name not in missing)
        channel.send(Event(origin.ckpt, found=len(probes) - len(todo), tokens=tokens))
        return todo

    def _open(self, origin: Origin, path: Path, stamp: Mapping[str, tuple[int, int, int]]) -> _OpenCheckpoint:
        """Open a checkpoint. Where non-finite weights are allowed, its flags give the number of such tensors."""
        job = self._job
        model = open_model(
            path,
            job.device,
            self._dtype,
            tokenizer=self._tokenizer,
            allow_pickle=job.allow_pickle,
            allow_nonfinite=job.allow_nonfinite,
        )
        nonfinite = nonfinite_tensors(model.model) if job.allow_nonfinite else []
        if not nonfinite:
            return _OpenCheckpoint(origin, path, stamp, model, "")
        self._store.log(event="non-finite weights", ckpt=origin.ckpt, tensors=nonfinite)
        return _OpenCheckpoint(origin, path, stamp, model, f"nonfinite_weights={len(nonfinite)}")

    def _score(
        self,
        opened: _OpenCheckpoint,
        probe: Probe | None,
        units: Sequence[Unit],
        *,
        stopwatch: _Stopwatch,
        channel: Channel,
    ) -> None:
        """Compute the units of a probe, or of the weights, and commit each."""
        name, ckpt = WEIGHTS if probe is None else probe.name, opened.origin.ckpt
        channel.send(Event(ckpt, name))
        try:
            with stopwatch.during("measure"):
                measured = self._measure(opened.model, probe, units)
        except Exception as error:  # the failure of one probe is stored and does not end the scan
            self._fail(ckpt, [u.key for u in units], error, channel)
            return
        opened.require_unchanged()
        scored = [unit for unit in units if unit.name not in measured.refused]
        with stopwatch.during("write"):
            self._commit(opened, probe, scored, measured)
        self._store.add_timing(_timing(ckpt, name, len(scored), stopwatch, forward_s=measured.forward_s))
        channel.send(Event(ckpt, name, committed=len(scored), tokens=0 if probe is None else probe.tokens.numel()))
        for unit in units:
            if unit.name in measured.refused:
                self._fail(ckpt, [unit.key], measured.refused[unit.name], channel)

    def _measure(self, model: HookedModel, probe: Probe | None, units: Sequence[Unit]) -> Measured:
        if probe is None:
            of_weights = [u.detector for u in units if isinstance(u.detector, WeightDetector)]
            return measure_weights(model, of_weights)
        job = self._job
        window = series_far(model, probe).window if job.far_window is None else job.far_window
        detectors = [u.detector for u in units if isinstance(u.detector, Detector)]
        return measure(model, probe, detectors, far=Far(window, job.far_sink), seed=job.seed, rows=job.rows or "all")

    def _commit(self, opened: _OpenCheckpoint, probe: Probe | None, units: Sequence[Unit], measured: Measured) -> None:
        """Write the parts of what was measured."""
        origin = opened.origin
        for unit in units:
            fields: _PartFields = {
                "probe": WEIGHTS if probe is None else probe.name,
                "probe_digest": _NO_PROBE if probe is None else probe.digest,
                "seq_len": 0 if probe is None else probe.tokens.shape[1],
                "detector": unit.name,
                "version": unit.version,
                "determined": unit.determined,
            }
            if unit.detector is None:
                self._store.commit_metrics(origin, unit.key, measured.metrics, **fields)
            else:
                rows = [_with_flags(row, opened.flags) for row in measured.rows[unit.name]]
                self._store.commit_scores(origin, unit.key, rows, **fields)
            self._store.forgive(origin.ckpt, unit.key)

    def _map(self, opened: _OpenCheckpoint, probes: Sequence[Probe], stopwatch: _Stopwatch, channel: Channel) -> None:
        """Make and commit the missing patterns. The scores, which are there by now, flag the heads to keep finer."""
        origin = opened.origin
        fine = flagged(self._store, origin) if probes else []
        for probe in probes:
            if channel.should_stop():
                return
            channel.send(Event(origin.ckpt, probe.name))
            try:
                with stopwatch.during("measure"):
                    arrays = make_map(opened.model, probe, self._map_options, fine=fine)
            except Exception as error:  # scores are valid without patterns; the reason is stored
                self._fail(origin.ckpt, [map_key(origin, probe, self._map_options)], error, channel)
                continue
            opened.require_unchanged()
            with stopwatch.during("write"):
                commit_map(self._store, origin, probe, arrays, self._map_options)
            timing = _timing(origin.ckpt, probe.name, 1, stopwatch, forward_s=stopwatch.seconds["measure"])
            self._store.add_timing(replace(timing, what="maps"))
            channel.send(Event(origin.ckpt, probe.name, committed=1, tokens=tokens_of_pattern(probe)))
            stopwatch = _Stopwatch()

    def _fail(self, ckpt: str, units: Sequence[str | None], error: Exception, channel: Channel) -> None:
        kind = type(error).__name__
        if is_out_of_memory(error):
            kind = "oom"
            free_memory()
        trace = "".join(traceback.format_exception(error))
        for unit in units:
            self._store.fail(Failure(ckpt, unit, kind, str(error), trace))
        self._store.log(event="failed", ckpt=ckpt, kind=kind, message=str(error))
        channel.send(Event(ckpt, failed=len(units)))


def _timing(ckpt: str, probe: str, n_units: int, stopwatch: _Stopwatch, *, forward_s: float) -> Timing:
    seconds = stopwatch.seconds
    return Timing(
        ckpt=ckpt,
        probe=probe,
        units=n_units,
        digest_s=seconds.get("digest", 0.0),
        load_s=seconds.get("load", 0.0),
        forward_s=forward_s,
        statistics_s=seconds["measure"] - forward_s,
        write_s=seconds["write"],
    )


def _with_flags(row: Row, flags: str) -> Row:
    """The row with the flags of its checkpoint after its own."""
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
