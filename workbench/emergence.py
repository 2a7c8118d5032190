"""When a head became what it is at the end: its half-rise onset, its peak, and what it lost since."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

LINEAGE = ("branch", "detector", "version", "probe", "probe_digest", "layer", "head", "kv_head")


def onsets(scores: pd.DataFrame, *, min_score: float = 0.1) -> pd.DataFrame:
    """The half-rise onset of every head: since when it has stayed at or above half of its final score.

    A lineage is one head under one detector and probe on one branch. Its checkpoints are taken by
    `step_total` where all have one, else in the order they appear. Checkpoints where the score is NaN, or
    that are not there, are gaps: they neither fulfil nor break the condition.

    Args:
        scores: rows of `Run.scores()`.
        min_score: a head whose final score is lower never emerged and has no onset.

    Returns:
        One row per lineage that has a score, by detector, probe, layer and head:
        final: the score at the last checkpoint that has one.
        peak, peak_step: the highest score and the first step that reached it.
        transience: 1 - final / peak, the share lost since the peak; NaN where the peak is not above 0.
        onset_step, onset_tokens: the first checkpoint from which the score stays >= final / 2, or NA.
        previous_step, previous_tokens: the scored checkpoint before it; the rise lies between the two.
        at_first: it was there at the first scored checkpoint already: the onset is only an upper bound.
    """
    scores = scores.loc[scores["score"].notna()]
    checkpoints = _in_order(scores)
    by_lineage = scores.groupby(list(LINEAGE), dropna=False, observed=True, sort=True)
    lineage = by_lineage.ngroup().to_numpy()
    position = checkpoints.index.get_indexer(scores.loc[:, "ckpt"])
    matrix = np.full((by_lineage.ngroups, len(checkpoints)), np.nan)
    matrix[lineage, position] = scores["score"].to_numpy()

    heads = by_lineage[["kind", "window"]].last().reset_index()
    if heads.empty:
        matrix = np.full((0, 1), np.nan)
    final, peak, peak_at, onset_at, previous_at = _landmarks(matrix, min_score)
    steps, tokens = checkpoints.loc[:, "step"], checkpoints.loc[:, "tokens"]
    with np.errstate(divide="ignore", invalid="ignore"):
        transience = np.where(peak > 0, 1 - final / peak, np.nan)
    return heads.assign(
        final=final,
        peak=peak,
        peak_step=_at(steps, peak_at),
        transience=transience,
        onset_step=_at(steps, onset_at),
        onset_tokens=_at(tokens, onset_at),
        previous_step=_at(steps, previous_at),
        previous_tokens=_at(tokens, previous_at),
        at_first=(onset_at >= 0) & (previous_at < 0),
    )


def _in_order(scores: pd.DataFrame) -> pd.DataFrame:
    """The checkpoints, by name, in series order."""
    found = scores.drop_duplicates("ckpt").set_index("ckpt").loc[:, ["step", "step_total", "tokens"]]
    total = found.loc[:, "step_total"]
    if total.isna().any():
        return found
    return found.iloc[np.argsort(total.to_numpy(np.int64), kind="stable")]


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


def _at(values: pd.Series, position: Any) -> Any:
    """The checkpoints' values at these positions; NA at -1."""
    return values.array.take(position, allow_fill=True, fill_value=pd.NA)
