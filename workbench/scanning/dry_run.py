"""The outlook of a job, without loading a model: its checkpoints, units, and the bytes it would read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workbench.checkpoints import Checkpoint, Series
from workbench.checkpoints.candidates import Candidates
from workbench.checkpoints.configs import quantisation
from workbench.checkpoints.formats import weights_size
from workbench.checkpoints.series import order_checkpoints
from workbench.detectors import Detector, find_detectors
from workbench.heads import BadCheckpoint, WorkbenchError
from workbench.loading.series_words import SeriesWords, series_words
from workbench.probes import Probe
from workbench.runs.status import UnitName, committed_names, planned_names
from workbench.scanning.hub_downloads import DownloadPlan, find_candidates, plan_downloads
from workbench.scanning.job import Job
from workbench.scanning.machine import n_workers
from workbench.scanning.same_series import require_same_series
from workbench.scanning.units import Units
from workbench.store import Maps, Store, request_of

_FEW = 3  # changes of config.json that are listed


@dataclass(frozen=True, slots=True)
class CheckpointOutlook:
    """One checkpoint: all its units, those done already, and the bytes of weights to read for the others."""

    checkpoint: str
    units: int
    done: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """A job with its checkpoints. `units`: the units of each checkpoint, as in the store's plan.

    `remarks`: what the user should know of the series and of the probes' words. `downloads`: what would be fetched of
    checkpoints at a hub; None for a directory.
    """

    job: Job
    units: tuple[dict[str, Any], ...]
    checkpoints: tuple[CheckpointOutlook, ...]
    remarks: tuple[str, ...] = ()
    downloads: DownloadPlan | None = None

    @property
    def units_to_do(self) -> int:
        return sum(c.units - c.done for c in self.checkpoints)

    @property
    def bytes_to_read(self) -> int:
        return sum(c.bytes for c in self.checkpoints)


def look_ahead(job: Job, *, ready: Sequence[Probe] = ()) -> Outlook:
    """Resolve a job and count its units. Configurations and tokenizers are read, and no weights.

    Only of a directory that the run was never scanned from, weights are compared with the run's.

    Units that the run folder has are counted by checkpoint, probe and detector. The scan itself also compares the
    digests of weights.

    Raises:
        NoCheckpoints, and WorkbenchError for a job that cannot be run.
    """
    with TemporaryDirectory(prefix="workbench-") as folder:
        return _look_ahead(job, ready, find_candidates(job, Path(folder)))


def _look_ahead(job: Job, ready: Sequence[Probe], candidates: Candidates) -> Outlook:
    require_same_series(job, candidates)
    detectors = find_detectors(job.detectors)
    series = find_series(job, candidates)
    checkpoints = shard_of(job, series.on_disk)
    units = Units(job, ready, detectors, find_words(job, ready, series))
    planned = planned_units(units, checkpoints)
    names = planned_names(planned)
    committed = _committed(job, units, planned, checkpoints) if (job.out / "run.json").is_file() else {}
    outlooks: list[CheckpointOutlook] = []
    for c in checkpoints:
        done = (names & committed.get(c.name, Counter())).total()
        n_bytes = 0 if done == names.total() else size_of(c, series)
        outlooks.append(CheckpointOutlook(c.name, names.total(), done, n_bytes))
    remarks = (*remarks_on(series), *units.remarks())
    to_fetch = [each.checkpoint for each in outlooks if each.done < each.units or not each.units]
    workers = n_workers(job, [size_of(c, series) for c in checkpoints])
    downloads = plan_downloads(job, series, to_fetch, workers=workers) if series.remote else None
    return Outlook(job, tuple(planned), tuple(outlooks), remarks, downloads)


def size_of(checkpoint: Checkpoint, series: Series) -> int:
    """Bytes of the weights of a checkpoint, on disk or at a hub."""
    remote = series.remote.get(checkpoint.name)
    if remote is None:
        return weights_size(checkpoint.path)
    return sum(file.size for file in remote.files if file.is_weights)


def find_series(job: Job, candidates: Candidates) -> Series:
    """The checkpoints of a job in order, and those of its run that are no longer there.

    Raises:
        NoCheckpoints, and WorkbenchError for a `series.toml` that cannot be used.
    """
    before: list[dict[str, Any]] = []
    if (job.out / "run.json").is_file():
        store = Store.open(job.out)
        try:
            before = store.series()
        except WorkbenchError:  # a damaged part; whoever reads the scores refuses it
            before = store.checkpoints()
    return order_checkpoints(candidates, before)


def find_words(job: Job, ready: Sequence[Probe], series: Series) -> SeriesWords:
    """The words that the checkpoints share.

    Raises:
        WorkbenchError: if they share none, or the run's tokenizer is gone, and the job makes probes of words.
    """
    try:
        named = job.tokenizer
        if named is not None and Path(named).exists():
            named = str(Path(named).absolute())  # a worker may have another working directory
        words = series_words([(c.name, c.path) for c in series.on_disk], series.root, named)
        _refuse_lost_tokenizer(job, words)
        return words
    except WorkbenchError as error:
        is_default = not ready and any(isinstance(d, Detector) for d in find_detectors(job.detectors))
        if job.tokenizer is not None or job.probes is not None or is_default:
            raise
        return SeriesWords((), None, str(error), ())


def _refuse_lost_tokenizer(job: Job, words: SeriesWords) -> None:
    """Refuse to go on with bare token ids in a run whose probes were made with a tokenizer."""
    plan = Store.open(job.out).plan() if (job.out / "run.json").is_file() else {}
    if (before := plan.get("tokenizer")) is not None and words.tokenizer is None:
        raise WorkbenchError(
            f"the probes of {job.out} were made with the tokenizer of {before}, and there is none now: "
            f"{words.no_tokenizer}. Name it with --tokenizer FOLDER (tokenizer=), or scan into another run"
        )


def remarks_on(series: Series) -> list[str]:
    """What the user should know of a series: sentences."""
    changes = [str(change) for change in series.config_changes if not change.is_fatal]
    more = [f"config.json differs within the series in {len(changes) - _FEW} more cases"] if len(changes) > _FEW else []
    return [*series.remarks, *_quantised(series), *changes[:_FEW], *more]


def _quantised(series: Series) -> list[str]:
    """Which checkpoints hold weights of dequantised blocks."""
    names: dict[str, list[str]] = {}
    for checkpoint in series.on_disk:
        if kind := quantisation(checkpoint.path):
            names.setdefault(kind, []).append(checkpoint.name)
    return [
        f"{', '.join(of_kind[:_FEW])}{f' and {len(of_kind) - _FEW} more' if len(of_kind) > _FEW else ''}: the weights "
        f"were quantised ({kind}), and scores are those of the dequantised model, flagged quantised={kind}"
        for kind, of_kind in names.items()
    ]


def planned_units(units: Units, checkpoints: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """The units of each checkpoint, from the probes of the first readable one; without one, those of no probe.

    Raises:
        WorkbenchError: if a probe cannot be made.
    """
    for checkpoint in checkpoints:
        try:
            return units.planned(units.probes(checkpoint.path))
        except BadCheckpoint:
            continue
    return units.planned([])


def shard_of(job: Job, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of the job's shard.

    Raises:
        WorkbenchError: if the shard is empty because there are more shards than checkpoints.
    """
    i, n = job.shard_of
    selected = list(checkpoints[i::n])
    if not selected:
        raise WorkbenchError(f"shard {job.shard} has none of {len(checkpoints)} checkpoints; use fewer shards")
    return selected


def _committed(
    job: Job, units: Units, planned: Sequence[Mapping[str, Any]], checkpoints: Sequence[Checkpoint]
) -> dict[str, Counter[UnitName]]:
    """The units in the run that this job would ask for."""
    store = Store.open(job.out)
    request = request_of(planned, units.written([c.path for c in checkpoints]))
    parts = [part for part in store.parts() if request.names(part.label)]
    return committed_names(parts, [file.label for file in Maps(job.out).files() if request.maps_are(file.label)])
