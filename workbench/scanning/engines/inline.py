"""The engine `inline`: one task after another in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from workbench.scanning.engines.tasks import Channel, Opener, Outcome, Task, Worker


def run_inline(
    opener: Opener, tasks: Sequence[Task], channel: Channel, *, worker: Worker | None = None
) -> Iterator[Outcome]:
    """See `Engine`. `worker`: one that is open already in this process; None: open one."""
    worker = opener() if worker is None else worker
    for task in tasks:
        if channel.should_stop():
            return
        worker(task.argument, channel)
        yield Outcome(task, is_done=True, deaths=0)
