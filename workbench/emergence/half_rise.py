"""When a head became what it is at the end: its half-rise onset, its peak, and what it lost since."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from workbench.emergence.score_curves import Curves, curves_of


def onsets(scores: pd.DataFrame, *, min_score: float = 0.1) -> pd.DataFrame:
    """The half-rise onset of every head: since when it has stayed at or above half of its final score.

    A lineage is one head under one detector and probe on one branch, of one kind where its layer has two mixers.
    Its checkpoints are taken by `step_total` where all have one, else in the order they appear. Checkpoints where
    the score is NaN, or that are not there, are gaps: they neither fulfil nor break the condition.

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
        at_first: it was there at the first scored checkpoint already: the onset is only an upper bound.
    """
    return half_rises(curves_of(scores), min_score=min_score)


def half_rises(curves: Curves, *, min_score: float = 0.1) -> pd.DataFrame:
    """As `onsets`, of curves that are there already."""
    checkpoints = curves.checkpoints
    final, peak, peak_at, onset_at, previous_at = _landmarks(curves.score, min_score)
    steps, tokens = checkpoints.loc[:, "step"], checkpoints.loc[:, "tokens"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        transience = np.where(peak > 0, 1 - final / peak, np.nan)
    return curves.heads.assign(
        final=final,
        peak=peak,
        peak_step=at(steps, peak_at),
        transience=transience,
        onset_ckpt=at(checkpoints.index.to_series(), onset_at),
        onset_step=at(steps, onset_at),
        onset_tokens=at(tokens, onset_at),
        previous_step=at(steps, previous_at),
        previous_tokens=at(tokens, previous_at),
        at_first=(onset_at >= 0) & (previous_at < 0),
    )


def at(values: pd.Series, position: Any) -> Any:
    """The checkpoints' values at these positions; NA at -1."""
    return values.array.take(position, allow_fill=True, fill_value=None)


def _landmarks(matrix: Float[np.ndarray, "lineages ckpts"], min_score: float) -> tuple[Any, Any, Any, Any, Any]:
    """Final and peak scores, and the checkpoints of peak, onset and the one before the onset (-1: none)."""
    n_ckpts = matrix.shape[1]
    there: Bool[np.ndarray, "lineages ckpts"] = ~np.isnan(matrix)
    rows = np.arange(len(matrix))
    final = matrix[rows, n_ckpts - 1 - there[:, ::-1].argmax(1)]
    peak_at = np.where(there, matrix, -np.inf).argmax(1)
    holds = ~there | (matrix >= final[:, None] / 2)
    from_here_on = np.logical_and.accumulate(holds[:, ::-1], axis=1)[:, ::-1] & there
    onset_at = np.where(final >= min_score, from_here_on.argmax(1), -1)
    before = there & (np.arange(n_ckpts) < onset_at[:, None])
    previous_at = np.where(before.any(1), n_ckpts - 1 - before[:, ::-1].argmax(1), -1)
    return final, matrix[rows, peak_at], peak_at, onset_at, previous_at
