"""Which probes a scan has where nobody chose any: those of a series of checkpoints, or those of one model.

A run keeps the default probes that it was first scanned with: the same command, repeated, computes nothing anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from workbench.checkpoints import Series
from workbench.detectors import Detector, find_detectors
from workbench.heads import BadCheckpoint
from workbench.loading.series_words import SeriesWords
from workbench.probes import Probe, one_model
from workbench.probes.for_one_model import LeftOut
from workbench.scanning.job import Job
from workbench.store import DEFAULT_PROBE, Store, read_requests


def with_default_probes(
    job: Job, ready: Sequence[Probe], series: Series, words: SeriesWords
) -> tuple[Job, tuple[str, ...]]:
    """The job with the default probes of one model written out, where it has chosen none and is of one model.

    Returns:
        The job, unchanged where it chose its probes or is of a series, and what the user should know: sentences.

    Raises:
        WorkbenchError: if no probe can be made.
    """
    is_chosen = job.probes is not None or bool(ready)
    if is_chosen or not is_one_model(series) or not any(isinstance(d, Detector) for d in find_detectors(job.detectors)):
        return job, ()
    if _has_series_probes(job):
        return job, (
            "this run keeps the default probes of its first scan, which are those of a series of checkpoints; scan "
            "into another folder for the probes of one model",
        )
    try:
        source = words.words()
    except BadCheckpoint:  # the scan stores the reason as the checkpoint's failure
        return job, ()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", LeftOut)
        written = tuple(one_model(source))
    return job.model_copy(update={"probes": written}), tuple(str(each.message) for each in caught)


def is_one_model(series: Series) -> bool:
    """Whether a directory is one checkpoint, or holds one alone whose name gives no step."""
    if len(series.checkpoints) != 1:
        return False
    (only,) = series.checkpoints
    return only.path == series.root or (only.step is None and only.tokens is None and only.index is None)


def _has_series_probes(job: Job) -> bool:
    """Whether the run has scores of the default probes of a series, or asked for them."""
    if not (job.out / "run.json").is_file():
        return False
    store = Store.open(job.out)
    requests = read_requests(store.path)
    if not requests:
        return bool(store.parts())
    return any(probe.written == DEFAULT_PROBE for request in requests for probe in request.probes.values())
