"""Integrated window gates: how much each key/value head's far context is worth, from m passes whatever their number.

1. Mix full and windowed attention by one gate for all heads, a from 0 (all windowed) to 1 (the model itself).
2. At m nodes of that path take the gradient of the loss for every head's own gate: one forward and one backward pass.
3. A head's score is minus the integral of its gradient. The scores sum to L(all windowed) − L(full), up to the error of
   the quadrature, which is measured and reported.

A redundant head shows at the windowed end of the path, a head that is only useful together with another at the full
end; leaving one out or putting one back sees only the one or the other.

Reference:
    Aumann and Shapley 1974, Values of Non-Atomic Games; Sundararajan et al. 2017, Axiomatic Attribution for Deep
    Networks, section 3. Here of the game of windowing heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel
from workbench.hooks.interventions.gates import gated
from workbench.hooks.interventions.windows import Forms
from workbench.planning.answer_loss import Objective, Piece
from workbench.planning.conversion_objective import Game
from workbench.probes import Probe

# Up to so many nodes equal parts lose least of the gap, beyond them Gauss-Legendre: measured, see docs/planning.md.
_MIDPOINT_NODES = 4
# From here on a batch keeps the inputs of its layers alone and computes them again in the backward pass.
_CHECKPOINTED_TOKENS = 8192
Quadrature = Literal["gauss", "midpoint"]


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
    window: int | Forms,
    *,
    sink: int = 0,
    nodes: int = 8,
    quadrature: Quadrature | None = None,
    objective: Objective = "loss",
    progress: Callable[[int, int], None] | None = None,
) -> WindowGates:
    """Score every key/value head of the model's softmax layers on a probe's answers.

    One forward and one backward pass per node and batch, and two forward passes for the ends; memory is O(tokens).

    Args:
        window, sink: what a restricted head still sees, in tokens; or the linear attention that heads get instead, as
            `fit_linear_attention` makes it; only heads with a form are scored then.
        nodes: of the path; 3 are enough to rank.
        quadrature: where the nodes lie, see `path_nodes`.
        objective: `loss` of the answers, or `kl` from the model itself, which needs no right answers.
        progress: told (passes done, passes in all).

    Raises:
        WorkbenchError: if the probe has no answers, nodes < 1, the quadrature is unknown, the window is no window, or a
            head cannot have linear attention.
    """
    game = Game(m, probe, window, sink=sink, objective=objective)
    return integrate(game, nodes=nodes, quadrature=quadrature, progress=progress)


def integrate(
    game: Game,
    *,
    nodes: int = 8,
    quadrature: Quadrature | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WindowGates:
    """`window_gates` of a game."""
    places, weights = path_nodes(nodes, quadrature)
    per_sequence: list[Tensor] = []
    for done, piece in enumerate(game.pieces):
        integral = torch.zeros(len(piece.counted), len(game.heads), dtype=torch.float64)
        for node, (place, weight) in enumerate(zip(places, weights, strict=True)):
            integral -= weight * gate_gradients(game, piece, float(place))
            if progress is not None:
                progress(done * nodes + node + 1, len(game.pieces) * nodes)
        per_sequence.append(integral[piece.counted.cpu()])
    full, windowed = float(game.nats().mean()), float(game.nats(game.heads).mean())
    return WindowGates(game.heads, torch.cat(per_sequence).numpy(), full, windowed)


def path_nodes(
    nodes: int, quadrature: Quadrature | None = None
) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " nodes"]]:
    """Where on the path from 0 to 1 the gradient is taken, and how much each place counts; the weights sum to 1.

    `gauss`: Gauss-Legendre nodes, exact where the gradient is a polynomial in a of degree up to 2·nodes − 1.
    `midpoint`: the middles of `nodes` equal parts, exact up to degree 1. None: midpoint up to 4 nodes, gauss from 5 on,
    each where it was measured to lose less.

    Raises:
        WorkbenchError: if nodes < 1 or the quadrature is unknown.
    """
    if nodes < 1:
        raise WorkbenchError(f"nodes is {nodes}; expected at least 1")
    if quadrature not in (None, *get_args(Quadrature)):
        raise WorkbenchError(f"quadrature is {quadrature!r}; expected 'gauss', 'midpoint' or None")
    if quadrature == "midpoint" or (quadrature is None and nodes <= _MIDPOINT_NODES):
        return (np.arange(nodes) + 0.5) / nodes, np.full(nodes, 1 / nodes)
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return (places + 1) / 2, weights / 2


def gate_gradients(game: Game, piece: Piece, place: float) -> Float[Tensor, "b n_kv"]:
    """The gradient of each sequence's objective with respect to every head's gate, with all gates at `place`."""
    n_sequences = len(piece.counted)
    gates = torch.full((n_sequences, len(game.heads)), place, device=game.m.device, requires_grad=True)
    is_long = n_sequences * piece.n_tokens > _CHECKPOINTED_TOKENS
    with gated(game.m, gates, game.to, checkpointed=is_long):
        piece.nats().sum().backward()
    assert gates.grad is not None
    return gates.grad.double().cpu()
