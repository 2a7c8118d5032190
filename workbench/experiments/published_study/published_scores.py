"""Scores of heads before and after training, and what they say: lock-in, sinks and damage, rankings beside each other.

A row has the number of `steps` after which it is scored, 0 for the published model, and the arm that was trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench.emergence.lock_in_table import lock_in
from workbench.emergence.rank_statistics import agreement, spearman, spearman_within
from workbench.experiments.conversion.study_folder import read
from workbench.experiments.published_study.published_settings import GATES
from workbench.experiments.published_study.study_rankings import by_kv_head
from workbench.experiments.published_study.study_work import StudyCall
from workbench.heads import KVHead, WorkbenchError

Table = Any  # a pandas DataFrame, whose own types know little of what its methods return
PUBLISHED = "as published"
_BY_HEAD = ("layer", "head", "kv_head", "kind", "window", "detector", "probe", "score", "half_a", "half_b")


def head_scores_table(call: StudyCall) -> pd.DataFrame:
    """Every score of every head: of rankings at each window, of patterns before and after each training.

    Columns: at_window (0 for scores that know none), seed, arm, steps, and those of head scores.
    """
    rows: list[dict[str, Any]] = []
    for seed in range(call.study.seeds):
        for window in call.study.windows:
            path = call.files.rankings(window, seed)
            if path.exists():
                rows += _ranking_rows(read(path), window, seed)
        path = call.files.heads(seed)
        of_patterns = read(path)["heads"] if path.exists() else []
        rows += [{"at_window": 0, "seed": seed, "arm": PUBLISHED, "steps": 0, **row} for row in of_patterns]
        window = call.study.windows[0]
        for steps in call.study.training.steps:
            for trained in sorted(call.files.trained(window, seed, "x", steps).parents[1].glob(f"*/{steps}.json")):
                names = {"at_window": window, "seed": seed, "arm": trained.parent.name, "steps": steps}
                rows += [{**names, **row} for row in read(trained)["heads"]]
    columns = ["at_window", "seed", "arm", "steps", *_BY_HEAD]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def lock_in_by_arm(scores: pd.DataFrame) -> pd.DataFrame:
    """How far heads' scores after a training are those of the published model, per arm, steps, detector and seed.

    Columns: arm, steps, detector, seed, n_heads, rho, rho_within, ceiling_within, lock_in, lock_in_within (the
    correlation over all heads and within layers, over its noise ceiling), amplitude.
    """
    rows: list[dict[str, Any]] = []
    trained: Table = scores[scores["steps"] > 0]
    for (arm, steps, detector, seed), after in trained.groupby(["arm", "steps", "detector", "seed"], sort=False):
        window = int(after["at_window"].iloc[0]) if detector == GATES else 0
        before: Table = scores[(scores["steps"] == 0) & (scores["detector"] == detector) & (scores["seed"] == seed)]
        before = before[before["at_window"] == window]
        if before.empty:
            continue
        both = pd.concat([_checkpoint(before, "before", 0), _checkpoint(after, "after", int(steps))])
        try:
            row = lock_in(both, against="before").set_index("ckpt").loc["after"]
        except WorkbenchError:
            continue
        names = ("n_heads", "rho", "rho_within", "ceiling_within", "lock_in", "lock_in_within", "amplitude")
        rows.append(
            {"arm": arm, "steps": steps, "detector": detector, "seed": seed, **{name: row[name] for name in names}}
        )
    return pd.DataFrame(rows)


def sink_damage(call: StudyCall, heads: dict[int, tuple[KVHead, ...]]) -> pd.DataFrame:
    """Rank correlation of heads' sink scores with what windowing them costs, per window and seed.

    Columns: window, seed, damage (`window_gates`, `first_order`), n_heads, rho, rho_within.
    """
    rows: list[dict[str, Any]] = []
    for window, of_window in heads.items():
        for seed in range(call.study.seeds):
            ranked, scored = call.files.rankings(window, seed), call.files.heads(seed)
            if not (ranked.exists() and scored.exists()):
                continue
            sinks = by_kv_head(read(scored)["heads"], "sink", of_window)
            by_method = read(ranked)["rankings"]
            layer = np.array([head.layer for head in of_window])
            for damage in (GATES, "first_order"):
                if "scores" not in by_method.get(damage, {}):
                    continue
                cost = np.array(by_method[damage]["scores"])
                rows.append(
                    {
                        "window": window,
                        "seed": seed,
                        "damage": damage,
                        "n_heads": int((~np.isnan(sinks)).sum()),
                        "rho": spearman(sinks, cost),
                        "rho_within": spearman_within(sinks, cost, layer),
                    }
                )
    return pd.DataFrame(rows)


def alignment(call: StudyCall) -> dict[str, float] | None:
    """How far restoring one head at a time ranks heads alike before and after a short alignment; None if not done."""
    path = call.files.rankings(call.study.windows[0], 0).with_name("aligned.json")
    if not path.exists():
        return None
    document = read(path)
    before, after = (
        np.array(document["rankings"][method]["scores"]) for method in ("restore_one", "restore_one_aligned")
    )
    both = agreement(before, after, np.array([layer for layer, _ in document["heads"]]))
    evidence = document["rankings"]["restore_one_aligned"]["evidence"]
    return {"n_heads": both.n, "rho": both.rho, "rho_within": both.rho_within, "jaccard": both.jaccard, **evidence}


def _ranking_rows(document: dict[str, Any], window: int, seed: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for method, ranking in document["rankings"].items():
        halves = ranking.get("halves")
        for i, (layer, kv_head) in enumerate(document["heads"]):
            if "scores" in ranking:
                of_halves = [None, None] if halves is None else [half[i] for half in halves]
                rows.append(
                    {
                        "at_window": window,
                        "seed": seed,
                        "arm": PUBLISHED,
                        "steps": 0,
                        "layer": layer,
                        "head": kv_head,
                        "kv_head": kv_head,
                        "kind": "full",
                        "window": None,
                        "detector": method,
                        "probe": "ranked",
                        "score": ranking["scores"][i],
                        **dict(zip(("half_a", "half_b"), of_halves, strict=True)),
                    }
                )
    return rows


def _checkpoint(rows: pd.DataFrame, name: str, step: int) -> pd.DataFrame:
    """Rows of head scores as those of a checkpoint of a run."""
    return rows.assign(
        ckpt=name, stage=pd.NA, branch=pd.NA, step=step, step_total=step, tokens=pd.NA, version=0, probe_digest=""
    )
