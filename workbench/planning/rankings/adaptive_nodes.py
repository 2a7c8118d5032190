"""Nodes of the gates' path where the gradient bends: halve the interval that loses most, until little is lost.

1. Take loss and gradient at both ends of the path and in its middle.
2. Integrate every head's gradient over each interval between neighbouring nodes, by the cubic that has the gradients of
   the nodes as values and those of parabolas through neighbouring nodes as slopes.
3. The sum of the heads' gradients is the slope of the loss along the path. So its integral over an interval is known:
   it is the loss at one end minus that at the other, and an interval's error is measured, not estimated.
4. Halve the interval of the largest error, until the errors are small or the nodes are spent.

The path of a trained model may be flat but for a small part, in which the heads that retrieve begin to work together:
equal parts and Gauss-Legendre nodes miss it (docs/planning.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Float

from workbench.heads import WorkbenchError

# Errors of intervals cancel in the sum of all heads, by chance, and not in each head: they may be so many times larger.
_CANCELLED = 3
_FIRST = (0.0, 0.5, 1.0)
# Nodes for an error of 5 % of the published models that were tried: 5 in Gemma 3 270M, 7 in SmolLM2-135M.
_USUAL, _USUAL_ERROR = 7, 0.05


@dataclass(frozen=True, slots=True)
class AdaptiveNodes:
    """As many nodes as the path needs: at most `most`, 3 or more, and no more once the `error` is reached.

    `error`: |Σ scores − gap| over |gap|.

    Raises:
        WorkbenchError: for fewer than 3 nodes, or an error that is not above 0.
    """

    most: int = 12
    error: float = 0.02

    def __post_init__(self) -> None:
        if isinstance(self.most, bool) or self.most < len(_FIRST):
            raise WorkbenchError(
                f"at most {self.most} nodes: expected at least {len(_FIRST)}, both ends and the middle"
            )
        if not self.error > 0:
            raise WorkbenchError(f"an error of {self.error} was given; expected a number above 0")

    @property
    def likely(self) -> int:
        """About how many a path takes; cubics between nodes are of fourth order. For estimates of time alone."""
        usual = ceil(_USUAL * (_USUAL_ERROR / self.error) ** (1 / 4))
        return min(self.most, max(len(_FIRST), usual))


AS_NEEDED = AdaptiveNodes()


@dataclass(frozen=True, slots=True)
class PathNode:
    """The path at one position: each sequence's objective in nats, and its gradient for every head's gate."""

    nats: Float[np.ndarray, " n_seq"]
    gradients: Float[np.ndarray, "n_seq n_kv"]


def adapted(take: Callable[[float], PathNode], nodes: AdaptiveNodes) -> dict[float, PathNode]:
    """The nodes that a path needs, in order; `take` measures one."""
    path = {position: take(position) for position in _FIRST}
    while len(path) < nodes.most:
        errors = _interval_errors(path)
        gap = abs(path[0.0].nats.mean() - path[1.0].nats.mean())
        if abs(errors.sum()) <= nodes.error * gap and np.abs(errors).sum() <= _CANCELLED * nodes.error * gap:
            break
        positions, worst = list(path), int(np.abs(errors).argmax())
        middle = (positions[worst] + positions[worst + 1]) / 2
        path = dict(sorted({**path, middle: take(middle)}.items()))
    return path


def node_weights(positions: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The weight of each node in the integral from 0 to 1; they sum to 1. Positions are sorted, from 0 to 1."""
    return _interval_weights(positions).sum(0)


def _interval_errors(path: dict[float, PathNode]) -> Float[np.ndarray, " n_intervals"]:
    """The loss that all heads' integrals have over each interval beyond the loss that there is, in nats."""
    positions = np.array(list(path))
    slopes = np.array([node.gradients.sum(1).mean() for node in path.values()])
    nats = np.array([node.nats.mean() for node in path.values()])
    return _interval_weights(positions) @ slopes - np.diff(nats)


def _interval_weights(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n_intervals n"]:
    """The weights of all nodes in the integral over each interval between neighbours."""
    n, width = len(x), np.diff(x)
    slope = np.zeros((n, n))
    for i in range(n):
        # The parabola through three neighbours, differentiated at node i.
        a, b, c = (i - 1, i, i + 1) if 0 < i < n - 1 else ((0, 1, 2) if i == 0 else (n - 3, n - 2, n - 1))
        for p, (q, r) in ((a, (b, c)), (b, (a, c)), (c, (a, b))):
            slope[i, p] = ((x[i] - x[q]) + (x[i] - x[r])) / ((x[p] - x[q]) * (x[p] - x[r]))
    weights = (width**2 / 12)[:, None] * (slope[:-1] - slope[1:])
    inside = np.arange(n - 1)
    weights[inside, inside] += width / 2
    weights[inside, inside + 1] += width / 2
    return weights
