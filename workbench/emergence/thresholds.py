"""Published thresholds of scores, and the claims that a score table supports: whether a head passes one.

A threshold belongs to one definition of a score and to the probe it was set on; it does not carry over to another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from workbench.heads import WorkbenchError

Rule = Literal["above", "top_share", "top_heads"]
# Sequences that an interval and a claim take at least.
MIN_SEQUENCES = 5


@dataclass(frozen=True, slots=True)
class Threshold:
    """The rule by which a head is one of a detector's heads: a score above `value`, or a rank among the best.

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

# The same count as `retrieval_wu_offsets` where the model's own answer is right and no second one follows it.
GIVEN_ANSWERS = Threshold(
    "retrieval_top1",
    0.1,
    "Wu et al. 2024: retrieval heads score above 0.1; here on given answers that the model gets right",
)
# Where no one has published a threshold, heads are counted from here on.
UNPUBLISHED = 0.3


def threshold_of(detector: str) -> Threshold:
    """The score from which a detector's heads are counted: the published one, or ours where there is none."""
    above = (t for t in (*THRESHOLDS, GIVEN_ANSWERS) if t.rule == "above")
    published = {threshold.detector: threshold for threshold in above}
    return published.get(detector) or Threshold(detector, UNPUBLISHED, "ours: no threshold of it is published")


def claims(
    table: pd.DataFrame, thresholds: Iterable[Threshold] = THRESHOLDS, *, min_sequences: int = MIN_SEQUENCES
) -> pd.DataFrame:
    """The rows of a score table whose detector has a threshold, with a claim about each head.

    Args:
        table: of `score`, or of one checkpoint of a run.
        thresholds: one for each detector, of one's own or with another value.
        min_sequences: with fewer, no claim is made.

    Returns:
        The rows with threshold, rule, source and claim: `yes` and `no` where the whole confidence interval lies on one
        side of the threshold, or for ranks where the head is among the best or not; `undecided` where the interval
        contains it; `too few` sequences; `no score`.

    Raises:
        WorkbenchError: for two thresholds of one detector, or a table that has several steps.
    """
    chosen = list(thresholds)
    by_name = {t.detector: t for t in chosen}
    if len(by_name) < len(chosen):
        raise WorkbenchError("two thresholds are for one detector; pass one of each")
    one_checkpoint(table)
    thresholds_of_rows = [by_name.get(name) for name in table["detector"]]
    judged = pd.DataFrame(table[[t is not None for t in thresholds_of_rows]]).reset_index(drop=True)
    known = [t for t in thresholds_of_rows if t is not None]
    judged["threshold"] = [t.value for t in known]
    judged["rule"] = [t.rule for t in known]
    judged["source"] = [t.source for t in known]
    claim = np.empty(len(judged), dtype=object)
    names, probes = np.asarray(judged["detector"]), np.asarray(judged["probe"])
    for name, probe in dict.fromkeys(zip(names.tolist(), probes.tolist(), strict=True)):
        of_pair = (names == name) & (probes == probe)
        claim[of_pair] = _claims(pd.DataFrame(judged[of_pair]), by_name[name])
    claim[np.asarray(judged["n_seq"]) < min_sequences] = "too few"
    claim[np.isnan(np.asarray(judged["score"], dtype=float))] = "no score"
    judged["claim"] = claim
    return judged


def _claims(rows: pd.DataFrame, threshold: Threshold) -> np.ndarray:
    scores, low, high = (np.asarray(rows[name], dtype=float) for name in ("score", "ci_lo", "ci_hi"))
    if threshold.rule == "above":
        return np.where(low > threshold.value, "yes", np.where(high <= threshold.value, "no", "undecided"))
    order = np.argsort(-scores, kind="stable")[: np.isfinite(scores).sum()]
    if threshold.rule == "top_heads":
        best = np.isin(np.arange(len(scores)), order[: int(threshold.value)])
    else:
        groups = list(zip(rows["layer"], rows["kv_head"], strict=True))
        ranked = list(dict.fromkeys(groups[i] for i in order))
        chosen = set(ranked[: round(threshold.value * len(ranked))])
        best = np.array([group in chosen for group in groups])
    return np.where(best, "yes", "no")


def one_checkpoint(table: pd.DataFrame) -> None:
    """Refuse a table of several checkpoints.

    Raises:
        WorkbenchError: if the table has several steps.
    """
    steps = set(table["step"]) if "step" in table.columns else set()
    if len(steps) > 1:
        raise WorkbenchError(f"the table has {len(steps)} steps; pass one checkpoint: run.scores(step=…)")
