"""Curves that judge a ranking: keep its first k heads, window the others, and measure how much of the loss is back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.heads import KVHead, WorkbenchError
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.registry import Ranking
from workbench.store.cache_sizes import kv_saved
from workbench.store.plan_file import CurvePoint, Unit

# At most this many points per curve: each is a pass over every held-out probe.
_POINTS = 16


@dataclass(frozen=True, slots=True)
class Order:
    """`groups` of heads in the order of keeping them: single heads or whole layers."""

    groups: tuple[tuple[KVHead, ...], ...]

    def __len__(self) -> int:
        return len(self.groups)

    def first(self, n: int) -> list[KVHead]:
        """The heads of the first n groups."""
        return [head for group in self.groups[:n] for head in group]

    def without(self, n: int) -> list[KVHead]:
        """The heads of all groups but the first n."""
        return [head for group in self.groups[n:] for head in group]


def order_of(ranking: Ranking, unit: Unit) -> Order:
    """Heads by their score, or layers by the sum of their heads' scores."""
    if unit == "head":
        return Order(tuple((head,) for head in ranking.order))
    totals: dict[int, float] = {}
    for head, score in zip(ranking.heads, ranking.scores, strict=True):
        totals[head.layer] = totals.get(head.layer, 0.0) + float(score)
    by_total = sorted(totals, key=lambda layer: -totals[layer])
    return Order(tuple(tuple(head for head in ranking.heads if head.layer == layer) for layer in by_total))


def keep_counts(n_groups: int, at_most: int = _POINTS) -> list[int]:
    """How many groups each point of a curve keeps: every number if they are few, else evenly spread ones."""
    if n_groups < at_most:
        return list(range(n_groups + 1))
    return sorted({round(x) for x in np.linspace(0, n_groups, at_most)})


def keep_curve(
    method: str, order: Order, held_out: Sequence[Game], *, counts: Sequence[int], context: int
) -> list[CurvePoint]:
    """Loss, accuracy and cache with the first heads, or layers, of an order kept: for each held-out probe and count."""
    points: list[CurvePoint] = []
    for game in held_out:
        full, windowed = game.outcome().nats, game.outcome(game.heads).nats
        for n in counts:
            heads, outcome = order.first(n), game.outcome(order.without(n))
            saved = kv_saved(
                game.m.layers, set(heads), window=game.limits.window, sink=game.limits.sink, context=context
            )
            recovered = (windowed - outcome.nats) / (windowed - full) if windowed != full else float("nan")
            points.append(
                CurvePoint(method, game.probe.name, len(heads), outcome.nats, recovered, outcome.accuracy, saved)
            )
    return points


def area_under(points: Sequence[CurvePoint]) -> float:
    """The mean recovered share over the number of heads kept, from none to all, by the trapezoidal rule; 1 at best.

    Raises:
        WorkbenchError: if the points are of several methods or probes.
    """
    ordered = _one_curve(points)
    n, recovered = [p.n_kept for p in ordered], [p.recovered for p in ordered]
    return float(np.trapezoid(recovered, n) / (n[-1] - n[0])) if len(ordered) > 1 else float("nan")


def first_at(points: Sequence[CurvePoint], share: float = 0.95) -> int | None:
    """The fewest heads from which on at least this share is recovered; None if not even all heads reach it.

    Raises:
        WorkbenchError: if the points are of several methods or probes.
    """
    enough = None
    for point in reversed(_one_curve(points)):
        if not point.recovered >= share:
            break
        enough = point.n_kept
    return enough


def _one_curve(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    curves = sorted({(p.method, p.probe) for p in points})
    if len(curves) > 1:
        named = ", ".join(f"{method} on {probe}" for method, probe in curves)
        raise WorkbenchError(f"the points are of {len(curves)} curves ({named}); pass those of one method and probe")
    return sorted(points, key=lambda p: p.n_kept)
