"""Every way of ranking key/value heads by their need for the whole context, under one signature.

Scores are in the units each method names, higher for heads to keep. Only `window_gates` sums to the loss of windowing
everything; `leave_one_windowed` misses heads that stand in for each other, `restore_one` those that only work together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from workbench.heads import Head, KVHead, WorkbenchError
from workbench.kernels import Far
from workbench.planning.game import Game
from workbench.planning.integrated import gate_gradients, integrate


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores of every key/value head by one method; `evidence`: numbers that say how far to trust them.

    `per_sequence`: the scores on each sequence that has an answer, where the method has them.
    """

    method: str
    units: str
    heads: tuple[KVHead, ...]
    scores: Float[np.ndarray, " n_kv"]
    per_sequence: Float[np.ndarray, "n_seq n_kv"] | None = None
    evidence: dict[str, float] = field(default_factory=dict)

    @property
    def order(self) -> list[KVHead]:
        """The heads, those to keep first; equal scores in order of layer and head."""
        return [self.heads[i] for i in np.argsort(-self.scores, kind="stable")]


Method = Callable[[Game], Ranking]


def integrated(game: Game, *, nodes: int = 8) -> Ranking:
    """Integrated window gates; see `window_gates`."""
    found = integrate(game, nodes=nodes)
    evidence = {"completeness_error": found.completeness_error, "full": found.full, "windowed": found.windowed}
    return Ranking("window_gates", "nats", found.heads, found.scores, found.per_sequence, evidence)


def leave_one_windowed(game: Game) -> Ranking:
    """L(only this head windowed) − L(full)."""
    full = game.nats()
    rows = np.stack([game.nats([head]) - full for head in game.heads], -1)
    return Ranking("leave_one_windowed", "nats", game.heads, rows.mean(0), rows)


def restore_one(game: Game) -> Ranking:
    """L(all windowed) − L(all but this head windowed)."""
    windowed = game.nats(game.heads)
    rows = np.stack([windowed - game.without([head]) for head in game.heads], -1)
    return Ranking("restore_one", "nats", game.heads, rows.mean(0), rows)


def greedy(game: Game) -> Ranking:
    """Restore the head that helps most, then the next; the score is minus the place in that order."""
    kept: list[KVHead] = []
    while len(kept) < len(game.heads):
        rest = [head for head in game.heads if head not in kept]
        kept.append(min(rest, key=lambda head: float(game.without([*kept, head]).mean())))
    scores = np.array([-float(kept.index(head)) for head in game.heads])
    return Ranking("greedy", "rank", game.heads, scores)


def first_order(game: Game) -> Ranking:
    """−dL/da of the head's gate at the full model: one backward pass, blind to heads that stand in for each other."""
    rows = [-gate_gradients(game, piece, 1.0)[piece.counted.cpu()] for piece in game.pieces]
    per_sequence = torch.cat(rows).numpy()
    return Ranking("first_order", "nats", game.heads, per_sequence.mean(0), per_sequence)


def far_mass(game: Game) -> Ranking:
    """Attention beyond sinks and window on the answer rows, the most of the group's query heads."""
    answers = game.probe.answer_rows
    assert answers is not None
    rows = torch.unique(answers[:, 1])
    far = Far(game.limits.window, game.limits.sink)
    measured = game.m.record(game.probe, {"far_mass"}, rows=rows, far=far)["far_mass"]
    by_head = (measured.total / measured.rows).nanmean(0).nan_to_num(0)
    place = {(info.index, info.mixer): i for i, info in enumerate(game.m.layers)}
    infos = {info.index: info for info in game.m.layers if info.mixer == "softmax"}

    def most(head: KVHead) -> float:
        size = infos[head.layer].n_heads // infos[head.layer].n_kv_heads
        group = slice(head.kv_head * size, (head.kv_head + 1) * size)
        return float(by_head[place[head.layer, "softmax"], group].max())

    return Ranking("far_mass", "probability", game.heads, np.array([most(head) for head in game.heads]))


def ablation(how: str) -> Method:
    """L(the head's group of query heads ablated) − L(full), which is about more than the far context."""

    def rank(game: Game) -> Ranking:
        sizes = {i.index: i.n_heads // i.n_kv_heads for i in game.m.layers if i.mixer == "softmax"}
        full = game.nats()
        columns: list[np.ndarray] = []
        for layer, kv_head in game.heads:
            size = sizes[layer]
            with game.m.ablate([Head(layer, kv_head * size + g) for g in range(size)], how, mixer="softmax"):
                columns.append(game.nats() - full)
        rows = np.stack(columns, -1)
        return Ranking(f"ablate_{how}", "nats", game.heads, rows.mean(0), rows)

    return rank


def random(game: Game) -> Ranking:
    """Any order."""
    scores = np.random.default_rng(game.seed).random(len(game.heads))
    return Ranking("random", "none", game.heads, scores)


METHODS: dict[str, Method] = {
    "window_gates": integrated,
    "leave_one_windowed": leave_one_windowed,
    "restore_one": restore_one,
    "greedy": greedy,
    "first_order": first_order,
    "far_mass": far_mass,
    "ablate_zero": ablation("zero"),
    "ablate_mean": ablation("mean"),
    "ablate_uniform": ablation("uniform"),
    "random": random,
}


def rank(game: Game, method: str) -> Ranking:
    """The ranking of a model's heads by a method of that name.

    Raises:
        WorkbenchError: if there is none.
    """
    if method not in METHODS:
        raise WorkbenchError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    return METHODS[method](game)
