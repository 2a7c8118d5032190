"""The rankings of a seed: gates, and beside them what costs a pass or two; scores of patterns of attention.

The slope at the model itself (`first_order`) is a node of the gates' path. Induction is that on repeated random tokens;
retrieval, far mass and output error are on the texts that the gates are on, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.detectors import score
from workbench.experiments.published_study.published_settings import GATES, PublishedStudy
from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.adaptive_nodes import AdaptiveNodes
from workbench.planning.rankings.registry import Ranking, rank
from workbench.planning.rankings.window_gates import integrated
from workbench.probes import Probe
from workbench.probes.token_ids import context
from workbench.store.finished_pieces import Pieces

INDUCTION = "induction"
# Detectors whose scores are compared before and after training, and the probe of each.
PATTERNS = {"induction": "repeats", "previous_token": "repeats", "retrieval": "ranked", "sink": "repeats"}
_COMPLETENESS = 0.05
_REPEATED = 50
# Sequences of repeats, and their tokens at most.
N_REPEATS, N_REPEATED = 8, 2 * _REPEATED + 1
_COLUMNS = ("layer", "head", "kv_head", "kind", "window", "detector", "probe", "score", "half_a", "half_b")


def repeats_of(m: HookedModel, seed: int) -> str:
    """Repeated random tokens of a seed, in the notation of probes."""
    longest = context(m)
    n = _REPEATED if longest is None else min(_REPEATED, (longest - 1) // 2)
    return f"repeats:n={n},n_sequences={N_REPEATS},seed={40_000 + seed}"


def rankings_of_seed(
    m: HookedModel, study: PublishedStudy, probe: Probe, *, window: int, seed: int, pieces: Pieces
) -> dict[str, Any]:
    """Every ranking by name: scores in the order of `heads`, or why there are none. `pieces` keep its parts."""
    game = Game(m, probe, window, sink=study.sink, seed=seed, pieces=pieces)
    # The gates first: another ranking reads their last node.
    names = sorted(study.rankings, key=lambda name: name != GATES)
    of_methods = {
        name: pieces.get(f"ranking by {name}", lambda name=name: _ranked(game, study, name, seed)) for name in names
    }
    return {
        "probe": probe.name,
        "digest": probe.digest,
        "heads": [list(head) for head in game.heads],
        "rankings": {name: of_methods[name] for name in study.rankings},
    }


def gates_of(game: Game, study: PublishedStudy) -> Ranking:
    """Window gates with the nodes that a study pays for."""
    return integrated(game, nodes=AdaptiveNodes(study.nodes, _COMPLETENESS))


def head_rows(m: HookedModel, detectors: Sequence[str], probe: Probe | str, *, seed: int) -> list[dict[str, Any]]:
    """Rows of head scores, with those of each half of the sequences."""
    table = score(m, list(detectors), probes=[probe], seed=seed, progress=False)
    return [{name: _plain(row[name]) for name in _COLUMNS} for row in table.to_dict("records")]


def pattern_rows(m: HookedModel, ranked_on: Probe | None, *, seed: int) -> list[dict[str, Any]]:
    """Scores of every head by the detectors of `PATTERNS`; those that a model or a probe has not are left out."""
    rows: list[dict[str, Any]] = []
    for detector, name in PATTERNS.items():
        probe = repeats_of(m, seed) if name == "repeats" else ranked_on
        if probe is None:
            continue
        try:
            of_detector = head_rows(m, [detector], probe, seed=seed)
        except WorkbenchError:
            continue
        rows += [{**row, "probe": name} for row in of_detector]
    return rows


def gate_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """The gates as rows of head scores, a key/value head in the place of a head, with each half of the texts."""
    assert ranking.per_sequence is not None
    halves = [_mean(ranking.per_sequence[i::2]) for i in range(2)]
    return [
        {
            "layer": head.layer,
            "head": head.kv_head,
            "kv_head": head.kv_head,
            "kind": "full",
            "window": None,
            "detector": GATES,
            "probe": "ranked",
            "score": float(ranking.scores[i]),
            "half_a": float(halves[0][i]),
            "half_b": float(halves[1][i]),
        }
        for i, head in enumerate(ranking.heads)
    ]


def by_kv_head(rows: Sequence[dict[str, Any]], detector: str, heads: Sequence[KVHead]) -> np.ndarray:
    """A detector's scores of key/value heads: the largest of their query heads; NaN for those without."""
    table = pd.DataFrame([row for row in rows if row["detector"] == detector])
    if table.empty:
        return np.full(len(heads), np.nan)
    best = table.groupby(["layer", "kv_head"]).score.max()
    return np.array([best.get(tuple(head), np.nan) for head in heads], dtype=float)


def _ranked(game: Game, study: PublishedStudy, name: str, seed: int) -> dict[str, Any]:
    try:
        if name == GATES:
            ranking = gates_of(game, study)
        elif name == INDUCTION:
            rows = head_rows(game.m, [INDUCTION], repeats_of(game.m, seed), seed=seed)
            scores = np.nan_to_num(by_kv_head(rows, INDUCTION, game.heads))
            return {"units": "probability", "scores": scores.tolist(), "halves": None, "evidence": {}}
        else:
            ranking = rank(game, name, progress=False)
    except WorkbenchError as error:
        return {"problem": str(error)}
    halves = None
    if ranking.per_sequence is not None and len(ranking.per_sequence) > 1:
        halves = [_mean(ranking.per_sequence[i::2]).tolist() for i in range(2)]
    of_margin = None if ranking.margin is None else ranking.margin.tolist()
    per_sequence = None if ranking.per_sequence is None else np.round(ranking.per_sequence, 8).tolist()
    return {
        "units": ranking.units,
        "scores": ranking.scores.tolist(),
        "halves": halves,
        "evidence": ranking.evidence,
        "margin": of_margin,
        "per_sequence": per_sequence if name == GATES else None,
    }


def _mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(0) if len(rows) else np.full(rows.shape[1], np.nan)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and np.isnan(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
