"""What every engine is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

# A process may die of the machine's doing; of the same task three times, and the task is to blame.
RETRIES = 2

Tell = Callable[[Any], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Task:
    """One call of the worker; `argument` can be pickled."""

    name: str
    argument: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: whether the worker came back from it, and how many processes died of it."""

    task: Task
    is_done: bool
    deaths: int


@runtime_checkable
class Worker(Protocol):
    """Does one task and writes what it finds; told to stop, it comes back after the unit at hand.

    `tell` sends an event, which can be pickled, to whoever started the engine.
    """

    def __call__(self, argument: Any, *, tell: Tell, should_stop: ShouldStop) -> None: ...


# Makes the worker of a process; other processes get it pickled.
Opener = Callable[[], Worker]


@runtime_checkable
class Engine(Protocol):
    """Does tasks in any order and yields each as it ends; asked to stop, it ends early without the rest.

    An exception that a worker lets out ends the engine and is raised here.
    """

    def __call__(
        self, opener: Opener, tasks: Sequence[Task], *, tell: Tell, should_stop: ShouldStop
    ) -> Iterator[Outcome]: ...
