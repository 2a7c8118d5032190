"""One task after another in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from workbench.scanning.engines.tasks import Opener, Outcome, ShouldStop, Task, Tell, Worker


def run_inline(
    opener: Opener, tasks: Sequence[Task], *, tell: Tell, should_stop: ShouldStop, opened: Worker | None = None
) -> Iterator[Outcome]:
    """See `Engine`; `opened` is a worker that this process has already."""
    worker = opener() if opened is None else opened
    for task in tasks:
        if should_stop():
            return
        worker(task.argument, tell=tell, should_stop=should_stop)
        yield Outcome(task, is_done=True, deaths=0)
