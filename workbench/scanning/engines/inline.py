"""The engine `inline`: one task after another in this process."""

from __future__ import annotations

from collections.abc import Iterator

from workbench.scanning.engines.tasks import Channel, Opener, Outcome, Tasks, Worker, supply_of

_POLL_S = 0.2


def run_inline(opener: Opener, tasks: Tasks, channel: Channel, *, worker: Worker | None = None) -> Iterator[Outcome]:
    """See `Engine`. `worker`: one that is open already in this process; None: open one."""
    worker = opener() if worker is None else worker
    supply = supply_of(tasks)
    while supply.remaining() and not channel.should_stop():
        task = supply.take()
        if task is None:
            supply.wait(_POLL_S)
            continue
        worker(task.argument, channel)
        yield Outcome(task, is_done=True, deaths=0)
