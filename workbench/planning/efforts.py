"""How much work a plan is: three efforts, each with its sequences, passes, points and baselines."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import Literal, get_args

from workbench.heads import WorkbenchError
from workbench.planning.keep_curves import FEW

Effort = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True, slots=True)
class Extent:
    """What an effort pays for.

    `n_sequences`: of the probe that heads are ranked on, and of the held-out probes together. `most_nodes`: of the
    gates' path. `completeness`: the error of the gates at which no further node is taken. `points`: of the curve, ends
    included. `baselines`: methods that the ranking is compared with, at so many `baseline_points` of its curve.
    """

    n_sequences: int
    most_nodes: int
    completeness: float
    points: int
    baselines: tuple[str, ...]
    baseline_points: int

    def n_points(self, n_groups: int) -> int:
        """How many points the curve has: all where groups are few, else at least as many as a bisection takes."""
        if n_groups <= max(FEW, self.points - 1):
            return n_groups + 1
        # Both ends, the plan itself, and a halving for every power of two.
        return max(self.points, 3 + ceil(log2(n_groups)))


EXTENTS: dict[Effort, Extent] = {
    "quick": Extent(6, 8, 0.05, 8, (), 6),
    "standard": Extent(10, 12, 0.05, 12, ("far_mass",), 6),
    "thorough": Extent(30, 24, 0.01, 24, ("far_mass", "first_order"), 24),
}


def extent(effort: str) -> Extent:
    """What an effort pays for.

    Raises:
        WorkbenchError: for an effort that there is none of.
    """
    if effort not in EXTENTS:
        names = ", ".join(repr(name) for name in get_args(Effort))
        raise WorkbenchError(f"effort is {effort!r}; expected one of {names}")
    return EXTENTS[effort]
