"""What a model gets right on each probe, beside its control, and whether its scores there speak of retrieval.

1. The share of answer tokens that are the model's arg-max, and the loss on them, with intervals over sequences.
2. The same on the control: the answers gone from the context. Of `repeated_ngrams` it is the first occurrences.
3. A verdict: `does`, the model gets at least half right, and more than on the control, interval against interval;
   `partly`, more than on the control but less than half; `cannot`, no more than on the control; `not known`, less than
   half, and there is no control.

Reference:
    Wu et al. 2024, Retrieval Head Mechanistically Explains Long-Context Factuality: a test counts towards a head's
    score where more than half of the needle is recalled (ROUGE-1 recall above 0.5).
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench.heads import WITHOUT_ANSWERS

HALF = 0.5
LOSS = "loss_nats"
# Behind the name of a metric: over the answers that stand a second time, all distances together.
LATER = "_later"
COLUMNS = (
    *("probe", "metric", "n", "right", "right_lo", "right_hi", "nats"),
    *("chance", "chance_lo", "chance_hi", "chance_nats", "verdict"),
)
# The number of one class, such as `recall_hops_2`.
_CLASSED = re.compile(r".+_[a-z]+_\d+")


class _Share(NamedTuple):
    value: float
    low: float
    high: float
    n: int


def abilities(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per probe that has answers to get right.

    Args:
        metrics: rows of `Run.metrics` of one checkpoint.

    Returns:
        probe, metric; n answers, `right` the share of them that is right, with its 95 % interval, `nats` the loss on
        them; `chance`, the share on the control, with its interval, and `chance_nats`, NaN where there is no control;
        verdict.
    """
    by_probe = _by_probe(metrics)
    rows = [row for probe in by_probe if (row := _row(by_probe, probe)) is not None]
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def in_words(row: dict[str, Any]) -> str:
    """A row of `abilities` as a sentence without its full stop."""
    if row["verdict"] == "cannot":
        return (
            f"the model cannot do {row['probe']}: {row['right']:.2f} of its answers are right, {row['chance']:.2f} "
            "where the answers are gone from the context"
        )
    control = "" if row["verdict"] == "not known" else f", {_in_words(row, 'chance')} without them in the context"
    control = "" if pd.isna(row["chance"]) else control
    return f"the model gets {_in_words(row, 'right')} of the answers of {row['probe']} right{control}"


def _in_words(row: dict[str, Any], name: str) -> str:
    """A share with its 95 % interval, if it has one."""
    low, high = row.get(f"{name}_lo"), row.get(f"{name}_hi")
    return f"{row[name]:.2f}" if low is None or pd.isna(low) else f"{row[name]:.2f} ({low:.2f}–{high:.2f})"


class _Value(NamedTuple):
    """A metric of one class: NaN as `distance` is all distances, as `position` all positions."""

    metric: str
    distance: float
    position: float
    n: float
    value: float
    low: float
    high: float


def _by_probe(metrics: pd.DataFrame) -> dict[str, list[_Value]]:
    """The values of each probe, in order. Tables of pandas would take most of the time of scoring a small model."""
    names = ("distance", "position", "n", "value", "ci_lo", "ci_hi")
    columns = (metrics[name].to_numpy(np.float64, na_value=np.nan).tolist() for name in names)
    by_probe: dict[str, list[_Value]] = {}
    for probe, *value in zip(metrics["probe"].tolist(), metrics["metric"].tolist(), *columns, strict=True):
        by_probe.setdefault(str(probe), []).append(_Value(*value))
    return by_probe


def _row(by_probe: dict[str, list[_Value]], probe: str) -> dict[str, Any] | None:
    if probe.endswith(WITHOUT_ANSWERS):
        return None
    of_probe = [value for value in by_probe[probe] if math.isnan(value.position)]
    is_other = re.compile(f"{LOSS}|.*{LATER}|{_CLASSED.pattern}")
    names = [value.metric for value in of_probe if not is_other.fullmatch(value.metric)]
    if not names:
        return None
    metric = names[0]
    first = [value for value in of_probe if value.distance == 0]
    if first:
        behind = [value for value in of_probe if value.distance > 0]
        right, nats, chance, chance_nats = (_share(rows, name) for rows in (behind, first) for name in (metric, LOSS))
        pooled = _share(of_probe, metric + LATER), _share(of_probe, LOSS + LATER)
        right, nats = pooled if pooled[0].n else (right, nats)  # runs of earlier versions have it by distance alone
    else:
        pooled = [value for value in of_probe if math.isnan(value.distance)]
        without = [value for value in by_probe.get(probe + WITHOUT_ANSWERS, []) if math.isnan(value.distance)]
        right, nats, chance, chance_nats = (_share(rows, name) for rows in (pooled, without) for name in (metric, LOSS))
    if right.n == 0:
        return None
    verdict = _verdict(right, chance)
    values = (probe, metric, right.n, *right[:3], nats.value, *chance[:3], chance_nats.value, verdict)
    return dict(zip(COLUMNS, values, strict=True))


def _share(values: list[_Value], metric: str) -> _Share:
    """The mean over classes, each weighed by its answers; so are the ends of the interval, which is never too narrow.

    Were the classes independent, the interval of their mean would be narrower.
    """
    of_metric = np.array([value[3:] for value in values if value.metric == metric and value.n > 0])
    if not len(of_metric):
        return _Share(math.nan, math.nan, math.nan, 0)
    weight = of_metric[:, :1]
    value, low, high = ((weight * of_metric[:, 1:]).sum(0) / weight.sum()).tolist()
    return _Share(value, low, high, int(weight.sum()))


def _verdict(right: _Share, chance: _Share) -> str:
    """Where fewer than five sequences give no interval, the share itself is compared."""
    low = right.value if pd.isna(right.low) else right.low
    if chance.n == 0:
        return "does" if right.value >= HALF else "not known"
    high = chance.value if pd.isna(chance.high) else chance.high
    if low <= high:
        return "cannot"
    return "does" if right.value >= HALF else "partly"
