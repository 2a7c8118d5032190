"""Heads ranked by their attention pattern: one forward pass, no evidence of what the pattern is good for.

A key/value head has the largest score of its group's query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np
import torch
from einops import reduce

from workbench.detectors import all_detectors, score
from workbench.kernels import Far
from workbench.planning.answer_loss import answer_batches
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.registry import Ranking
from workbench.probes import Probe, part


def prior(detector: str) -> Callable[[Game], Ranking]:
    """A detector's score on the game's probe; 0 for heads that have none."""

    def rank(game: Game) -> Ranking:
        """A detector's score on the game's probe."""
        table = score(game.m, [detector], probes=game.probe, seed=game.seed)
        softmax = table[table.kind != "linear"]
        best = softmax.groupby(["layer", "kv_head"]).score.max()
        scores = np.nan_to_num(np.array([best[tuple(head)] for head in game.heads], dtype=np.float64))
        return Ranking(detector, all_detectors()[detector].units, game.heads, scores)

    return rank


def far_mass(game: Game) -> Ranking:
    """Attention mass beyond sinks and window on the answer rows. No detector: those do not know the window."""
    far = Far(game.limits.window, game.limits.sink)
    measured = [
        game.m.record(p, {"far_mass"}, rows=_answer_rows(p), far=far)["far_mass"]
        for batch in answer_batches(game.probe)
        for p in _with_same_rows(batch)
    ]
    total, rows = (torch.cat([getattr(x, name) for x in measured]) for name in ("total", "rows"))
    by_head = (total / rows).nanmean(0).nan_to_num(0)
    columns = {
        info.index: reduce(by_head[layer_slot, : info.n_heads], "(kv group) -> kv", "max", kv=info.n_kv_heads)
        for layer_slot, info in enumerate(game.m.layers)
        if info.mixer == "softmax"
    }
    scores = torch.stack([columns[head.layer][head.kv_head] for head in game.heads])
    return Ranking("far_mass", "probability", game.heads, scores.double().numpy())


def _with_same_rows(probe: Probe) -> Iterator[Probe]:
    """The probe in runs of sequences that have answers at the same rows, without sequences that have none."""
    rows = [tuple(_answer_rows(part(probe, i, i + 1)).tolist()) for i in range(len(probe.tokens))]
    for shared, members in groupby(range(len(rows)), key=lambda i: rows[i]):
        run = list(members)
        if shared:
            yield part(probe, run[0], run[-1] + 1)


def _answer_rows(probe: Probe) -> torch.Tensor:
    assert probe.answer_rows is not None
    return torch.unique(probe.answer_rows[:, 1])
