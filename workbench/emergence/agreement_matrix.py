"""Every checkpoint against every other: since when a model ranks its heads as it does later, as one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from workbench.emergence.rank_statistics import FEWEST_HEADS, ranks, within_layers
from workbench.emergence.score_curves import curves_of
from workbench.heads import WorkbenchError

_HEAD = ["layer", "head", "kv_head"]


def rank_agreement(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of head scores between each checkpoint of one table and each of the other.

    Heads of the same layer and number are taken to be the same: give rows of one lineage, or of one run twice.
    Unlike `lock_in`, nothing is divided by the probe's noise ceiling, so the numbers are lower where it is noisy.

    Args:
        one, other: rows of `Run.scores()` of one detector on one probe.

    Returns:
        One row per pair, in order: ckpt (of `one`), reference (of `other`), n_heads, rho, and rho_within, with each
        layer's mean taken off. NaN below four heads that have both.

    Raises:
        WorkbenchError: if there is no score, or no head that both have.
    """
    (heads, names, scores), (others, references, against) = _matrix(one), _matrix(other)
    both = heads.intersection(others)
    if both.empty:
        raise WorkbenchError("the two have no scored head of the same layer and number; compare runs of one lineage")
    scores, against = scores[heads.get_indexer(both)], against[others.get_indexer(both)]
    layer = both.get_level_values("layer").to_numpy(np.int64)
    n = (~np.isnan(scores)).T.astype(np.int64) @ (~np.isnan(against)).astype(np.int64)
    place = pd.MultiIndex.from_product([names, references], names=["ckpt", "reference"])
    table = pd.DataFrame({"n_heads": n.ravel()}, index=place).reset_index()
    table["rho"] = _rank_correlation(scores, against, lambda values, _: values, layer).ravel()
    table["rho_within"] = _rank_correlation(scores, against, within_layers, layer).ravel()
    return table


def _matrix(table: pd.DataFrame) -> tuple[pd.MultiIndex, list[str], Float[np.ndarray, "heads ckpts"]]:
    if not table.loc[:, "score"].notna().any():
        raise WorkbenchError("there are no scores to compare")
    curves = curves_of(table.assign(branch=pd.array([None] * len(table), dtype="str")))
    first = ~curves.heads.duplicated(_HEAD).to_numpy()
    heads = pd.MultiIndex.from_frame(curves.heads.loc[first, _HEAD].astype("Int64"))
    return heads, [str(name) for name in curves.checkpoints.index], curves.score[first]


def _rank_correlation(
    one: Float[np.ndarray, "heads ckpts"],
    other: Float[np.ndarray, "heads others"],
    prepared: Callable[[Any, Any], Any],
    layer: Int[np.ndarray, " heads"],
) -> Float[np.ndarray, "ckpts others"]:
    """One matrix product for all checkpoints that have the same heads: mostly, that is all of them."""
    rho = np.full((one.shape[1], other.shape[1]), np.nan)
    for rows, mine in _by_heads(one):
        for columns, theirs in _by_heads(other):
            shared = mine & theirs
            if shared.sum() >= FEWEST_HEADS:
                of = np.unique(layer[shared], return_inverse=True)[1]
                sides = [_unit_ranks(side[shared], prepared, of) for side in (one[:, rows], other[:, columns])]
                rho[np.ix_(rows, columns)] = sides[0].T @ sides[1]
    return rho


def _by_heads(scores: Float[np.ndarray, "heads ckpts"]) -> list[tuple[list[int], Bool[np.ndarray, " heads"]]]:
    """The columns that have the same heads, together."""
    there = ~np.isnan(scores)
    patterns, which = np.unique(there, axis=1, return_inverse=True)
    return [([int(c) for c in np.flatnonzero(which.ravel() == i)], patterns[:, i]) for i in range(patterns.shape[1])]


def _unit_ranks(scores: Any, prepared: Callable[[Any, Any], Any], layer: Any) -> Float[np.ndarray, "heads ckpts"]:
    """Ranks of each column, centred and of length one; zeros where all are ties."""
    centred = np.stack([ranks(prepared(column, layer)) for column in scores.T], axis=1)
    length = np.linalg.norm(centred, axis=0)
    return centred / np.where(length, length, 1)
