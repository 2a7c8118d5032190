"""Heads ranked by their attention pattern alone: one forward pass, and no word on what the pattern is good for.

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
from workbench.planning.answer_loss import batches
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.ranking import Ranking
from workbench.probes import Probe, part


def prior(detector: str) -> Callable[[Game], Ranking]:
    """A detector's score on the game's probe; 0 for heads that have none."""

    def rank(game: Game) -> Ranking:
        table = score(game.m, [detector], probes=game.probe, seed=game.seed)
        softmax = table[table.kind != "linear"]
        best = softmax.groupby(["layer", "kv_head"]).score.max()
        scores = np.nan_to_num(np.array([best[tuple(head)] for head in game.heads], dtype=np.float64))
        return Ranking(detector, all_detectors()[detector].units, game.heads, scores)

    return rank


def far_mass(game: Game) -> Ranking:
    """Attention beyond sinks and window on the answer rows, of which detectors know nothing."""
    far = Far(game.limits.window, game.limits.sink)
    measured = [
        game.m.record(p, {"far_mass"}, rows=_rows(p), far=far)["far_mass"]
        for batch in batches(game.probe)
        for p in _alike(batch)
    ]
    total, rows = (torch.cat([getattr(x, name) for x in measured]) for name in ("total", "rows"))
    by_head = (total / rows).nanmean(0).nan_to_num(0)
    columns = [
        reduce(by_head[place, : info.n_heads], "(kv group) -> kv", "max", kv=info.n_kv_heads)
        for place, info in enumerate(game.m.layers)
        if info.mixer == "softmax"
    ]
    return Ranking("far_mass", "probability", game.heads, torch.cat(columns).double().numpy())


def _alike(probe: Probe) -> Iterator[Probe]:
    """The probe in runs of sequences that have their answers at the same rows, without those that have none."""
    rows = [tuple(_rows(part(probe, i, i + 1)).tolist()) for i in range(len(probe.tokens))]
    for shared, members in groupby(range(len(rows)), key=lambda i: rows[i]):
        run = list(members)
        if shared:
            yield part(probe, run[0], run[-1] + 1)


def _rows(probe: Probe) -> torch.Tensor:
    assert probe.answer_rows is not None
    return torch.unique(probe.answer_rows[:, 1])
