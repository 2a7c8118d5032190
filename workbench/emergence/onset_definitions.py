"""Three definitions of an onset by scores alone: half of the final score, hysteresis, and the best two levels.

NaN scores are gaps. Columns are checkpoints in order; -1 stands for no column.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from workbench.emergence.score_curves import Curves, curves_of

CONFIRMING = 2  # how many scored checkpoints after a crossing must confirm it
LOWER = 0.75  # the lower mark, as a share of the high mark


@dataclass(frozen=True, slots=True)
class Crossings:
    """Where each curve crosses `high` and stays at or above `LOWER` of it for the next `CONFIRMING` scored checkpoints.

    `plateau` is the highest value and `floor` the lowest before it, both of running medians of three, so that one
    outlier makes neither. `high` is the greater of `least` and the middle between the two. `column` and `before` are
    the columns of the crossing and of the last scored checkpoint before it. `unconfirmed` curves are above `high` only
    so late that too few checkpoints follow.
    """

    floor: Float[np.ndarray, " heads"]
    plateau: Float[np.ndarray, " heads"]
    high: Float[np.ndarray, " heads"]
    first: Float[np.ndarray, " heads"]
    final: Float[np.ndarray, " heads"]
    column: Int[np.ndarray, " heads"]
    before: Int[np.ndarray, " heads"]
    unconfirmed: Bool[np.ndarray, " heads"]


@dataclass(frozen=True, slots=True)
class Breaks:
    """The best two levels of each curve, the second the higher; NaN and -1 where no split rises.

    `before` and `after` are the columns of the scored checkpoints that the change lies between. `sse` is the sum of
    squared residuals.
    """

    level_before: Float[np.ndarray, " heads"]
    level_after: Float[np.ndarray, " heads"]
    before: Int[np.ndarray, " heads"]
    after: Int[np.ndarray, " heads"]
    sse: Float[np.ndarray, " heads"]

    def rows(self, some: Int[np.ndarray, " some"]) -> Breaks:
        """The fits of some curves."""
        return Breaks(*(getattr(self, f.name)[some] for f in fields(self)))

    def levels(self, n_ckpts: int) -> Float[np.ndarray, "heads ckpts"]:
        """The fitted level at each checkpoint."""
        is_after = np.arange(n_ckpts) >= self.after[:, None]
        return np.where(is_after, self.level_after[:, None], self.level_before[:, None])


def onsets(scores: pd.DataFrame, *, min_score: float = 0.1) -> pd.DataFrame:
    """The half-rise onset of every head: the checkpoint from which it stays at or above half of its final score.

    A lineage is one head under one detector and probe on one branch, of one kind where its layer has two mixers.
    Its checkpoints stand in the order of `step_total` where all have one, else in the order they appear. A checkpoint
    without a score is a gap: it neither fulfils nor breaks the condition.

    Args:
        scores: rows of `Run.scores()`.
        min_score: a head whose final score is lower never emerged and has no onset.

    Returns:
        One row per lineage that has a score, by detector, probe, layer and head:
        final: the score at the last checkpoint that has one.
        peak, peak_step: the highest score and the first step that reached it.
        transience: 1 - final / peak, the share lost since the peak; NaN where the peak is not above 0.
        onset_ckpt, onset_step, onset_tokens: the first checkpoint from which the score stays >= final / 2, or NA.
        previous_step, previous_tokens: the scored checkpoint before it; the rise lies between the two.
        at_first: the onset is the first scored checkpoint, and so only an upper bound.
    """
    return half_rises(curves_of(scores), min_score=min_score)


def half_rises(curves: Curves, *, min_score: float = 0.1) -> pd.DataFrame:
    """`onsets`, from curves."""
    checkpoints = curves.checkpoints
    final, peak, peak_column, onset_column, previous_column = _landmarks(curves.score, min_score)
    steps, tokens = checkpoints.loc[:, "step"], checkpoints.loc[:, "tokens"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        transience = np.where(peak > 0, 1 - final / peak, np.nan)
    return curves.heads.assign(
        final=final,
        peak=peak,
        peak_step=values_at(steps, peak_column),
        transience=transience,
        onset_ckpt=values_at(checkpoints.index.to_series(), onset_column),
        onset_step=values_at(steps, onset_column),
        onset_tokens=values_at(tokens, onset_column),
        previous_step=values_at(steps, previous_column),
        previous_tokens=values_at(tokens, previous_column),
        at_first=(onset_column >= 0) & (previous_column < 0),
    )


def crossings_of(score: Float[np.ndarray, "heads ckpts"], *, least: float = 0.2) -> Crossings:
    """The crossing of every curve. `least` is the lowest high mark there may be."""
    y, order, n = _compact(score)
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
    for ahead in range(1, CONFIRMING + 1):
        follow[:, :-ahead] &= stays[:, ahead:]
        follow[:, -ahead:] = False
    confirmed = above & follow
    position = np.where(confirmed.any(1), confirmed.argmax(1), -1)
    late = np.arange(y.shape[1]) >= (n - CONFIRMING)[:, None]
    return Crossings(
        floor=floor,
        plateau=plateau,
        high=high,
        first=y[:, 0],
        final=smooth[rows, n - 1],
        column=np.where(position >= 0, order[rows, position], -1),
        before=np.where(position >= 1, order[rows, np.maximum(position - 1, 0)], -1),
        unconfirmed=(position < 0) & (above & late).any(1),
    )


def breaks_of(score: Float[np.ndarray, "heads ckpts"], *, falling: bool = False) -> Breaks:
    """The two-level least-squares fit of every curve; `falling` admits falls too."""
    y, order, n = _compact(score)
    rows = np.arange(len(y))
    mean = np.nansum(y, axis=1) / n
    centred = np.where(np.isnan(y), 0, y - mean[:, None])
    total = (centred**2).sum(1)
    sums = centred.cumsum(1)
    n_before = np.arange(1, y.shape[1] + 1)
    n_after = n[:, None] - n_before
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = sums**2 * (1 / n_before + 1 / n_after)
    gain[(n_after < 1) | ((sums > 0) & (not falling))] = -1
    split = gain.argmax(1)
    has_split = gain[rows, split] > 0
    level_before = mean + sums[rows, split] / n_before[split]
    level_after = mean - sums[rows, split] / np.maximum(n - n_before[split], 1)
    following = np.minimum(split + 1, y.shape[1] - 1)
    return Breaks(
        level_before=np.where(has_split, level_before, np.nan),
        level_after=np.where(has_split, level_after, np.nan),
        before=np.where(has_split, order[rows, split], -1),
        after=np.where(has_split, order[rows, following], -1),
        sse=np.where(has_split, np.maximum(total - gain[rows, split], 0), np.nan),
    )


def values_at(values: pd.Series, column: Any) -> Any:
    """The checkpoints' values at these columns; NA at -1."""
    return values.array.take(column, allow_fill=True, fill_value=None)


def _landmarks(matrix: Float[np.ndarray, "lineages ckpts"], min_score: float) -> tuple[Any, Any, Any, Any, Any]:
    """Final and peak scores, and the columns of the peak, of the onset and of the checkpoint before the onset."""
    n_ckpts = matrix.shape[1]
    has_score: Bool[np.ndarray, "lineages ckpts"] = ~np.isnan(matrix)
    rows = np.arange(len(matrix))
    final = matrix[rows, n_ckpts - 1 - has_score[:, ::-1].argmax(1)]
    peak_column = np.where(has_score, matrix, -np.inf).argmax(1)
    holds = ~has_score | (matrix >= final[:, None] / 2)
    holds_from_here = np.logical_and.accumulate(holds[:, ::-1], axis=1)[:, ::-1] & has_score
    onset_column = np.where(final >= min_score, holds_from_here.argmax(1), -1)
    before = has_score & (np.arange(n_ckpts) < onset_column[:, None])
    previous_column = np.where(before.any(1), n_ckpts - 1 - before[:, ::-1].argmax(1), -1)
    return final, matrix[rows, peak_column], peak_column, onset_column, previous_column


def _compact(
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
