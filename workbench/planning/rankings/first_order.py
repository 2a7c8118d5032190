"""Heads ranked by the slope of the loss at one end of the gates' path: one backward pass, and only a first guess.

At the full model heads that stand in for each other hide one another, at the windowed one those that only work
together; and against the model itself (`objective="kl"`) the slope at the full model is zero.
"""

from __future__ import annotations

import torch

from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.ranking import Ranking
from workbench.planning.rankings.window_gates import gate_gradients


def first_order(game: Game) -> Ranking:
    """−dL/da of the head's gate at the full model."""
    return _slope(game, "first_order", 1.0)


def gradient_at_zero(game: Game) -> Ranking:
    """−dL/da of the head's gate with every head windowed."""
    return _slope(game, "gradient_at_zero", 0.0)


def _slope(game: Game, method: str, place: float) -> Ranking:
    rows = [-gate_gradients(game, piece, place)[piece.counted.cpu()] for piece in game.pieces]
    per_sequence = torch.cat(rows).numpy()
    return Ranking(method, "nats", game.heads, per_sequence.mean(0), per_sequence)
