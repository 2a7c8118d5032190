"""Make something of several runs although one of them cannot be read: the others stay, and the reason is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from workbench.heads import WorkbenchError


@runtime_checkable
class Named(Protocol):
    """What has a name, as a run has."""

    @property
    def name(self) -> str:
        """The name."""
        ...


T = TypeVar("T")
R = TypeVar("R", bound=Named)


def of_those_that_can(make: Callable[[list[R]], T], runs: Sequence[R]) -> tuple[T, dict[str, str]]:
    """What `make` makes of these runs but those that it fails for, and by their names why.

    Raises:
        WorkbenchError: if it fails for every run, or for no single one.
    """
    try:
        return make(list(runs)), {}
    except (WorkbenchError, OSError) as error:
        reasons = {run.name: reason for run in runs if (reason := _reason(make, run))}
        rest = [run for run in runs if run.name not in reasons]
        if not rest or not reasons:
            raise WorkbenchError(str(error)) from error
        return make(rest), reasons


def _reason(make: Callable[[list[R]], T], run: R) -> str:
    try:
        make([run])
    except (WorkbenchError, OSError) as error:
        return str(error)
    return ""
