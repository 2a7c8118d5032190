"""The registry: a detector is a function with a name; ours and other people's arrive through the same door.

A detector reads either a Recording, of sequences that went through the model, or the model's Weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from workbench.detectors.decoded_probes import Decoding
from workbench.heads import WorkbenchError
from workbench.hooks import PerSequence, Recording
from workbench.hooks.head_weights import Weights
from workbench.hooks.recording.needs import Need, check_needs
from workbench.probes import Probe

ENTRY_POINTS = "workbench.detectors"
Direction = Literal["high", "low", "none"]
DetectorFunction = Callable[[Recording], PerSequence]


@dataclass(frozen=True, slots=True)
class PerHead:
    """One measurement of every head's weights, and how many things it is made of, as the detector says.

    Axes: layer (as in `Weights.layers`), query head. NaN and 0 where a head has none.
    """

    score: Float[Tensor, "n_layers max_heads"]
    n: Int[Tensor, "n_layers max_heads"]


WeightFunction = Callable[[Weights], PerHead]


@dataclass(frozen=True, slots=True)
class Detector:
    """A head score: what it needs recorded, and the function that turns a Recording into totals per sequence.

    `direction`: whether a high or a low score speaks for needing the whole context; `none` where it says neither.
    `units`: of the score. `needs_answers`: it is only defined on probes. A change of meaning raises `version`, and
    stored scores of older versions stay apart.
    `by_default`: it runs where nobody chooses. `decoding`: it reads what the model says, not what the probe says, and
    this is how; see `Decoding`. `needs_pairs`: it is only defined on probes of which every other question is empty.
    """

    name: str
    version: int
    needs: frozenset[Need]
    function: DetectorFunction
    direction: Direction
    units: str
    needs_answers: bool
    by_default: bool = True
    decoding: Decoding | None = None
    needs_pairs: bool = False

    def fits(self, probe: Probe) -> bool:
        """True if the probe has what the detector is defined on: answers, or pairs."""
        if self.needs_pairs:
            return probe.is_paired
        return probe.target_cells is not None or not (self.needs_answers or self.decoding)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return _first_line(self.function)


@dataclass(frozen=True, slots=True)
class WeightDetector:
    """A head score read off the weights, without a sequence: and without chance.

    Such a detector runs only where it is named, for TransformerLens, which it reads the weights through, is slow to
    import and does not open every model. The other fields are those of `Detector`.
    """

    name: str
    version: int
    function: WeightFunction
    direction: Direction
    units: str
    needs_answers: Literal[False] = False

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return _first_line(self.function)


AnyDetector = Detector | WeightDetector

_registered: dict[str, AnyDetector] = {}


def detector(
    name: str,
    *,
    needs: Iterable[Need],
    version: int = 1,
    direction: Direction = "high",
    units: str = "probability",
    needs_answers: bool = False,
    by_default: bool = True,
    decoding: Decoding | None = None,
    needs_pairs: bool = False,
) -> Callable[[DetectorFunction], DetectorFunction]:
    """Register the decorated function as the detector `name`.

    Raises:
        WorkbenchError: for an unknown need, a function without a docstring, or a name that another function holds.
    """

    def register(function: DetectorFunction) -> DetectorFunction:
        wanted = frozenset(needs)
        check_needs(wanted)
        asked = by_default and decoding is None and not needs_pairs
        _register(
            Detector(
                name,
                version,
                wanted,
                function,
                direction,
                units,
                needs_answers or needs_pairs or decoding is not None,
                by_default=asked,
                decoding=decoding,
                needs_pairs=needs_pairs,
            )
        )
        return function

    return register


def weight_detector(
    name: str,
    *,
    version: int = 1,
    direction: Direction = "high",
    units: str,
) -> Callable[[WeightFunction], WeightFunction]:
    """Register the decorated function of the weights as the detector `name`.

    Raises:
        WorkbenchError: for a function without a docstring, or a name that another function holds.
    """

    def register(function: WeightFunction) -> WeightFunction:
        _register(WeightDetector(name, version, function, direction, units))
        return function

    return register


def _register(found: AnyDetector) -> None:
    held = _registered.get(found.name)
    if held is not None and _home(held) != _home(found):
        raise WorkbenchError(
            f"detector {found.name!r} of {_home(found)[0]} is already registered by {_home(held)[0]}; "
            "rename one of them"
        )
    if not found.summary:
        raise WorkbenchError(f"detector {found.name!r} has no docstring; say in one sentence what it measures")
    _registered[found.name] = found


def _home(found: AnyDetector) -> tuple[str, str]:
    return found.function.__module__, found.function.__qualname__


def _first_line(function: DetectorFunction | WeightFunction) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


@cache
def _load_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()


def all_detectors() -> dict[str, AnyDetector]:
    """Every registered detector by name, those of installed packages included.

    Raises:
        WorkbenchError: if two packages register the same name.
    """
    import_module("workbench.detectors.builtin")  # registers ours where the package is not installed, too
    _load_entry_points()
    return dict(_registered)


def find_detectors(names: Iterable[str] | None) -> tuple[AnyDetector, ...]:
    """The detectors of these names in this order; for None those that read recordings and run by default.

    Raises:
        WorkbenchError: for an unknown name, listing the known ones.
    """
    known = all_detectors()
    if names is None:
        return tuple(d for d in known.values() if isinstance(d, Detector) and d.by_default)
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [n for n in wanted if n not in known]
    if unknown:
        raise WorkbenchError(f"unknown detectors {unknown}; known: {', '.join(known)}")
    return tuple(known[n] for n in dict.fromkeys(wanted))
