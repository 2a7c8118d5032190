"""Checkpoints in pairs: rank agreement of every two, and the scores of two head by head."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.emergence.probe_forms import refuse_two_forms
from workbench.emergence.rank_statistics import FEWEST_HEADS, spearman_matrix
from workbench.emergence.score_curves import curves_of
from workbench.heads import Head, KVHead, WorkbenchError

Matching = Literal["head", "rank", "share"]

_HEAD = ["layer", "head", "kv_head"]
_VALUES = ["kind", "score", "ci_lo", "ci_hi"]


def rank_agreement(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of head scores between each checkpoint of one table and each of the other.

    Heads of the same layer and number count as the same: give rows of one lineage, or of one run twice.
    Unlike `lock_in`, nothing is divided by the probe's noise ceiling, so the numbers are lower where it is noisy.

    Args:
        one, other: rows of `Run.scores()` of one detector on one probe.

    Returns:
        One row per pair, in order: ckpt (of `one`), reference (of `other`), n_heads, rho, and rho_within, with each
        layer's mean taken off. NaN below four heads that have both, and where one side is constant.

    Raises:
        WorkbenchError: if there is no score, or no head that both have.
    """
    matrix = _matrix(one)
    matrix_of_other = matrix if other is one else _matrix(other)
    (heads, names, scores), (heads_of_other, references, scores_of_other) = matrix, matrix_of_other
    both = heads.intersection(heads_of_other)
    if both.empty:
        raise WorkbenchError("the two have no scored head of the same layer and number; compare runs of one lineage")
    scores = scores[heads.get_indexer(both)]
    scores_of_other = scores if other is one else scores_of_other[heads_of_other.get_indexer(both)]
    layer = both.get_level_values("layer").to_numpy(np.int64)
    n = (~np.isnan(scores)).T.astype(np.int64) @ (~np.isnan(scores_of_other)).astype(np.int64)
    rho = spearman_matrix(scores, scores_of_other)
    rho_within = spearman_matrix(scores, scores_of_other, layer)
    pairs = pd.MultiIndex.from_product([names, references], names=["ckpt", "reference"])
    table = pd.DataFrame({"n_heads": n.ravel()}, index=pairs).reset_index()
    columns = {"rho": rho, "rho_within": rho_within}
    return table.assign(**{name: np.where(n < FEWEST_HEADS, np.nan, m).ravel() for name, m in columns.items()})


def paired(one: pd.DataFrame, other: pd.DataFrame, *, by: Matching) -> pd.DataFrame:
    """The scores of two checkpoints in pairs of heads, the largest difference first.

    Args:
        one, other: rows of `Run.scores()` of one detector, probe and checkpoint each.
        by: "head" pairs heads of the same layer and number, which are the same heads within one lineage only; "rank"
            pairs the strongest with the strongest, and so on, which compares how many there are of what strength;
            "share" pairs each head of the smaller model with the one at the same share of the larger one's ranking.

    Returns:
        One row per pair: name, name_other, kind, score, ci_lo, ci_hi, the same with `_other`, change (other - one),
        apart: whether the 95 % intervals do not overlap; NA where the two are not the same head, as a pair that is made
        by rank says nothing about noise.

    Raises:
        WorkbenchError: if no head of one has a partner.
    """
    for rows in (one, other):
        refuse_two_forms(rows)
    sides = [_with_key(rows, by) for rows in (one, other)]
    if by == "share":
        n = min(map(len, sides))
        sides = [_at_shares(side, n) for side in sides]
    pairs = sides[0].merge(sides[1], on=_HEAD if by == "head" else "rank", suffixes=("", "_other"))
    if pairs.empty:
        raise WorkbenchError("the two have no scored head in common; pair them by rank")
    pairs["change"] = pairs["score_other"] - pairs["score"]
    apart = (pairs["ci_lo"] > pairs["ci_hi_other"]) | (pairs["ci_lo_other"] > pairs["ci_hi"])
    pairs["apart"] = apart if by == "head" else pd.array([pd.NA] * len(pairs), "boolean")
    names = ["name", *_VALUES]
    order = np.argsort(-np.abs(pairs["change"].to_numpy(np.float64)), kind="stable")
    columns = [*names, *(f"{name}_other" for name in names), "change", "apart"]
    return pairs.iloc[order].loc[:, columns].reset_index(drop=True)


def _matrix(table: pd.DataFrame) -> tuple[pd.MultiIndex, list[str], Float[np.ndarray, "heads ckpts"]]:
    if not table.loc[:, "score"].notna().any():
        raise WorkbenchError("there are no scores to compare")
    refuse_two_forms(table)
    curves = curves_of(table.assign(branch=pd.Series(pd.NA, table.index, dtype="str")))
    is_first = ~curves.heads.duplicated(_HEAD).to_numpy()
    heads = pd.MultiIndex.from_frame(curves.heads.loc[is_first, _HEAD].astype("Int64"))
    return heads, [str(name) for name in curves.checkpoints.index], curves.score[is_first]


def _with_key(rows: pd.DataFrame, by: Matching) -> pd.DataFrame:
    """The scored rows with the head's name, and with layer and number or with the rank to pair by."""
    rows = rows.loc[rows["score"].notna(), [*_HEAD, *_VALUES]].copy()
    rows["name"] = [
        str(KVHead(int(layer), int(kv_head)) if pd.isna(head) else Head(int(layer), int(head)))
        for layer, head, kv_head in rows.loc[:, _HEAD].itertuples(index=False)
    ]
    if by == "head":
        return rows
    ordered = rows.sort_values("score", ascending=False, kind="stable").drop(columns=_HEAD)
    return ordered.assign(rank=np.arange(len(ordered)))


def _at_shares(ordered: pd.DataFrame, n: int) -> pd.DataFrame:
    """The rows in the middle of `n` equal shares of the ranking: all rows, where there are as many."""
    places = ((np.arange(n) + 0.5) * len(ordered) / max(n, 1)).astype(np.int64)
    return ordered.iloc[places].assign(rank=np.arange(n))
