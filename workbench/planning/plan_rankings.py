"""The rankings of a plan and of its baselines, each a piece that is finished once, and the baselines' curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.planning.keep_curves import mean_curve, order_of
from workbench.planning.plan_work import RANDOM_ORDERS, PlanWork
from workbench.planning.rankings.chance import random_order, shuffled_in_layers
from workbench.planning.rankings.registry import Ranking, rank
from workbench.planning.rankings.window_gates import integrated
from workbench.store.plan_file import CurvePoint


def ranked(work: PlanWork, method: str) -> Ranking:
    """The ranking by a method, with the nodes that the effort pays for.

    Raises:
        WorkbenchError: for one that is not available for this model or probe.
    """
    nodes, pieces = work.nodes(), work.game.pieces
    if method == work.method and nodes is not None:
        ranking = integrated(work.game, nodes=nodes)  # its nodes are pieces
        pieces.get(f"ranking by {method} is done", lambda: True)
        return ranking
    as_json = pieces.get(f"ranking by {method} is done", lambda: _as_json(rank(work.game, method, progress=False)))
    per_sequence, margin = as_json["per_sequence"], as_json["margin"]
    return Ranking(
        as_json["method"],
        as_json["units"],
        work.game.heads,
        np.array(as_json["scores"]),
        None if per_sequence is None else np.array(per_sequence),
        as_json["evidence"],
        None if margin is None else np.array(margin),
    )


def baseline_curve(work: PlanWork, method: str, ranking: Ranking, *, counts: Sequence[int]) -> list[CurvePoint]:
    """The curve of another method than the plan's `ranking`; of random orders, their mean."""
    seeds = range(work.evaluation.seed, work.evaluation.seed + RANDOM_ORDERS)
    if method == "random":
        rankings = [random_order(work.game.heads, seed) for seed in seeds]
    elif method == "random_in_layer":
        # The order of whole layers does not depend on how their heads are shuffled.
        rankings = [shuffled_in_layers(ranking, seed) for seed in seeds if work.unit == "head"]
    else:
        rankings = [ranked(work, method)]
    orders = [order_of(r, work.unit) for r in rankings]
    if not orders:
        return []
    return mean_curve(method, orders, work.held_out, counts=counts, context=work.evaluation.context)


def _as_json(ranking: Ranking) -> dict[str, Any]:
    per_sequence, margin = ranking.per_sequence, ranking.margin
    return {
        "method": ranking.method,
        "units": ranking.units,
        "scores": ranking.scores.tolist(),
        "per_sequence": None if per_sequence is None else per_sequence.tolist(),
        "evidence": ranking.evidence,
        "margin": None if margin is None else margin.tolist(),
    }
