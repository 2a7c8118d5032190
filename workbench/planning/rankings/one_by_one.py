"""Heads ranked by changing one at a time: n passes for n heads, blind to what several heads do together.

`leave_one_windowed` misses heads that stand in for each other, `restore_one` those that only work together. Ablations
measure all that a head does and not only its far context. "Windowed" is "linear" where the game's heads become linear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from workbench.heads import Head, KVHead
from workbench.hooks.recording.needs import Answers
from workbench.planning.answer_loss import answer_batches
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.registry import Ranking


def leave_one_windowed(game: Game) -> Ranking:
    """L(only this head windowed) − L(full)."""
    full = game.nats()
    rows = np.stack([game.nats([head]) - full for head in game.heads], -1)
    return Ranking("leave_one_windowed", "nats", game.heads, rows.mean(0), rows)


def restore_one(game: Game) -> Ranking:
    """L(all windowed) − L(all but this head windowed)."""
    converted = game.nats(game.heads)
    rows = np.stack([converted - game.without([head]) for head in game.heads], -1)
    return Ranking("restore_one", "nats", game.heads, rows.mean(0), rows)


def greedy(game: Game, *, picks: int | None = None) -> Ranking:
    """Restore the head that helps most, then the next; the score is minus the head's number in that order.

    After `picks` heads the others follow in the order of the last round; None picks every head.
    """
    picked: list[KVHead] = []
    n_picks = len(game.heads) if picks is None else min(picks, len(game.heads))
    while len(picked) < len(game.heads):
        rest = [head for head in game.heads if head not in picked]
        nats = {head: float(game.without([*picked, head]).mean()) for head in rest}
        best_first = sorted(rest, key=lambda head: nats[head])
        picked += best_first[:1] if len(picked) + 1 < n_picks else best_first
    scores = np.array([-float(picked.index(head)) for head in game.heads])
    return Ranking("greedy", "rank", game.heads, scores)


def ablation(how: str) -> Callable[[Game], Ranking]:
    """L(the head's group of query heads ablated) − L(full), of the ablation `zero`, `mean` or `uniform`."""

    def rank(game: Game) -> Ranking:
        """L(the head's group of query heads ablated) − L(full)."""
        full = game.nats()
        columns: list[np.ndarray] = []
        for head in game.heads:
            with game.m.ablate(_group(game, head), how, mixer="softmax"):
                columns.append(game.nats() - full)
        rows = np.stack(columns, -1)
        return Ranking(f"ablate_{how}", "nats", game.heads, rows.mean(0), rows)

    return rank


def ablate_accuracy(game: Game) -> Ranking:
    """Share of right answers lost when the head's group of query heads is ablated to zero; ties by the loss.

    Retrieval-Aware Distillation (Bick et al. 2026, arXiv 2602.11374) keeps the heads that this finds on key-value
    retrieval; here on the game's probe.
    """
    right, nats = _right_and_nats(game)
    columns: list[np.ndarray] = []
    rises: list[float] = []
    for head in game.heads:
        with game.m.ablate(_group(game, head), "zero", mixer="softmax"):
            right_without, nats_without = _right_and_nats(game)
        columns.append(right - right_without)
        rises.append(float((nats_without - nats).mean()))
    # Far less than one answer of one sequence: it orders heads that cost equally many answers and no others.
    tie = np.array(rises) / (1e-9 + np.abs(rises).max()) * 1e-6
    rows = np.stack(columns, -1) + tie
    return Ranking("ablate_accuracy", "share of answers", game.heads, rows.mean(0), rows)


def _right_and_nats(game: Game) -> tuple[np.ndarray, np.ndarray]:
    """The share of right answers and the mean loss of each sequence that has an answer, under what is in force."""
    batches = [game.m.answers(probe) for probe in answer_batches(game.probe)]
    right, nats, counts = (
        torch.cat([_sums_by_sequence(a, values(a)) for a in batches]).numpy()
        for values in (lambda a: a.is_right, lambda a: a.loss_nats, lambda a: torch.ones_like(a.loss_nats))
    )
    return right / counts, nats / counts


def _group(game: Game, head: KVHead) -> list[Head]:
    """The query heads that share this key/value head."""
    info = next(i for i in game.m.layers if i.index == head.layer and i.mixer == "softmax")
    return info.query_heads(head.kv_head)


def _sums_by_sequence(answers: Answers, values: Shaped[Tensor, " n_rows"]) -> Float[Tensor, " n_seq"]:
    """The sum of a value of each answer, over the answers of each sequence that has one."""
    _, sequence = torch.unique(answers.at[:, 0], return_inverse=True)
    return torch.zeros(int(sequence.max()) + 1, dtype=torch.float64).index_add_(0, sequence, values.double())
