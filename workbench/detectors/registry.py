"""The registry of detectors: functions of a Recording or of a model's weights that score every head.

A package announces the modules that hold its detectors:

    [project.entry-points."workbench.detectors"]
    my_package = "my_package.detectors"
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from workbench.detectors.decoded_probes import Decoding
from workbench.extensions import Registry
from workbench.heads import WorkbenchError, brief
from workbench.hooks import PerSequence, Recording
from workbench.hooks.head_weights import Weights
from workbench.hooks.recording.needs import Need, check_needs
from workbench.probes import Probe

Direction = Literal["high", "low", "none"]
DetectorFunction = Callable[[Recording], PerSequence]


@dataclass(frozen=True, slots=True)
class PerHead:
    """One score per head, read off its weights, and the number of terms that each score is made of.

    Axes: layer (as in `Weights.layers`), query head. NaN and 0 where a head has none.
    """

    score: Float[Tensor, "n_layers max_heads"]
    n: Int[Tensor, "n_layers max_heads"]

    def __repr__(self) -> str:
        return brief(self)


WeightFunction = Callable[[Weights], PerHead]


@dataclass(frozen=True, slots=True)
class Detector:
    """A head score of recorded sequences: what to record, and the function from a Recording to totals per sequence.

    `version`: raised with every change of meaning; stored scores of older versions stay apart.
    `direction`: whether a high or a low score indicates that a head needs the whole context; `none`: neither does.
    `units`: of the score.
    `needs_answers`: the score is only defined on probes with answers.
    `by_default`: the detector runs where no detector is named.
    `decoding`: the score is of the model's own decoded answers, chosen in this way; None: of the probe's answers.
    `needs_pairs`: the score is only defined on probes of which every other question is empty.
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
        """True if the probe has the answers or pairs that the score is defined on; no control of a probe has."""
        if probe.is_control:
            return False
        if self.needs_pairs:
            return probe.is_paired
        return probe.target_cells is not None or not (self.needs_answers or self.decoding)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return _first_line(self.function)


@dataclass(frozen=True, slots=True)
class WeightDetector:
    """A head score of the weights alone, without sequences and without chance.

    Such a detector runs only where it is named: it reads the weights through TransformerLens, which is slow to import
    and does not open every model. The fields are those of `Detector`.
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

DETECTORS: Registry[AnyDetector] = Registry(
    "workbench.detectors", noun="detector", builtin="workbench.detectors.builtin"
)


def detector(  # noqa: PLR0913  (one keyword per field of Detector)
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
    """Register the decorated function as the detector `name`; the keywords are the fields of `Detector`.

    Detectors with `decoding` or `needs_pairs` need answers and never run by default.

    Raises:
        WorkbenchError: for an unknown need, a function without a docstring, or a name that another function holds.
    """

    def register(function: DetectorFunction) -> DetectorFunction:
        recorded = frozenset(needs)
        check_needs(recorded)
        is_special = decoding is not None or needs_pairs
        entry = Detector(
            name,
            version,
            recorded,
            function,
            direction,
            units,
            needs_answers=needs_answers or is_special,
            by_default=by_default and not is_special,
            decoding=decoding,
            needs_pairs=needs_pairs,
        )
        DETECTORS.add(name, entry, function=function)
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
        DETECTORS.add(name, WeightDetector(name, version, function, direction, units), function=function)
        return function

    return register


def all_detectors() -> dict[str, AnyDetector]:
    """Every registered detector by name, those of installed packages included.

    Raises:
        WorkbenchError: if two packages register the same name.
    """
    return DETECTORS.all()


def find_detectors(names: Iterable[str] | Any | None) -> tuple[AnyDetector, ...]:
    """The detectors of these names in this order; for None those that score recordings and run by default.

    Raises:
        WorkbenchError: for an unknown name, listing the known ones.
    """
    known = all_detectors()
    if names is None:
        return tuple(d for d in known.values() if isinstance(d, Detector) and d.by_default)
    if not isinstance(names, Iterable):
        raise WorkbenchError(f"detectors are a {type(names).__name__}; expected names, such as {next(iter(known))!r}")
    chosen = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise WorkbenchError(f"unknown detectors {unknown}; known: {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(chosen))


def _first_line(function: DetectorFunction | WeightFunction) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
