"""DuoAttention's gates: trained to leave the final hidden state as it is, with a price on every open gate.

1. One gate per key/value head, 1 at first, cut off to [0, 1] after each step. Attention is mixed as in
   `hooks.interventions.gates`.
2. Loss: mean over the hidden dimensions of (h_full − h_mixed)² behind the final norm, averaged over the answer rows,
   plus a price times the mean gate.
3. AdamW at 0.02 without weight decay; the rate rises over the first fifth of the steps and falls over the last.

Reference:
    Xiao et al. 2024, DuoAttention, section 2.3; mit-han-lab/duo-attention, duo_attn/train.py: price 0.05, 2000 steps of
    one sequence on synthetic passkeys. Here each step takes the probe's next batch, and there are 200 steps by default.
    `duo_gates_annealed` is ours: at their price the gates of small and of grouped-query models stay open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.heads import WorkbenchError
from workbench.hooks.interventions.gates import gated
from workbench.hooks.interventions.windows import intervened_output
from workbench.hooks.recording.cells import Sequences
from workbench.hooks.recording.forward_pass import batch_of, logits_of
from workbench.hooks.taps.eager import handling
from workbench.planning.answer_loss import answer_batches
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.registry import GATE_STEPS, Ranking

PRICE, RATE = 0.05, 0.02
# Of the price's logarithm: it can grow a hundredfold in the first half of the steps.
_ANNEALING = 12.0


def duo_gates(game: Game, *, steps: int = GATE_STEPS, price: float = PRICE) -> Ranking:
    """The gates after training; equal ones, as saturated ones are, in random order.

    Raises:
        WorkbenchError: if steps < 1, or the model has no output embedding to read the final hidden state from.
    """
    gates = _trained_gates(game, steps, lambda _: price)[-1]
    jitter = np.random.default_rng(game.seed).uniform(0, 1e-6, len(gates))
    evidence = {"price": price, "mean_gate": float(gates.mean()), "share_above_half": float((gates > 0.5).mean())}
    return Ranking("duo_gates", "gate", game.heads, gates + jitter, evidence=evidence)


def duo_gates_annealed(game: Game, *, steps: int = GATE_STEPS, budget: float = 0.25) -> Ranking:
    """The mean gate over a training in which the price rises until the gates' mean is the budget, and falls below it.

    Raises:
        WorkbenchError: if steps < 1, the budget is no share, or the model has no output embedding.
    """
    if not 0 < budget < 1:
        raise WorkbenchError(f"budget is {budget}; expected a share between 0 and 1")
    price = PRICE

    def next_price(gates: Float[Tensor, " n_kv"]) -> float:
        nonlocal price
        price *= math.exp(_ANNEALING / steps * (float(gates.mean()) - budget))
        return price

    path = _trained_gates(game, steps, next_price)
    evidence = {"price": price, "mean_gate": float(path[-1].mean())}
    return Ranking("duo_gates_annealed", "gate", game.heads, path.mean(0), evidence=evidence)


@dataclass(frozen=True, slots=True)
class _Target:
    """A batch and its answer rows, with the full model's final hidden state there.

    `rows`: the distinct answer rows. `answers`: each answer as (sequence, index into `rows`).
    """

    batch: Sequences
    rows: Int[Tensor, " n_rows"]
    answers: Int[Tensor, "n_answers 2"]
    full: Float[Tensor, "n_answers d_model"]


def _trained_gates(
    game: Game, steps: int, price: Callable[[Float[Tensor, " n_kv"]], float]
) -> Float[np.ndarray, "steps n_kv"]:
    """The gates after each step, cut off to [0, 1]."""
    if steps < 1:
        raise WorkbenchError(f"steps is {steps}; expected at least 1")
    targets = _targets(game)
    gates = torch.ones(1, len(game.heads), device=game.m.device, requires_grad=True)
    optimiser = torch.optim.AdamW([gates], lr=RATE, weight_decay=0)
    path: list[np.ndarray] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * _rate_scale(step, steps)
        target = targets[step % len(targets)]
        optimiser.zero_grad()
        with gated(game.m, gates, game.to):
            mixed = _final_hidden(game, target.batch, target.rows)[target.answers[:, 0], target.answers[:, 1]]
            loss = (target.full - mixed).pow(2).mean() + price(gates.detach()[0]) * gates.abs().mean()
            loss.backward()
        optimiser.step()
        with torch.no_grad():
            gates.clamp_(0, 1)
        path.append(rearrange(gates.detach().double().cpu().numpy().copy(), "1 n -> n"))
    return np.stack(path)


def _rate_scale(step: int, steps: int) -> float:
    fifth = max(1, steps // 5)
    return min(1.0, max((step + 1) / fifth, 0.1), max((steps - step) / fifth, 0.1))


def _targets(game: Game) -> Sequence[_Target]:
    targets: list[_Target] = []
    for probe in answer_batches(game.probe):
        batch = batch_of(game.m.model, probe)
        assert batch.answers is not None
        sequence, row = batch.answers.unbind(-1)
        rows = torch.unique(row)
        answers = torch.stack([sequence, torch.searchsorted(rows, row.contiguous())], -1)
        with torch.no_grad(), handling(game.m.model, lambda call: intervened_output(call, game.m.interventions)):
            full = _final_hidden(game, batch, rows)[answers[:, 0], answers[:, 1]]
        targets.append(_Target(batch, rows, answers, full))
    return targets


def _final_hidden(game: Game, batch: Sequences, rows: Int[Tensor, " n_rows"]) -> Float[Tensor, "b n_rows d_model"]:
    """The input of the output embedding on some rows: the residual stream behind the final norm."""
    unembedding = game.m.model.get_output_embeddings()
    if not isinstance(unembedding, nn.Module):
        raise WorkbenchError(
            f"{type(game.m.model).__name__} has no output embedding, before which the final hidden state stands; use "
            "window_gates"
        )
    inputs: list[Tensor] = []
    handle = unembedding.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        logits_of(game.m.model, batch, rows, announce=lambda _: None)
    finally:
        handle.remove()
    hidden = inputs[-1].float()
    return hidden if hidden.shape[1] == len(rows) else hidden[:, rows]
