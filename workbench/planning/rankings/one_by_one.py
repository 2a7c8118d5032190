"""Heads ranked by changing one at a time: n passes for n heads, blind to what several heads do together.

`leave_one_windowed` misses heads that stand in for each other, `restore_one` those that only work together. Ablations
measure all that a head does and not only its far context. "Windowed" is "linear" where the game's heads become linear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workbench.heads import Head, KVHead
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
