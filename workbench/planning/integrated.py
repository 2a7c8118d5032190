"""Integrated window gates: how much each key/value head's far context is worth, from m passes whatever their number.

1. Mix full and windowed attention by one gate for all heads, a from 0 (all windowed) to 1 (the model itself).
2. At m nodes of that path take the gradient of the loss for every head's own gate: one forward and one backward pass.
3. A head's score is minus the integral of its gradient. The scores sum to L(all windowed) − L(full), up to the error of
   the quadrature, which is measured and reported.

A redundant head shows at the windowed end of the path, a head that is only useful together with another at the full
end; leaving one out or putting one back sees only the one or the other.

Reference:
    Aumann and Shapley 1974, Values of Non-Atomic Games; Sundararajan et al. 2017, Axiomatic Attribution for Deep
    Networks, section 3. Here of the game of windowing heads, with Gauss-Legendre nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel
from workbench.hooks.gates import gated
from workbench.planning.game import Game
from workbench.planning.objectives import Objective, Piece
from workbench.probes import Probe

# From here on a batch keeps the inputs of its layers alone and computes them again in the backward pass.
_CHECKPOINTED_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class WindowGates:
    """The worth of every head's far context in nats per answer, positive where losing it costs.

    `per_sequence`: of each head on each sequence that has an answer; `scores`, their mean. `full`, `windowed`: the
    objective of the model itself and with every head windowed. `completeness_error`: |Σ scores − (windowed − full)|
    over |windowed − full|; NaN where there is no gap.
    """

    heads: tuple[KVHead, ...]
    per_sequence: Float[np.ndarray, "n_seq n_kv"]
    full: float
    windowed: float

    @property
    def scores(self) -> Float[np.ndarray, " n_kv"]:
        return self.per_sequence.mean(0)

    @property
    def completeness_error(self) -> float:
        gap = self.windowed - self.full
        return abs(float(self.scores.sum()) - gap) / abs(gap) if gap else float("nan")


def window_gates(
    m: HookedModel,
    probe: Probe,
    window: int,
    *,
    sink: int = 0,
    nodes: int = 8,
    objective: Objective = "loss",
    progress: Callable[[int, int], None] | None = None,
) -> WindowGates:
    """Score every key/value head of the model's softmax layers on a probe's answers.

    One forward and one backward pass per node and batch, and two forward passes for the ends; memory is O(tokens).

    Args:
        window, sink: what a restricted head still sees, in tokens.
        nodes: of the path; 3 are enough to rank.
        objective: `loss` of the answers, or `kl` from the model itself, which needs no right answers.
        progress: told (passes done, passes in all).

    Raises:
        WorkbenchError: if the probe has no answers, nodes < 1, or the window is no window.
    """
    return integrate(Game(m, probe, window, sink=sink, objective=objective), nodes=nodes, progress=progress)


def integrate(game: Game, *, nodes: int = 8, progress: Callable[[int, int], None] | None = None) -> WindowGates:
    """`window_gates` of a game."""
    if nodes < 1:
        raise WorkbenchError(f"nodes is {nodes}; expected at least 1")
    places, weights = np.polynomial.legendre.leggauss(nodes)
    per_sequence: list[Tensor] = []
    for done, piece in enumerate(game.pieces):
        integral = torch.zeros(len(piece.counted), len(game.heads), dtype=torch.float64)
        for node, (place, weight) in enumerate(zip((places + 1) / 2, weights / 2, strict=True)):
            integral -= weight * gate_gradients(game, piece, float(place))
            if progress is not None:
                progress(done * nodes + node + 1, len(game.pieces) * nodes)
        per_sequence.append(integral[piece.counted.cpu()])
    full, windowed = float(game.nats().mean()), float(game.nats(game.heads).mean())
    return WindowGates(game.heads, torch.cat(per_sequence).numpy(), full, windowed)


def gate_gradients(game: Game, piece: Piece, place: float) -> Float[Tensor, "b n_kv"]:
    """The gradient of each sequence's objective with respect to every head's gate, with all gates at `place`."""
    n_sequences = len(piece.counted)
    gates = torch.full((n_sequences, len(game.heads)), place, device=game.m.device, requires_grad=True)
    is_long = n_sequences * piece.n_tokens > _CHECKPOINTED_TOKENS
    with gated(game.m, gates, game.limits, checkpointed=is_long):
        piece.nats().sum().backward()
    assert gates.grad is not None
    return gates.grad.double().cpu()
