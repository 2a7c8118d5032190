"""Hysteresis: the first checkpoint at which a head is above a high mark and stays above a lower one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

STAYS = 2  # how many scored checkpoints after the crossing must confirm it
LOWER = 0.75  # of the high mark


@dataclass(frozen=True, slots=True)
class Crossings:
    """Where each curve crosses `high`, and stays at `LOWER` of it or above for the next `STAYS` scored checkpoints.

    `plateau` is the highest value and `floor` the lowest before it, both of running medians of three, so that one
    outlier makes neither. `high` is the greater of `least` and the middle between the two. `at` and `before` are
    columns, of the crossing and of the last scored checkpoint before it; -1 where there is none. `unconfirmed`
    curves are above `high` only so late that too few checkpoints follow.
    """

    floor: Float[np.ndarray, " heads"]
    plateau: Float[np.ndarray, " heads"]
    high: Float[np.ndarray, " heads"]
    first: Float[np.ndarray, " heads"]
    final: Float[np.ndarray, " heads"]
    at: Int[np.ndarray, " heads"]
    before: Int[np.ndarray, " heads"]
    unconfirmed: Bool[np.ndarray, " heads"]


def crossings_of(score: Float[np.ndarray, "heads ckpts"], *, least: float = 0.2) -> Crossings:
    """The crossing of every curve; NaN scores are gaps. `least` is the lowest high mark there may be."""
    y, order, n = compact(score)
    rows = np.arange(len(y))
    smooth = _medians_of_three(y, n)
    top = np.where(np.isnan(smooth), -np.inf, smooth).argmax(1)
    plateau = smooth[rows, top]
    until_top = np.arange(y.shape[1]) <= top[:, None]
    floor = np.where(until_top & ~np.isnan(smooth), smooth, np.inf).min(1)
    high = np.maximum(least, floor + 0.5 * (plateau - floor))
    with np.errstate(invalid="ignore"):
        above = y >= high[:, None]
        stays = y >= LOWER * high[:, None]
    follow = np.ones_like(stays)
    for ahead in range(1, STAYS + 1):
        follow[:, :-ahead] &= stays[:, ahead:]
        follow[:, -ahead:] = False
    confirmed = above & follow
    place = np.where(confirmed.any(1), confirmed.argmax(1), -1)
    late = np.arange(y.shape[1]) >= (n - STAYS)[:, None]
    return Crossings(
        floor=floor,
        plateau=plateau,
        high=high,
        first=y[:, 0],
        final=smooth[rows, n - 1],
        at=np.where(place >= 0, order[rows, place], -1),
        before=np.where(place >= 1, order[rows, np.maximum(place - 1, 0)], -1),
        unconfirmed=(place < 0) & (above & late).any(1),
    )


def compact(
    score: Float[np.ndarray, "heads ckpts"],
) -> tuple[Float[np.ndarray, "heads ckpts"], Int[np.ndarray, "heads ckpts"], Int[np.ndarray, " heads"]]:
    """Each row's scores moved to its front in order, the columns they come from, and how many there are."""
    missing = np.isnan(score)
    if not missing.any():
        heads, ckpts = score.shape
        return score, np.broadcast_to(np.arange(ckpts), score.shape), np.full(heads, ckpts)
    order = np.argsort(missing, axis=1, kind="stable")
    return np.take_along_axis(score, order, axis=1), order, (~missing).sum(1)


def _medians_of_three(y: Float[np.ndarray, "heads ckpts"], n: Int[np.ndarray, " heads"]) -> np.ndarray:
    """Running medians of three neighbours; the ends are as they are."""
    before, after = np.roll(y, 1, axis=1), np.roll(y, -1, axis=1)
    before[:, 0] = y[:, 0]
    rows = np.arange(len(y))
    after[rows, n - 1] = y[rows, n - 1]
    return np.fmax(np.fmin(before, y), np.fmin(np.fmax(before, y), after)) + 0 * y
