"""One task after another in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from workbench.engines.tasks import Opener, Outcome, ShouldStop, Task, Tell


def run_inline(opener: Opener, tasks: Sequence[Task], *, tell: Tell, should_stop: ShouldStop) -> Iterator[Outcome]:
    """See `Engine`."""
    worker = opener()
    for task in tasks:
        if should_stop():
            return
        worker(task.argument, tell=tell, should_stop=should_stop)
        yield Outcome(task, is_done=True, deaths=0)
