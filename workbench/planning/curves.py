"""Is a ranking right? Keep its first k heads, window the others, and see how much of what was lost is back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from workbench.heads import KVHead
from workbench.planning.game import Game
from workbench.plans import CurvePoint, kv_saved

# At most so many points per curve; every one is a pass over each held-out probe.
_POINTS = 16


def keep_counts(n_heads: int, at_most: int = _POINTS) -> list[int]:
    """How many heads to keep at each point of a curve: all numbers if they are few, else evenly spread ones."""
    if n_heads < at_most:
        return list(range(n_heads + 1))
    return sorted({round(x) for x in np.linspace(0, n_heads, at_most)})


def keep_curve(
    method: str,
    keep: Callable[[int], Sequence[KVHead]],
    held_out: Sequence[Game],
    *,
    counts: Sequence[int],
    context: int,
) -> list[CurvePoint]:
    """What every held-out probe says of the heads that `keep` names for each count."""
    points: list[CurvePoint] = []
    for game in held_out:
        full, windowed = game.outcome(), game.outcome(game.heads)
        gap = windowed.nats - full.nats
        for n in counts:
            kept = keep(n)
            left = game.outcome([head for head in game.heads if head not in kept])
            saved = kv_saved(game.m.layers, kept, window=game.limits.window, sink=game.limits.sink, context=context)
            recovered = (windowed.nats - left.nats) / gap if gap else float("nan")
            points.append(CurvePoint(method, game.probe.name, n, left.nats, recovered, left.accuracy, saved))
    return points


def area_under(points: Sequence[CurvePoint]) -> float:
    """The mean recovered share over the number of heads kept, from none to all, by trapezes; 1 at best."""
    ordered = sorted(points, key=lambda p: p.n_kept)
    n, recovered = [p.n_kept for p in ordered], [p.recovered for p in ordered]
    return float(np.trapezoid(recovered, n) / (n[-1] - n[0])) if len(ordered) > 1 else float("nan")


def first_at(points: Sequence[CurvePoint], share: float = 0.95) -> int | None:
    """The fewest heads from which on at least that share is recovered; None if not even all of them do."""
    ordered = sorted(points, key=lambda p: p.n_kept)
    enough = None
    for point in reversed(ordered):
        if not point.recovered >= share:
            break
        enough = point.n_kept
    return enough
