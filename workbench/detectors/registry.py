"""The registry: a detector is a function with a name; ours and other people's arrive through the same door."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Literal

from workbench.heads import WorkbenchError
from workbench.hooks import PerSequence, Recording
from workbench.hooks.recording import Need, check_needs

ENTRY_POINTS = "workbench.detectors"
Direction = Literal["high", "low", "none"]
DetectorFunction = Callable[[Recording], PerSequence]


@dataclass(frozen=True, slots=True)
class Detector:
    """A head score: what it needs recorded, and the function that turns a Recording into totals per sequence.

    `direction`: whether a high or a low score speaks for needing the whole context; `none` where it says neither.
    `units`: of the score. `needs_answers`: it is only defined on probes. A change of meaning raises `version`, and
    stored scores of older versions stay apart.
    """

    name: str
    version: int
    needs: frozenset[Need]
    function: DetectorFunction
    direction: Direction
    units: str
    needs_answers: bool

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


_registered: dict[str, Detector] = {}


def detector(
    name: str,
    *,
    needs: Iterable[Need],
    version: int = 1,
    direction: Direction = "high",
    units: str = "probability",
    needs_answers: bool = False,
) -> Callable[[DetectorFunction], DetectorFunction]:
    """Register the decorated function as the detector `name`.

    Raises:
        WorkbenchError: for an unknown need, a function without a docstring, or a name that another function holds.
    """

    def register(function: DetectorFunction) -> DetectorFunction:
        wanted = frozenset(needs)
        check_needs(wanted)
        held = _registered.get(name)
        where = (function.__module__, function.__qualname__)
        if held is not None and (held.function.__module__, held.function.__qualname__) != where:
            raise WorkbenchError(
                f"detector {name!r} of {function.__module__} is already registered by {held.function.__module__}; "
                "rename one of them"
            )
        if not inspect.getdoc(function):
            raise WorkbenchError(f"detector {name!r} has no docstring; say in one sentence what it measures")
        _registered[name] = Detector(name, version, wanted, function, direction, units, needs_answers)
        return function

    return register


@cache
def _load_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()


def all_detectors() -> dict[str, Detector]:
    """Every registered detector by name, those of installed packages included.

    Raises:
        WorkbenchError: if two packages register the same name.
    """
    import_module("workbench.detectors.builtin")  # registers ours where the package is not installed, too
    _load_entry_points()
    return dict(_registered)


def find_detectors(names: Iterable[str] | None) -> tuple[Detector, ...]:
    """The detectors of these names in this order; all of them for None.

    Raises:
        WorkbenchError: for an unknown name, listing the known ones.
    """
    known = all_detectors()
    if names is None:
        return tuple(known.values())
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [n for n in wanted if n not in known]
    if unknown:
        raise WorkbenchError(f"unknown detectors {unknown}; known: {', '.join(known)}")
    return tuple(known[n] for n in dict.fromkeys(wanted))
