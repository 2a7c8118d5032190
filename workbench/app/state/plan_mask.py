"""Edit a plan's mask by budget or head by head, write it into the address, and predict its cost."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from workbench.app.state.view import View
from workbench.heads import KVHead
from workbench.store.cache_sizes import bytes_under
from workbench.store.plan_file import Plan

_HEAD = re.compile(r"L(\d+)KV(\d+)")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The loss that a mask is expected to have on one held-out probe, and the share of the gap that it recovers.

    `is_measured`: interpolated linearly on the plan's measured curve; else summed from the kept heads' scores, which
    ignores how heads work together. `ci_lo` to `ci_hi`: the 95 % interval of `recovered`; NaN where there is none.
    """

    probe: str
    nats: float
    recovered: float
    is_measured: bool
    ci_lo: float = math.nan
    ci_hi: float = math.nan


def mask_of(plan: Plan, text: str) -> tuple[KVHead, ...]:
    """The heads that a parameter of the address keeps: "n5" the first five of the ranking, "L0KV1.L2KV0" these two.

    Heads that the plan does not rank are ignored; "" is the plan's own mask.
    """
    budget = re.fullmatch(r"n(\d+)", text)
    if budget:
        return tuple(sorted(r.head for r in plan.ranking[: int(budget[1])]))
    if not text:
        return tuple(sorted(plan.keep))
    named = {KVHead(int(layer), int(head)) for layer, head in _HEAD.findall(text)}
    return tuple(sorted(named & {r.head for r in plan.ranking}))


def is_mask_of(plan: Plan, text: str) -> bool:
    """Whether a parameter of the address names heads that the plan ranks, and nothing else."""
    budget = re.fullmatch(r"n(\d{1,9})", text)
    if budget:
        return int(budget[1]) <= len(plan.ranking)
    ranked = {str(r.head) for r in plan.ranking}
    return all(_HEAD.fullmatch(part) and part in ranked for part in text.split("."))


def text_of(plan: Plan, keep: Collection[KVHead]) -> str:
    """The shortest parameter of the address for a mask."""
    if set(keep) == set(plan.keep):
        return ""
    if set(keep) == {r.head for r in plan.ranking[: len(keep)]}:
        return f"n{len(keep)}"
    return ".".join(str(head) for head in sorted(keep))


def edited(plan: Plan, text: str) -> Plan:
    """The plan with the mask of the address; heads that it does not keep have the plan's conversions."""
    return plan.keeping(mask_of(plan, text))


def predictions(plan: Plan) -> list[Prediction]:
    """The predictions for the plan's mask, one per held-out probe of its curve."""
    table = plan.curves()
    own = table.loc[table["method"] == plan.method]
    is_prefix = set(plan.keep) == {r.head for r in plan.ranking[: len(plan.keep)]}
    total_score = math.fsum(r.score for r in plan.ranking)
    kept_score = math.fsum(r.score for r in plan.ranking if r.head in plan.keep)
    expected: list[Prediction] = []
    for probe, points in own.groupby("probe", sort=False):
        points = points.sort_values("n_kept")
        n = points["n_kept"].to_numpy(np.float64)
        measured = [points[name].to_numpy(np.float64) for name in ("nats", "recovered", "ci_lo", "ci_hi")]
        nats = measured[0]
        if is_prefix and n[0] <= len(plan.keep) <= n[-1]:
            height, recovered, low, high = (float(np.interp(len(plan.keep), n, values)) for values in measured)
            expected.append(Prediction(str(probe), height, recovered, is_measured=True, ci_lo=low, ci_hi=high))
        elif total_score and plan.units == "nats":
            share = kept_score / total_score
            expected.append(Prediction(str(probe), float(nats[0] + share * (nats[-1] - nats[0])), share, False))
    return expected


def bytes_of(plan: Plan) -> tuple[int, int]:
    """Bytes of cache at the plan's context: with its mask, and with every head full."""
    return plan.kv_bytes, bytes_under(plan.layers, {}, context=plan.context)


def name_taken_away(view: View, file: str) -> str:
    """The name of a file of the Plan page: after the plan, and whether its mask was edited; of other pages the same."""
    if view.page != "plan":
        return file
    plan = re.sub(r"[^\w.-]+", "-", view.get("plan"), flags=re.ASCII).strip("-")
    return "-".join(part for part in (plan, "edited" * bool(view.get("keep")), file) if part)
