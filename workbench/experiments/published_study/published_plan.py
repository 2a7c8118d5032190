"""The plan that a study makes of its gates: the main budget's heads, every ranking's curve, the verdict by length.

It is the plan of the first seed, since another seed's texts choose other heads; the curves are means over all seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.detectors.bootstrap import bootstrap
from workbench.experiments.conversion.study_folder import read
from workbench.experiments.published_study.arm_answers import task_of
from workbench.experiments.published_study.judged_texts import lengths_of_study
from workbench.experiments.published_study.published_results import PublishedResults
from workbench.experiments.published_study.published_settings import GATES
from workbench.heads import KVHead
from workbench.planning.verdict_over_length import TOLERANCE
from workbench.probes.token_ids import context
from workbench.store.cache_sizes import saved_under
from workbench.store.conversions import Window
from workbench.store.length_verdict import LengthVerdict, VerdictCell
from workbench.store.plan_file import CurvePoint, Plan, RankedHead

Table = Any  # a pandas DataFrame, whose own types know little of what its methods return


def plan_of_study(results: PublishedResults, window: int) -> Plan | None:
    """The plan at a window; None before the first seed's heads are ranked."""
    study, path = results.study, results.call.files.rankings(window, 0)
    if not path.exists():
        return None
    ranked = read(path)
    gates = ranked["rankings"][GATES]
    if "scores" not in gates:
        return None
    heads, scores = [KVHead(*head) for head in ranked["heads"]], np.array(gates["scores"])
    per_sequence, margin = np.array(gates["per_sequence"]), np.array(gates["margin"])
    low, high = bootstrap(per_sequence, np.ones(per_sequence.shape, dtype=bool), seed=0)
    order = np.argsort(-scores, kind="stable")
    n_main = study.n_kept(study.main, len(heads))
    counted = context(results.m) or max(lengths_of_study(study, results.m, window))
    return Plan(
        model=results.m.name,
        layers=results.m.layers,
        window=window,
        sink=study.sink,
        unit="head",
        method=GATES,
        units=gates["units"],
        probe=ranked["probe"],
        probe_digest=ranked["digest"],
        seed=0,
        context=counted,
        keep=tuple(sorted(heads[i] for i in order[:n_main])),
        ranking=tuple(
            RankedHead(
                heads[i].layer,
                heads[i].kv_head,
                float(scores[i]),
                float(low[i] - margin[i]),
                float(high[i] + margin[i]),
            )
            for i in order
        ),
        curve=tuple(_curve(results, window, heads, counted)),
        evidence=gates["evidence"],
        remarks=(
            f"The heads are those of the first of {study.seeds} seeds; the curves are means over all of them, at "
            f"{lengths_of_study(study, results.m, window)[0]:,} tokens.",
            *results.remarks,
        ),
        verdict=_verdict(results, window, n_main),
    )


def _curve(results: PublishedResults, window: int, heads: list[KVHead], counted: int) -> list[CurvePoint]:
    cells: Table = results.cells
    first = lengths_of_study(results.study, results.m, window)[0]
    at = cells[(cells.window == window) & (cells.length == first) & (cells.steps == 0) & (cells.left_out == "")]
    limits = Window(window, results.study.sink)
    points: list[CurvePoint] = []
    for method in (*results.study.rankings, "random", "random_in_layer"):
        for row in at[at.arm.isin([method, "all", "none"]) & (at.to == "window")].to_dict("records"):
            # Sizes of heads are equal within a layer, and nearly always between layers.
            converted = dict.fromkeys(heads[row["n_kept"] :], limits)
            points.append(
                CurvePoint(
                    method,
                    row["part"],
                    int(row["n_kept"]),
                    row["nats"],
                    row["recovered"],
                    row["right"],
                    saved_under(results.m.layers, converted, context=counted),
                    row["recovered_lo"],
                    row["recovered_hi"],
                )
            )
    return points


def _verdict(results: PublishedResults, window: int, n_main: int) -> LengthVerdict | None:
    """The model itself, the gates' heads and no head full, by length."""
    cells: Table = results.cells
    at = cells[(cells.window == window) & (cells.steps == 0)]
    arms = {"all": "full", GATES: "planned", "none": "windowed"}
    rows = at[at.arm.isin(["all", "none"]) | ((at.arm == GATES) & (at.n_kept == n_main))]
    if GATES not in set(rows.arm):
        return None
    judged = [
        VerdictCell(
            task=row["part"],
            length=int(row["length"]),
            arm=arms[row["arm"]],
            **{f"{n}{end}": row[f"{n}{end}"] for n in ("right", "nats", "lost") for end in ("", "_lo", "_hi")},
            n_questions=int(row["n_questions"]),
            n_texts=int(row["n_texts"]),
            measure=results.answers.measures.get(task_of(row["part"]), "nats"),
            left_out=row["left_out"],
        )
        for row in rows.to_dict("records")
        if not math.isnan(row["nats"])
    ]
    return LengthVerdict(TOLERANCE, context(results.m) or 0, tuple(judged))
