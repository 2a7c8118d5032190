"""Two checkpoints beside each other, head by head: the same head where they share a lineage, else the same rank."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from workbench.heads import Head, KVHead, WorkbenchError

Matching = Literal["head", "rank"]
_HEAD = ["layer", "head", "kv_head"]
_VALUES = ["kind", "score", "ci_lo", "ci_hi"]


def paired(one: pd.DataFrame, other: pd.DataFrame, *, by: Matching) -> pd.DataFrame:
    """The scores of two checkpoints in pairs, those that differ most first.

    Args:
        one, other: rows of `Run.scores()` of one detector, probe and checkpoint each.
        by: "head" pairs heads of the same layer and number, which means something within one lineage alone; "rank"
            pairs the strongest with the strongest, and so on, which compares how many there are of what strength.

    Returns:
        One row per pair: name, name_other, kind, score, ci_lo, ci_hi, the same with `_other`, change (other - one),
        apart: whether the 95 % intervals do not overlap.

    Raises:
        WorkbenchError: if no head of one has a partner.
    """
    sides = [_named(side, by) for side in (one, other)]
    pairs = sides[0].merge(sides[1], on=_HEAD if by == "head" else "rank", suffixes=("", "_other"))
    if pairs.empty:
        raise WorkbenchError("the two have no scored head in common; pair them by rank")
    pairs["change"] = pairs["score_other"] - pairs["score"]
    pairs["apart"] = (pairs["ci_lo"] > pairs["ci_hi_other"]) | (pairs["ci_lo_other"] > pairs["ci_hi"])
    names = ["name", *_VALUES]
    order = np.argsort(-np.abs(pairs["change"].to_numpy(np.float64)), kind="stable")
    kept = [*names, *(f"{name}_other" for name in names), "change", "apart"]
    return pairs.iloc[order].loc[:, kept].reset_index(drop=True)


def _named(rows: pd.DataFrame, by: Matching) -> pd.DataFrame:
    rows = rows.loc[rows["score"].notna(), [*_HEAD, *_VALUES]].copy()
    rows["name"] = [
        str(KVHead(int(layer), int(kv_head)) if pd.isna(head) else Head(int(layer), int(head)))
        for layer, head, kv_head in rows.loc[:, _HEAD].itertuples(index=False)
    ]
    if by == "head":
        return rows
    ordered = rows.sort_values("score", ascending=False, kind="stable").drop(columns=_HEAD)
    return ordered.assign(rank=np.arange(len(ordered)))
