"""What a window changes of what a head writes: the mean norm of W_O (o_full − o_windowed), from one forward pass.

The norm is that of the residual stream and never relative to the head's own output, which would put heads that say
little first. Norms after attention (Gemma 2, OLMo 2) are not applied.

W_O is found where the heads' outputs arrive: the first linear map of the layer that is given exactly what they said.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks.interventions.windows import intervened_output
from workbench.hooks.recording.forward_pass import answers_of, batch_of
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.planning.answer_loss import batches
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.ranking import Ranking
from workbench.probes import Probe

ErrorRows = Literal["answers", "all"]


def output_error(rows: ErrorRows) -> Callable[[Game], Ranking]:
    """‖W_O (o_full − o_windowed)‖ of a group of query heads, averaged over the answer rows or over all.

    Raises:
        WorkbenchError: for a model in which something else comes before W_O, such as an output gate.
    """

    def rank(game: Game) -> Ranking:
        per_sequence = torch.cat([_errors(game, p, rows) for p in batches(game.probe)]).numpy()
        method = "output_error" if rows == "answers" else "output_error_all"
        return Ranking(method, "residual norm", game.heads, per_sequence.mean(0), per_sequence)

    return rank


@dataclass(frozen=True, slots=True)
class _Said:
    """What a layer's heads hand on, and what a window would change of it on the chosen rows."""

    layer: int
    n_kv_heads: int
    full: Float[Tensor, "b t n_heads d_v"]
    change: Float[Tensor, "n_rows n_heads d_v"]

    def arrives(self, x: Tensor) -> bool:
        """Whether it is these outputs that a module is given."""
        if x.numel() != self.full.numel():
            return False
        return bool(torch.equal(x.reshape(self.full.shape).to(self.full.dtype), self.full))


def _errors(game: Game, probe: Probe, rows: ErrorRows) -> Float[Tensor, "n_seq n_kv"]:
    """Mean error of every head on each sequence that has an answer."""
    m, batch = game.m, batch_of(game.m.model, probe)
    assert batch.answers is not None
    at = batch.answers if rows == "answers" else batch.valid.nonzero()
    everywhere = m.interventions.converting(game.heads, game.to)
    place = {head: i for i, head in enumerate(game.heads)}
    total = torch.zeros(len(batch.tokens), len(game.heads), dtype=torch.float64)
    waiting: list[_Said] = []

    def attend(call: AttentionCall) -> Tensor:
        _check_arrived(m.model, waiting)
        full, windowed = intervened_output(call, m.interventions), intervened_output(call, everywhere)
        waiting.append(_Said(call.layer, call.k.shape[1], full, (full - windowed)[at[:, 0], at[:, 1]]))
        return full

    def take(w_o: Float[Tensor, "d_in d_model"]) -> None:
        said = waiting.pop()
        norms = _written_norms(said, w_o).double().cpu()
        mine = [head for head in range(said.n_kv_heads) if KVHead(said.layer, head) in place]
        summed = torch.zeros(len(total), said.n_kv_heads, dtype=torch.float64).index_add_(0, at[:, 0].cpu(), norms)
        total[:, [place[KVHead(said.layer, head)] for head in mine]] += summed[:, mine]

    with torch.no_grad(), handling(m.model, attend), _seeing_projections(m.model, waiting, take):
        answers_of(m.model, batch)
    _check_arrived(m.model, waiting)
    n_rows = torch.bincount(at[:, 0], minlength=len(batch.tokens)).cpu()
    has_answer = torch.bincount(batch.answers[:, 0], minlength=len(batch.tokens)).cpu() > 0
    return (total / n_rows[:, None])[has_answer]


def _written_norms(said: _Said, w_o: Float[Tensor, "d_in d_model"]) -> Float[Tensor, "n_rows n_kv"]:
    change = rearrange(said.change, "n (kv g) d -> kv n (g d)", kv=said.n_kv_heads).float()
    by_group = rearrange(w_o.float(), "(kv gd) d_model -> kv gd d_model", kv=said.n_kv_heads)
    # A group at a time: rows × groups × d_model may not fit.
    return torch.stack([(x @ w).norm(dim=-1) for x, w in zip(change, by_group, strict=True)], -1)


@contextmanager
def _seeing_projections(
    model: nn.Module, waiting: list[_Said], take: Callable[[Float[Tensor, "d_in d_model"]], None]
) -> Generator[None]:
    """Inside the block, give `take` the matrix of the linear map in which waiting outputs arrive."""

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        if waiting and args and waiting[-1].arrives(args[0]):
            weight: Any = module.weight
            take(weight if isinstance(module, Conv1D) else weight.T)

    maps = [x for x in model.modules() if isinstance(x, nn.Linear | Conv1D)]
    handles = [x.register_forward_pre_hook(look) for x in maps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_arrived(model: nn.Module, waiting: list[_Said]) -> None:
    if waiting:
        raise WorkbenchError(
            f"layer {waiting[-1].layer} of {type(model).__name__} does not hand its heads' outputs to its output "
            "projection as they are (a gate or a norm comes between), so that output_error is not defined for it; "
            "use far_mass or window_gates"
        )
