"""Which heads a checkpoint would have one choose: the top by score, for what is decided early and checked late."""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.emergence.rank_statistics import top_rows
from workbench.heads import WorkbenchError


def chosen_at(
    scores: pd.DataFrame, ckpt: str, *, k: int | None = None, share: float | None = None, least: float | None = None
) -> pd.DataFrame:
    """The heads with the highest scores at one checkpoint, best first: layer, head, kv_head, kind, score.

    Args:
        scores: rows of `Run.scores(detector=..., probe=...)`: one detector on one probe.
        ckpt: its name.
        k, share: how many heads, or what share of those that have a score (at least one); one of the two.
        least: leave out heads below this score, so that there may be fewer.

    Raises:
        WorkbenchError: if there is no such checkpoint, several detectors or probes, or not one of `k` and `share`.
    """
    if (k is None) == (share is None):
        raise WorkbenchError(f"k is {k} and share is {share}; give one of them")
    if (k is not None and k < 1) or (share is not None and not 0 < share <= 1):
        raise WorkbenchError(f"k is {k}, share is {share}; expected k of at least 1, or a share above 0 up to 1")
    pairs = scores.loc[:, ["detector", "probe"]].drop_duplicates()
    if len(pairs) > 1:
        named = ", ".join(f"{detector} on {probe}" for detector, probe in pairs.itertuples(index=False))
        raise WorkbenchError(f"these are scores of {named}: choose by one detector on one probe")
    rows = scores.loc[(scores["ckpt"] == ckpt) & scores["score"].notna()]
    if rows.empty:
        there = ", ".join(map(str, scores.loc[:, "ckpt"].unique())) or "none"
        raise WorkbenchError(f"checkpoint {ckpt!r} has no scores here; there are scores of {there}")
    values = rows.loc[:, "score"].to_numpy(np.float64)
    count = k if k is not None else max(1, round((share or 0) * len(values)))
    chosen = rows.iloc[top_rows(values, count)].loc[:, ["layer", "head", "kv_head", "kind", "score"]]
    if least is not None:
        chosen = chosen.loc[chosen["score"] >= least]
    return chosen.reset_index(drop=True)
