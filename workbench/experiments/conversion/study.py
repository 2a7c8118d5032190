"""Run a conversion study: pretrained small models, converted to windows or linear attention head by head.

1. Pretrain a full-attention model per seed, rank its heads, convert it in every way without training.
2. Continue pretraining converted models, for several lengths; train some conversions from scratch.
3. Measure each: loss and recall by distance, tasks by class, and scores of every head.

Every finished piece of work has a file, and the same call continues from there. Workers are processes of one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heappush
from pathlib import Path

from workbench.experiments.conversion.arms import PREPARED, arms_of, n_steps, prepare, run_arm
from workbench.experiments.conversion.settings import Conversion
from workbench.experiments.conversion.study_folder import add_call, claim, piece_path
from workbench.experiments.pieces_of_work import Job, done, worker_pool
from workbench.heads import WorkbenchError


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """The piece just finished, and how many pieces are done of those known so far; `elapsed_s` since the call."""

    finished: str
    done: int
    total: int
    elapsed_s: float


def run_conversion(
    study: Conversion,
    out: Path,
    *,
    seeds: int = 3,
    workers: int = 1,
    on_progress: Callable[[StudyProgress], None] | None = None,
) -> int:
    """Do the missing pieces of a study with seeds 0 to `seeds` − 1; returns how many were missing.

    Raises:
        WorkbenchError: if `out` holds another study, or a number is below 1.
        StoreNotWritable: if `out` cannot be written.
    """
    for name, number in (("seeds", seeds), ("workers", workers)):
        if number < 1:
            raise WorkbenchError(f"{name} is {number}; expected at least 1")
    claim(study, out)
    started, n_done = time.monotonic(), 0
    try:
        with worker_pool(workers) as pool:
            for job, n_known in done(_Work(study, out, seeds), pool, workers):
                n_done += 1
                if on_progress is not None:
                    on_progress(StudyProgress(job.name, n_done, n_known, time.monotonic() - started))
    finally:
        add_call(out, time.monotonic() - started, finished=n_done, workers=workers)
    return n_done


class _Work:
    """The pending pieces of a study. A seed's arms become known when the seed is prepared."""

    def __init__(self, study: Conversion, out: Path, seeds: int):
        self._study, self._out, self.n_known = study, out, 0
        self.pending: list[Job] = []
        for seed in range(seeds):
            if piece_path(out, seed, PREPARED).exists():
                self._add_arms(seed)
            else:
                self._add(0, f"seed {seed} pretrained", partial(prepare, study, out, seed), prepares=seed)

    def finish(self, job: Job) -> None:
        """Add the pieces that become known with a finished one."""
        if job.subject is not None:
            self._add_arms(job.subject)

    def _add_arms(self, seed: int) -> None:
        for arm in arms_of(self._study, self._out, seed):
            if not piece_path(self._out, seed, arm.name).exists():
                self._add(n_steps(self._study, arm), str(arm), partial(run_arm, self._study, self._out, arm))

    def _add(self, steps: int, name: str, work: Callable[[], None], *, prepares: int | None = None) -> None:
        heappush(self.pending, Job(steps, self.n_known, name, work, prepares))
        self.n_known += 1
