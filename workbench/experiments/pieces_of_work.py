"""Pieces of work done one after the other, here or in processes of one thread; finished ones may add others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop
from multiprocessing import get_context
from typing import Any, Protocol, runtime_checkable

from workbench.scanning.interrupts import follow_parent


@dataclass(order=True, frozen=True, slots=True)
class Job:
    """A piece of work, done by calling `work` in any process. Those of lower `urgency` come first.

    `subject`: what it is of, for the `finish` of its work.
    """

    urgency: int
    number: int
    name: str = field(compare=False)
    work: Callable[[], Any] = field(compare=False)
    subject: Any = field(compare=False, default=None)


@runtime_checkable
class Work(Protocol):
    """The pieces of a study: `pending` is a heap, `n_known` counts all that are known so far."""

    pending: list[Job]
    n_known: int

    def finish(self, job: Job) -> None:
        """Called when a job is done: adds the pieces that become known with it."""
        ...


def done(work: Work, pool: ProcessPoolExecutor | None, workers: int) -> Iterator[tuple[Job, int]]:
    """Do all pieces, in the pool or here; yields each when it is done, and how many are known."""
    running: dict[Future[Any], Job] = {}
    while work.pending or running:
        if pool is None:
            finished = [heappop(work.pending)]
            finished[0].work()
        else:
            while work.pending and len(running) < workers:
                job = heappop(work.pending)
                running[pool.submit(job.work)] = job
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            finished = []
            for future in ended:
                future.result()
                finished.append(running.pop(future))
        for job in finished:
            work.finish(job)
            yield job, work.n_known


@contextmanager
def worker_pool(workers: int) -> Generator[ProcessPoolExecutor | None]:
    """A pool of processes that ends with the block, at once if it fails; None for one worker."""
    if workers == 1:
        yield None
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=follow_parent)
    try:
        yield pool
    except BaseException:
        for process in list(pool._processes.values()):  # pyright: ignore[reportPrivateUsage]  # no public way to kill
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
