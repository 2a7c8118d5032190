"""The interface between a scan and its engines: tasks, outcomes, workers, and their channel to the scan."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

# A process may die because of the machine. If three processes die of the same task, the task is the cause.
RETRIES = 2


@dataclass(frozen=True, slots=True)
class Task:
    """One call of the worker. `argument` can be pickled."""

    name: str
    argument: Any


@runtime_checkable
class Supply(Protocol):
    """Tasks that are handed out when they can be begun, in any order."""

    def take(self) -> Task | None:
        """A task that can be begun now; None if there is none at the moment."""
        ...

    def remaining(self) -> int:
        """How many tasks are still to be handed out."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when a task can be begun, at the latest after some seconds."""
        ...


Tasks = Sequence[Task] | Supply


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a task: whether the worker returned, and how many processes died of the task."""

    task: Task
    is_done: bool
    deaths: int


@dataclass(frozen=True, slots=True)
class Channel:
    """The connection of a worker to the process that started the engine.

    `send` takes an event, which can be pickled. `should_stop` is true once the worker must return after its current
    unit.
    """

    send: Callable[[Any], None]
    should_stop: Callable[[], bool]


@runtime_checkable
class Worker(Protocol):
    """Does one task and writes its own results."""

    def __call__(self, argument: Any, channel: Channel) -> None: ...


# Makes the worker of a process. Other processes receive it pickled.
Opener = Callable[[], Worker]


@runtime_checkable
class Engine(Protocol):
    """Does tasks in any order and yields the outcome of each. After a stop request it ends without the remaining ones.

    An exception of a worker ends the engine and is raised here.
    """

    def __call__(self, opener: Opener, tasks: Tasks, channel: Channel) -> Iterator[Outcome]: ...


class ListSupply:
    """Tasks that can all be begun, in their order."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = deque(tasks)

    def take(self) -> Task | None:
        """The next task."""
        return self._tasks.popleft() if self._tasks else None

    def remaining(self) -> int:
        """How many tasks are still to be handed out."""
        return len(self._tasks)

    def wait(self, seconds: float) -> None:
        """Return at once."""


def supply_of(tasks: Tasks) -> Supply:
    """The supply of tasks that are listed; a supply as it is."""
    return ListSupply(tasks) if isinstance(tasks, Sequence) else tasks


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Generator[None]:
    """Set environment variables inside the block, for this process and those it starts; restore them afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
