"""Rankings by chance, which others are compared with: any order, or any order within each layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.heads import KVHead
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.registry import Ranking
from workbench.planning.rankings.window_gates import integrated


def random(game: Game) -> Ranking:
    """Any order."""
    return random_order(game.heads, game.seed)


def random_in_layer(game: Game) -> Ranking:
    """As many heads of each layer as `window_gates` keeps, but any of them."""
    return shuffled_in_layers(integrated(game), game.seed)


def random_order(heads: Sequence[KVHead], seed: int) -> Ranking:
    """Random scores."""
    return Ranking("random", "none", tuple(heads), np.random.default_rng(seed).random(len(heads)))


def shuffled_in_layers(ranking: Ranking, seed: int) -> Ranking:
    """A ranking with its scores shuffled within each layer: the first n heads are as many of each layer as before."""
    rng = np.random.default_rng(seed)
    scores, layers = ranking.scores.copy(), np.array([head.layer for head in ranking.heads])
    for layer in np.unique(layers):
        in_layer = np.flatnonzero(layers == layer)
        scores[in_layer] = scores[rng.permutation(in_layer)]
    return Ranking("random_in_layer", ranking.units, ranking.heads, scores)
