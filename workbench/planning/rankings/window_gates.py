"""Integrated window gates: each key/value head's part in the loss of converting all of them, from m passes for n heads.

1. Mix full and converted attention by one gate for all heads, a from 0 (all converted) to 1 (the model itself).
2. At m nodes of that path take the gradient of the loss for every head's own gate: one forward and one backward pass.
   Nodes lie where the gradient bends (`adaptive_nodes`), or at a given number of fixed places.
3. A head's score is minus the integral of its gradient. The scores sum to L(all converted) − L(full), up to the error
   of the quadrature, which is measured and reported.

The converted end of the path shows heads that stand in for each other, the full end heads that only work together.
Rankings that change one head see one end alone. So do `first_order` and `gradient_at_zero`, the slopes of the loss at
the ends: one backward pass each, as a first guess.

Reference:
    Aumann and Shapley 1974, Values of Non-Atomic Games; Sundararajan et al. 2017, Axiomatic Attribution for Deep
    Networks, section 3. Here of the game of converting heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.console import watched_bar
from workbench.heads import KVHead, WorkbenchError, brief
from workbench.hooks import HookedModel
from workbench.hooks.interventions.gates import gated
from workbench.planning.answer_loss import LossBatch, Objective
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.adaptive_nodes import AS_NEEDED, AdaptiveNodes, PathNode, adapted, node_weights
from workbench.planning.rankings.registry import Ranking
from workbench.probes.token_inputs import ProbeLike
from workbench.store.conversions import Conversions

# Midpoints lose least of the gap up to this many nodes, Gauss-Legendre beyond: measured, see docs/planning.md.
_MIDPOINT_NODES = 4
# From this many tokens on a batch keeps only the inputs of its layers and computes them again in the backward pass.
_CHECKPOINTED_TOKENS = 8192
Quadrature = Literal["gauss", "midpoint"]


@dataclass(frozen=True, slots=True)
class WindowGates:
    """The worth of every head's far context in nats per answer, positive where losing it costs.

    `per_sequence`: of each head on each sequence that has an answer; `scores`, their mean. `full`, `windowed`: the
    objective of the model itself and with every head converted. `completeness_error`: |Σ scores − (windowed − full)|
    over |windowed − full|; NaN where there is no gap. `margin`: of each score, its part of that error in nats, in
    proportion to how much its gradient does along the path. `n_nodes`: of the path.
    """

    heads: tuple[KVHead, ...]
    per_sequence: Float[np.ndarray, "n_seq n_kv"]
    full: float
    windowed: float
    margin: Float[np.ndarray, " n_kv"]
    n_nodes: int

    def __repr__(self) -> str:
        return brief(self)

    @property
    def scores(self) -> Float[np.ndarray, " n_kv"]:
        return self.per_sequence.mean(0)

    @property
    def completeness_error(self) -> float:
        gap = self.windowed - self.full
        return abs(float(self.scores.sum()) - gap) / abs(gap) if gap else float("nan")


def window_gates(  # noqa: PLR0913  # public keywords
    m: HookedModel | nn.Module,
    probe: ProbeLike,
    window: int | Conversions,
    *,
    sink: int = 0,
    nodes: int | AdaptiveNodes = AS_NEEDED,
    quadrature: Quadrature | None = None,
    objective: Objective = "loss",
    progress: Callable[[int, int], None] | bool | None = True,
) -> WindowGates:
    """Score every key/value head of the model's softmax layers on a probe's answers.

    One forward and one backward pass per node and batch; with a number of `nodes`, two forward passes for the ends
    beside them. Memory is O(tokens).

    Args:
        window, sink: what a restricted head still sees, in tokens; or what each head gets instead, linear attention as
            `fit_linear_attention` makes it or a `SparseAttention`; only these heads are scored then.
        nodes: of the path: as many as it needs, or this number.
        quadrature: where a number of nodes lies, see `path_nodes`.
        objective: `loss` of the answers, or `kl` from the model itself, which needs no right answers.
        progress: a bar on a terminal and in a notebook, or a function that is called with (passes done, passes in
            all, or at most); False: neither.

    Raises:
        WorkbenchError: if the probe has no answers, nodes < 1, the quadrature is unknown, the window is no window, or a
            head cannot have its conversion.
    """
    game = Game(m, probe, window, sink=sink, objective=objective)
    if callable(progress):
        return integrate(game, nodes=nodes, quadrature=quadrature, progress=progress)
    with watched_bar("pass", shown=bool(progress)) as show:

        def on_pass(done: int, total: int) -> None:
            show(done, total, game.probe.name)

        return integrate(game, nodes=nodes, quadrature=quadrature, progress=on_pass)


def integrate(
    game: Game,
    *,
    nodes: int | AdaptiveNodes = AS_NEEDED,
    quadrature: Quadrature | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WindowGates:
    """`window_gates` of a game."""
    n_done, n_nodes = 0, nodes.most if isinstance(nodes, AdaptiveNodes) else nodes

    def on_batch() -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            progress(n_done, len(game.batches) * n_nodes)

    def take(position: float) -> PathNode:
        return _node(game, position, on_batch)

    if isinstance(nodes, AdaptiveNodes):
        if quadrature is not None:
            _check_quadrature(quadrature)
            raise WorkbenchError(f"quadrature is {quadrature!r}, which places a number of nodes; pass nodes= as well")
        path = adapted(take, nodes)
        weights = node_weights(np.array(list(path)))
        ends = path[1.0].nats, path[0.0].nats
    else:
        positions, weights = path_nodes(nodes, quadrature)
        path = {float(position): take(float(position)) for position in positions}
        ends = game.nats(), game.nats(game.heads)
    gradients = np.stack([node.gradients for node in path.values()])
    per_sequence = -np.tensordot(weights, gradients, axes=1)
    missing = float((ends[1] - ends[0]).mean() - per_sequence.mean(0).sum())
    slopes = np.tensordot(np.abs(weights), np.abs(gradients.mean(1)), axes=1)
    margin = abs(missing) * slopes / max(slopes.sum(), np.finfo(float).tiny)
    full, converted = (float(nats.mean()) for nats in ends)
    return WindowGates(game.heads, per_sequence, full, converted, margin, len(path))


def _node(game: Game, position: float, on_batch: Callable[[], None]) -> PathNode:
    """All batches with all gates at `position`; once it is measured, from the game's pieces."""

    def measure() -> dict[str, list[Any]]:
        nats: list[Any] = []
        gradients: list[Any] = []
        for batch in game.batches:
            by_sequence, gradient = gate_pass(game, batch, position)
            nats += by_sequence[batch.counted.cpu()].tolist()
            gradients += gradient[batch.counted.cpu()].tolist()
            on_batch()
        return {"nats": nats, "gradients": gradients}

    node = game.pieces.get(f"gates at {position!r} on {game.label}", measure)
    return PathNode(np.array(node["nats"]), np.array(node["gradients"]).reshape(-1, len(game.heads)))


def path_nodes(
    nodes: int, quadrature: Quadrature | None = None
) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " nodes"]]:
    """Positions on the path from 0 to 1 where the gradient is taken, and their weights, which sum to 1.

    `gauss`: Gauss-Legendre nodes, exact where the gradient is a polynomial in a of degree up to 2·nodes − 1.
    `midpoint`: the middles of `nodes` equal parts, exact up to degree 1. None: midpoint up to 4 nodes, gauss from 5 on,
    each where it was measured to lose less.

    Raises:
        WorkbenchError: if nodes < 1 or the quadrature is unknown.
    """
    if nodes < 1:
        raise WorkbenchError(f"nodes is {nodes}; expected at least 1")
    _check_quadrature(quadrature)
    if quadrature == "midpoint" or (quadrature is None and nodes <= _MIDPOINT_NODES):
        return (np.arange(nodes) + 0.5) / nodes, np.full(nodes, 1 / nodes)
    positions, weights = np.polynomial.legendre.leggauss(nodes)
    return (positions + 1) / 2, weights / 2


def _check_quadrature(quadrature: Any) -> None:
    if quadrature not in (None, *get_args(Quadrature)):
        raise WorkbenchError(f"quadrature is {quadrature!r}; expected 'gauss', 'midpoint' or None")


def gate_gradients(game: Game, batch: LossBatch, position: float) -> Float[Tensor, "b n_kv"]:
    """The gradient of each sequence's objective with respect to every head's gate, with all gates at `position`."""
    return gate_pass(game, batch, position)[1]


def gate_pass(game: Game, batch: LossBatch, position: float) -> tuple[Float[Tensor, " b"], Float[Tensor, "b n_kv"]]:
    """Each sequence's objective with all gates at `position`, and its `gate_gradients`."""
    n_sequences = len(batch.counted)
    gates = torch.full((n_sequences, len(game.heads)), position, device=game.m.device, requires_grad=True)
    is_long = n_sequences * batch.n_tokens > _CHECKPOINTED_TOKENS
    with gated(game.m, gates, game.to, checkpointed=is_long):
        nats = batch.nats()
        nats.sum().backward()
    assert gates.grad is not None
    return nats.detach().double().cpu(), gates.grad.double().cpu()


def integrated(game: Game, *, nodes: int | AdaptiveNodes = AS_NEEDED, quadrature: Quadrature | None = None) -> Ranking:
    """Integrated window gates; see `window_gates`."""
    gates = integrate(game, nodes=nodes, quadrature=quadrature)
    evidence = {
        "completeness_error": gates.completeness_error,
        "full": gates.full,
        "windowed": gates.windowed,
        "nodes": float(gates.n_nodes),
    }
    return Ranking("window_gates", "nats", gates.heads, gates.scores, gates.per_sequence, evidence, gates.margin)


def first_order(game: Game) -> Ranking:
    """−dL/da of the head's gate at the full model, where heads that stand in for each other hide one another.

    With the divergence from the model itself as objective it is 0.
    """
    return _slope(game, "first_order", 1.0)


def gradient_at_zero(game: Game) -> Ranking:
    """−dL/da of the head's gate with every head converted, where heads that only work together have no slope."""
    return _slope(game, "gradient_at_zero", 0.0)


def _slope(game: Game, method: str, position: float) -> Ranking:
    # The gates' own node where they are measured already.
    per_sequence = -_node(game, position, lambda: None).gradients
    return Ranking(method, "nats", game.heads, per_sequence.mean(0), per_sequence)
