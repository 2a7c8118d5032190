"""The conversion experiment: really pretrained small models, converted to windows or linear attention head by head.

1. Pretrain a full-attention model per seed, rank its heads, convert it in every way without training.
2. Continue pretraining converted models, for several lengths; train some conversions from scratch.
3. Measure each: loss and recall by distance, tasks by class, and where every head looks.

Every finished piece is on disk, and the same call goes on from there. Workers are processes of one thread each.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from multiprocessing import get_context
from pathlib import Path

from workbench.experiments.conversion.arms import PREPARED, arms_of, n_steps, prepare, run_arm
from workbench.experiments.conversion.settings import Conversion
from workbench.experiments.conversion.study_folder import add_call, claim, piece_path
from workbench.heads import WorkbenchError


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """A piece that has just been finished, and how many of those known by now are; `elapsed_s` since the call."""

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
    """Do what is not yet done of a study with seeds 0 to `seeds` − 1; returns how many pieces that were.

    Raises:
        WorkbenchError: if `out` holds another study, or a number is below 1.
        StoreNotWritable: if `out` cannot be written.
    """
    for name, given in (("seeds", seeds), ("workers", workers)):
        if given < 1:
            raise WorkbenchError(f"{name} is {given}; expected at least 1")
    claim(study, out)
    started, n_done = time.monotonic(), 0
    try:
        with _pool(workers) as pool:
            for finished, n_known in _done(_Work(study, out, seeds), pool, workers):
                n_done += 1
                if on_progress is not None:
                    on_progress(StudyProgress(finished, n_done, n_known, time.monotonic() - started))
    finally:
        add_call(out, time.monotonic() - started, finished=n_done, workers=workers)
    return n_done


@dataclass(order=True, frozen=True, slots=True)
class _Job:
    """A piece of work; what takes fewer steps comes first, so that what is interrupted has the most pieces."""

    n_steps: int
    number: int
    name: str = field(compare=False)
    work: Callable[[], None] = field(compare=False)
    prepares: int | None = field(compare=False, default=None)


class _Work:
    """What is left to do of a study, and becomes known while it is done: a seed's arms when the seed is prepared."""

    def __init__(self, study: Conversion, out: Path, seeds: int):
        self._study, self._out, self.n_known = study, out, 0
        self.left: list[_Job] = []
        for seed in range(seeds):
            if piece_path(out, seed, PREPARED).exists():
                self._add_arms(seed)
            else:
                self._add(0, f"seed {seed} pretrained", partial(prepare, study, out, seed), prepares=seed)

    def finish(self, job: _Job) -> None:
        """Learn what follows from a job that is done."""
        if job.prepares is not None:
            self._add_arms(job.prepares)

    def _add_arms(self, seed: int) -> None:
        for arm in arms_of(self._study, self._out, seed):
            if not piece_path(self._out, seed, arm.name).exists():
                self._add(n_steps(self._study, arm), str(arm), partial(run_arm, self._study, self._out, arm))

    def _add(self, steps: int, name: str, work: Callable[[], None], *, prepares: int | None = None) -> None:
        heappush(self.left, _Job(steps, self.n_known, name, work, prepares))
        self.n_known += 1


def _done(work: _Work, pool: ProcessPoolExecutor | None, workers: int) -> Iterator[tuple[str, int]]:
    """Do all of it, in these processes or here; the name of each piece when it is done, and how many are known."""
    running: dict[Future[None], _Job] = {}
    while work.left or running:
        if pool is None:
            finished = [heappop(work.left)]
            finished[0].work()
        else:
            while work.left and len(running) < workers:
                job = heappop(work.left)
                running[pool.submit(job.work)] = job
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            finished = []
            for future in ended:
                future.result()
                finished.append(running.pop(future))
        for job in finished:
            work.finish(job)
            yield job.name, work.n_known


@contextmanager
def _pool(workers: int) -> Generator[ProcessPoolExecutor | None]:
    """Processes that end with the block, at once if it fails; None for one worker."""
    if workers == 1:
        yield None
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
    try:
        yield pool
    except BaseException:
        for process in list(pool._processes.values()):  # pyright: ignore[reportPrivateUsage]  # no public way to kill
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    # A Ctrl-C on the terminal reaches every process; the parent alone decides, and what is written is always whole.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
