"""Gates trained together under a budget: hard-concrete, with an augmented Lagrangian that holds the share of open ones.

1. A gate per key/value head is a hard-concrete variable with a trained log α: it is exactly 0 or 1 in part of its draws
   and has a gradient elsewhere. Attention is mixed as in `hooks.interventions.gates`, each sequence with its own draw.
2. Loss: the game's objective plus λ₁ (p − t) + λ₂ (p − t)², where p is the mean probability that a gate is open and t
   falls from 1 to the budget over the first half of the steps. AdamW lowers the loss; λ₁ and λ₂ climb with the gap.
3. A head's score is its log α: the order in which heads would close.

Reference:
    Louizos et al. 2018, Learning Sparse Neural Networks through L0 Regularization, section 2.2 (β = 2/3, stretch from
    −0.1 to 1.1). The constraint on full against sliding-window heads: ConSA (arXiv 2606.18056), which trains the
    weights along with the gates; here the model's weights stay as they are, so that the gates rank the model itself.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.hooks.interventions.gates import gated
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.registry import GATE_STEPS, Ranking

_TEMPERATURE, _LOW, _HIGH = 2 / 3, -0.1, 1.1
_RATE, _DUAL_RATE = 0.1, 1.0
# An open gate at first: it is above a half in 98 of 100 draws.
_FIRST = 2.5


def joint_gates(game: Game, *, steps: int = GATE_STEPS, budget: float = 0.25) -> Ranking:
    """log α of each head's gate after training, higher for heads that stay full under the budget.

    Takes a forward and a backward pass of one batch per step.

    Raises:
        WorkbenchError: if steps < 1, or the budget is no share between 0 and 1.
    """
    if steps < 1:
        raise WorkbenchError(f"steps is {steps}; expected at least 1")
    if not 0 < budget < 1:
        raise WorkbenchError(f"budget is {budget}; expected a share between 0 and 1")
    log_alpha = torch.full((len(game.heads),), _FIRST, device=game.m.device, requires_grad=True)
    optimiser = torch.optim.AdamW([log_alpha], lr=_RATE, weight_decay=0)
    generator = torch.Generator().manual_seed(game.seed)
    linear = quadratic = 0.0
    for step in range(steps):
        batch = game.batches[step % len(game.batches)]
        target = 1 - (1 - budget) * min(1.0, 2 * (step + 1) / steps)
        optimiser.zero_grad()
        with gated(game.m, _drawn(log_alpha, len(batch.counted), generator), game.to):
            objective = batch.nats()[batch.counted].mean()
            gap = _probability_open(log_alpha).mean() - target
            (objective + linear * gap + quadratic * gap.square()).backward()
        optimiser.step()
        # The multipliers climb: what is above the target is priced higher, what is below it lower.
        linear += _DUAL_RATE * float(gap.detach())
        quadratic += _DUAL_RATE * float(gap.detach().square())
    scores = log_alpha.detach().double().cpu().numpy()
    is_open = float(_probability_open(log_alpha.detach()).mean())
    evidence = {"budget": budget, "mean_open": is_open, "price": linear}
    return Ranking("joint_gates", "log alpha", game.heads, np.asarray(scores), evidence=evidence)


def _drawn(log_alpha: Float[Tensor, " n_kv"], n: int, generator: torch.Generator) -> Float[Tensor, "n n_kv"]:
    """A draw of every gate for each sequence: stretched beyond [0, 1] and cut off there."""
    uniform = torch.rand(n, len(log_alpha), generator=generator).clamp(1e-6, 1 - 1e-6).to(log_alpha.device)
    concrete = ((uniform.logit() + log_alpha) / _TEMPERATURE).sigmoid()
    return (concrete * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _probability_open(log_alpha: Float[Tensor, " n_kv"]) -> Float[Tensor, " n_kv"]:
    """The probability that a draw is not exactly 0."""
    return (log_alpha - _TEMPERATURE * math.log(-_LOW / _HIGH)).sigmoid()
