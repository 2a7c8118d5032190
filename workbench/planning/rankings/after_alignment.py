"""Restoring one head after a short alignment: the converted model first learns to do without its heads.

1. With every head converted, the weights of the decoder layers are trained for some steps towards the model itself: KL
   divergence on the answer rows, AdamW. What any training would repair counts for no head after that.
2. A head's score is the divergence that restoring it alone removes from the aligned model.
3. The weights are put back.

Reference:
    Li et al. 2025, Distilling to Hybrid Attention Models via KL-Guided Layer Selection (arXiv 2512.20569): GA-S2 aligns
    an all-linear student, restores one layer at a time and keeps those whose return lowers the divergence most. It
    aligns hidden states as well and on generic text; here heads stand in for layers, and the probe for the text.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from workbench.heads import WorkbenchError
from workbench.hooks.interventions.gates import converted
from workbench.hooks.taps.layer_lists import blocks
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.registry import ALIGNMENT_STEPS, Ranking

RATE = 1e-4


def restore_one_aligned(game: Game, *, steps: int = ALIGNMENT_STEPS, rate: float = RATE) -> Ranking:
    """The divergence that restoring this head alone removes from the model that was aligned with every head converted.

    Takes a forward and a backward pass of one batch per step, n + 1 passes of the probe for n heads, and memory for a
    copy of the decoder layers' weights, their gradients and AdamW's two moments.

    Raises:
        WorkbenchError: if steps < 1, or the model has no decoder layers with weights that can be trained, as quantised
            models have none.
    """
    if steps < 1:
        raise WorkbenchError(f"steps is {steps}; expected at least 1")
    # The divergence from the model as it is now.
    towards = Game(game.m, game.probe, game.conversions(), objective="kl", seed=game.seed)
    before = float(towards.nats(towards.heads).mean())
    weights = _layer_weights(game)
    with _trained_and_put_back(game.m.model, weights):
        optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0)
        for step in range(steps):
            batch = towards.batches[step % len(towards.batches)]
            optimiser.zero_grad()
            with converted(game.m, towards.heads, towards.to):
                batch.nats()[batch.counted].mean().backward()
            optimiser.step()
        optimiser.zero_grad()
        none = towards.nats(towards.heads)
        rows = np.stack([none - towards.without([head]) for head in game.heads], -1)
    evidence = {"divergence_before": before, "divergence_aligned": float(none.mean())}
    return Ranking("restore_one_aligned", "nats", game.heads, rows.mean(0), rows, evidence)


def _layer_weights(game: Game) -> list[nn.Parameter]:
    weights = [p for _, block in blocks(game.m.model) for p in block.parameters() if p.is_floating_point()]
    if not weights:
        raise WorkbenchError(
            f"{game.m!r} has no decoder layers whose weights can be trained, which an alignment needs; use restore_one"
        )
    return list(dict.fromkeys(weights))


@contextmanager
def _trained_and_put_back(model: nn.Module, weights: list[nn.Parameter]) -> Generator[None]:
    """Inside the block these weights alone take gradients; behind it all are what they were, gradients included."""
    values = [(p, p.detach().clone()) for p in weights]
    states = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    trained = set(weights)
    try:
        for p, _, _ in states:
            p.requires_grad_(p in trained)
            p.grad = None
        yield
    finally:
        for p, value in values:
            with torch.no_grad():
                p.copy_(value)
        for p, takes_gradient, gradient in states:
            p.requires_grad_(takes_gradient)
            p.grad = gradient
