"""Curves that judge a ranking: keep its first k heads, window the others, and measure how much of the loss is back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt

import numpy as np

from workbench.detectors.bootstrap import percentile_interval, resampled_means
from workbench.emergence.thresholds import MIN_SEQUENCES
from workbench.heads import KVHead, WorkbenchError
from workbench.planning.conversion_objective import Game, Outcome, mean_outcome
from workbench.planning.rankings.registry import Ranking
from workbench.store.plan_file import CurvePoint, Unit

# At most this many evenly spread points: each is a pass over every held-out probe.
_POINTS = 16
# With so many groups at most, every number of them is tried.
FEW = 12
# The share of the lost nats that is enough to have back.
ENOUGH = 0.95


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


def adaptive_counts(
    order: Order, held_out: Sequence[Game], *, at_most: int, measured: Collection[int] = (), bisected: bool = True
) -> list[int]:
    """Where a curve of at most so many points says most: its ends, those already measured, and around `ENOUGH`.

    The fewest groups that bring back `ENOUGH` on every held-out probe are found by bisection, which is exact where
    keeping more never hurts; the other points halve the widest gaps, on a logarithmic scale, since the first
    groups change most. `bisected=False`: only the latter.
    """
    n = len(order)
    if n < max(at_most, FEW + 1):
        return list(range(n + 1))
    counts = {0, n, *measured}
    # Where a window costs nothing there is nothing to bring back.
    costly = [game for game in held_out if game.outcome(game.heads).nats > game.outcome().nats]
    if bisected and costly:
        is_enough = {k: _is_enough(order, costly, k) for k in sorted(counts)}
        while len(counts) < at_most:
            enough = min(k for k in is_enough if is_enough[k])
            too_few = max((k for k in is_enough if k < enough), default=enough - 1)
            if enough - too_few <= 1:
                break
            middle = (too_few + enough) // 2
            is_enough[middle] = _is_enough(order, costly, middle)
            counts.add(middle)
    while len(counts) < at_most:
        ordered = sorted(counts)
        gaps = [(log((hi + 1) / (lo + 1)), lo, hi) for lo, hi in pairwise(ordered) if hi - lo > 1]
        _, lo, hi = max(gaps)
        counts.add(min(hi - 1, max(lo + 1, round(sqrt((lo + 1) * (hi + 1))) - 1)))
    return sorted(counts)


def _is_enough(order: Order, held_out: Sequence[Game], n: int) -> bool:
    if n == len(order):
        return True
    for game in held_out:
        full, converted = game.outcome().nats, game.outcome(game.heads).nats
        if not converted - game.outcome(order.without(n)).nats >= ENOUGH * (converted - full):
            return False
    return True


def keep_curve(
    method: str, order: Order, held_out: Sequence[Game], *, counts: Sequence[int], context: int
) -> list[CurvePoint]:
    """Loss, accuracy and cache with the first heads, or layers, of an order kept: for each held-out probe and count."""
    return mean_curve(method, [order], held_out, counts=counts, context=context)


def mean_curve(
    method: str, orders: Sequence[Order], held_out: Sequence[Game], *, counts: Sequence[int], context: int
) -> list[CurvePoint]:
    """The mean over orders of their `keep_curve`s; the interval is that of the mean, over sequences."""
    points: list[CurvePoint] = []
    for game in held_out:
        for n in counts:
            outcome = mean_outcome([game.outcome(order.without(n)) for order in orders])
            saved = [game.cache_saved(order.first(n), context=context) for order in orders]
            recovered, low, high = _recovered(game, outcome)
            points.append(
                CurvePoint(
                    method,
                    game.probe.name,
                    len(orders[0].first(n)),
                    outcome.nats,
                    recovered,
                    outcome.accuracy,
                    float(np.mean(saved)),
                    low,
                    high,
                )
            )
    return points


def _recovered(game: Game, outcome: Outcome) -> tuple[float, float, float]:
    """The share of the gap that an outcome brings back, with its 95 % interval over the probe's sequences.

    NaN where there is no gap; no interval for fewer than 5 sequences, or where resamples lose their gap.
    """
    full, converted = game.outcome(), game.outcome(game.heads)
    if no_gap(game):
        return float("nan"), float("nan"), float("nan")
    recovered = (converted.nats - outcome.nats) / (converted.nats - full.nats)
    if len(outcome.sums) < MIN_SEQUENCES:
        return recovered, float("nan"), float("nan")
    sums = [np.array(x.sums) for x in (full, converted, outcome)]
    # Every resample draws as many answers of all three, so that sums over answers give the share of their means.
    back, gaps = resampled_means(np.stack([sums[1] - sums[2], sums[1] - sums[0]], -1), seed=game.seed).T
    if gaps.min() * gaps.max() <= 0:
        return recovered, float("nan"), float("nan")
    low, high = percentile_interval((back / gaps)[:, None])
    return recovered, float(low[0]), float(high[0])


def no_gap(game: Game) -> list[str]:
    """A sentence where converting every head loses nothing, or no more than 0 within its interval; else none."""
    full, converted = game.outcome(), game.outcome(game.heads)
    lost, low, high = converted.nats - full.nats, float("nan"), float("nan")
    if len(full.sums) >= MIN_SEQUENCES:
        by_sequence = (np.array(converted.sums) - np.array(full.sums))[:, None]
        low, high = (float(end[0]) for end in percentile_interval(resampled_means(by_sequence, seed=game.seed)))
    if lost > 0 and not low <= 0:
        return []
    interval = f" (95 % interval {low:.3g} to {high:.3g} a sequence)" if low == low else ""
    return [
        f"on {game.probe.name} the model loses {lost:.3g} nats with every head converted{interval}: there is no gap to "
        "recover, so that this probe says nothing on which heads to keep"
    ]


def area_under(points: Sequence[CurvePoint]) -> float:
    """The mean recovered share over the number of heads kept, from none to all, by the trapezoidal rule; 1 at best.

    Raises:
        WorkbenchError: if the points are of several methods or probes.
    """
    ordered = _one_curve(points)
    n, recovered = [p.n_kept for p in ordered], [p.recovered for p in ordered]
    return float(np.trapezoid(recovered, n) / (n[-1] - n[0])) if len(ordered) > 1 else float("nan")


def first_at(points: Sequence[CurvePoint], share: float = ENOUGH) -> int | None:
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


def enough_at(points: Sequence[CurvePoint]) -> float:
    """The number of heads of `first_at` on the probe that needs most; NaN where one is never recovered."""
    probes = sorted({p.probe for p in points})
    needed = [first_at([p for p in points if p.probe == probe]) for probe in probes]
    return float("nan") if None in needed else float(max(n for n in needed if n is not None))


def _one_curve(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    curves = sorted({(p.method, p.probe) for p in points})
    if len(curves) > 1:
        named = ", ".join(f"{method} on {probe}" for method, probe in curves)
        raise WorkbenchError(f"the points are of {len(curves)} curves ({named}); pass those of one method and probe")
    return sorted(points, key=lambda p: p.n_kept)
