"""The conversion experiment: really pretrained small models, converted to sliding windows head by head.

1. Pretrain a full-attention model per seed, rank its heads, convert it in every way without training.
2. Continue pretraining converted models, for several lengths; train with the same masks from scratch.
3. Measure each: loss and recall by distance, tasks by class, and where every head looks.

Every finished piece is on disk, and the same call goes on from there. Workers are processes of one thread each.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from workbench.experiments.arms import PREPARED, arms_of, n_steps, prepare, run_arm
from workbench.experiments.parts import add_call, claim, part_path
from workbench.experiments.settings import Conversion
from workbench.heads import WorkbenchError

Job = tuple[str, Callable[[], None]]


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
    started, n_done, n_known = time.monotonic(), 0, 0

    def tell(finished: str) -> None:
        nonlocal n_done
        n_done += 1
        if on_progress is not None:
            on_progress(StudyProgress(finished, n_done, n_known, time.monotonic() - started))

    try:
        with _pool(workers) as pool:
            unprepared = [seed for seed in range(seeds) if not part_path(out, seed, PREPARED).exists()]
            n_known = len(unprepared)
            jobs: list[Job] = [(f"seed {s} pretrained", partial(prepare, study, out, s)) for s in unprepared]
            for finished in _done(jobs, pool):
                tell(finished)
            arms = [arm for seed in range(seeds) for arm in arms_of(study, out, seed)]
            left = [arm for arm in arms if not part_path(out, arm.seed, arm.name).exists()]
            left.sort(key=lambda arm: n_steps(study, arm))  # what is interrupted then has the most arms
            n_known += len(left)
            for finished in _done([(str(arm), partial(run_arm, study, out, arm)) for arm in left], pool):
                tell(finished)
    finally:
        add_call(out, time.monotonic() - started, finished=n_done, workers=workers)
    return n_done


def _done(jobs: Sequence[Job], pool: ProcessPoolExecutor | None) -> Iterator[str]:
    """Do the jobs, in these processes or here; the name of each when it is done."""
    if pool is None:
        for name, work in jobs:
            work()
            yield name
        return
    futures = {pool.submit(work): name for name, work in jobs}
    for future in as_completed(futures):
        future.result()
        yield futures[future]


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
