"""When a score is a claim: thresholds others use, with their source, and how much it takes to say that one is passed.

A threshold belongs to one definition of a score and to the probe it was set on: none carries over to another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from workbench.detectors.scoring import MIN_SEQUENCES
from workbench.heads import WorkbenchError

Rule = Literal["above", "top_share", "top_heads"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """What makes a head one of a detector's: a score above `value`, or being among the best.

    `top_share`: `value` is the share of key/value groups, which count by their best head. `top_heads`: a number of
    query heads. `source`: who uses it.
    """

    detector: str
    value: float | int
    source: str
    rule: Rule = "above"


THRESHOLDS: tuple[Threshold, ...] = (
    Threshold("retrieval_wu", 0.1, "Wu et al. 2024: retrieval heads score above 0.1"),
    Threshold("retrieval_wu_offsets", 0.1, "Wu et al. 2024, for the needle found by token overlap"),
    Threshold("qr_head", 16, "Zhang et al. 2025, QRHead: the best 16 heads of models of 8B, 32 of 70B", "top_heads"),
    Threshold("induction", 0.4, "Olsson et al. 2022 use 0.3 to 0.4, the demos of TransformerLens 0.4"),
    Threshold("previous_token", 0.4, "the demos of TransformerLens"),
    Threshold("duplicate_token", 0.4, "the demos of TransformerLens"),
    Threshold("induction_razor", 0.14, "RazorAttention in Huawei's implementation: 14 % of groups", "top_share"),
    Threshold("echo_razor", 0.01, "RazorAttention in Huawei's implementation: 1 % of groups", "top_share"),
    Threshold("sink_gu", 0.5, "ours: a sink in most samples, each above Gu et al.'s 0.3"),
)


def claims(
    table: pd.DataFrame, thresholds: Iterable[Threshold] = THRESHOLDS, *, min_sequences: int = MIN_SEQUENCES
) -> pd.DataFrame:
    """The rows of a score table whose detector has a threshold, with what may be said of each head.

    Args:
        table: of `score`, or of one checkpoint of a run.
        thresholds: one for each detector, of one's own or with another value.
        min_sequences: fewer are too few to say anything.

    Returns:
        The rows with threshold, rule, source and claim: `yes` and `no` where the whole confidence interval lies on one
        side of the threshold, or for ranks where the head is among the best or not; `undecided` where the interval
        holds it; `too few` sequences; `no score`.

    Raises:
        WorkbenchError: for two thresholds of one detector, or a table that has several steps.
    """
    chosen = list(thresholds)
    by_name = {t.detector: t for t in chosen}
    if len(by_name) < len(chosen):
        raise WorkbenchError("two thresholds are for one detector; pass one of each")
    if "step" in table and table["step"].nunique() > 1:
        raise WorkbenchError(f"the table has {table['step'].nunique()} steps; pass one checkpoint: run.scores(step=…)")
    found = table[table["detector"].isin(list(by_name))].reset_index(drop=True)
    of_row = [by_name[name] for name in found["detector"]]
    found["threshold"] = [t.value for t in of_row]
    found["rule"] = [t.rule for t in of_row]
    found["source"] = [t.source for t in of_row]
    found["claim"] = ""
    for (name, _), mine in found.groupby(["detector", "probe"]):
        threshold = by_name[str(name)]
        said = _above(mine, threshold.value) if threshold.rule == "above" else _ranked(mine, threshold)
        said[(mine["n_seq"] < min_sequences).to_numpy()] = "too few"
        said[mine["score"].isna().to_numpy()] = "no score"
        found.loc[mine.index, "claim"] = said
    return found


def _above(rows: pd.DataFrame, value: float | int) -> np.ndarray:
    low, high = rows["ci_lo"].to_numpy(float), rows["ci_hi"].to_numpy(float)
    return np.where(low > value, "yes", np.where(high <= value, "no", "undecided")).astype(object)


def _ranked(rows: pd.DataFrame, threshold: Threshold) -> np.ndarray:
    if threshold.rule == "top_heads":
        best = rows["score"].rank(ascending=False, method="first") <= threshold.value
    else:
        groups = rows.groupby(["layer", "kv_head"])["score"].max().dropna()
        n = round(threshold.value * len(groups))
        kept = set(groups.sort_values(ascending=False, kind="stable").index[:n])
        best = pd.Series([(layer, kv) in kept for layer, kv in zip(rows["layer"], rows["kv_head"], strict=True)])
    return np.where(best.to_numpy(bool), "yes", "no").astype(object)
