"""What a conversion changes of a head's contribution: the mean norm of W_O (o_full − o_converted), from one pass.

The norm is that of the residual stream and not relative to the head's own output, which would rank heads with a small
output first. Norms after attention (Gemma 2, OLMo 2) are not applied.

W_O is the first map of the layer whose input equals the heads' outputs, adapters included.
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
from workbench.hooks.effective_weights import effective_weight, is_plain
from workbench.hooks.interventions.windows import intervened_output
from workbench.hooks.recording.forward_pass import answers_of, batch_of
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.planning.answer_loss import answer_batches
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.registry import Ranking
from workbench.probes import Probe

ErrorRows = Literal["answers", "all"]


def output_error(rows: ErrorRows) -> Callable[[Game], Ranking]:
    """‖W_O (o_full − o_converted)‖ of a group of query heads, averaged over the answer rows or over all.

    Raises:
        WorkbenchError: for a model with an operation between the heads and W_O, such as an output gate.
    """

    def rank(game: Game) -> Ranking:
        """‖W_O (o_full − o_converted)‖ of a group of query heads, averaged over rows."""
        per_sequence = torch.cat([_errors(game, p, rows) for p in answer_batches(game.probe)]).numpy()
        method = "output_error" if rows == "answers" else "output_error_all"
        return Ranking(method, "residual norm", game.heads, per_sequence.mean(0), per_sequence)

    return rank


@dataclass(frozen=True, slots=True)
class _LayerOutput:
    """The outputs of a layer's heads, and how much the conversion changes them on the chosen rows."""

    layer: int
    n_kv_heads: int
    full: Float[Tensor, "b t n_heads d_v"]
    change: Float[Tensor, "n_rows n_heads d_v"]

    def equals(self, x: Tensor) -> bool:
        """Whether a module's input is these outputs."""
        if x.numel() != self.full.numel():
            return False
        return bool(torch.equal(x.reshape(self.full.shape).to(self.full.dtype), self.full))


def _errors(game: Game, probe: Probe, rows: ErrorRows) -> Float[Tensor, "n_seq n_kv"]:
    """Mean error of every head on each sequence that has an answer."""
    m, batch = game.m, batch_of(game.m.model, probe)
    assert batch.answers is not None
    sequence, row = (batch.answers if rows == "answers" else batch.valid.nonzero()).unbind(-1)
    everywhere = m.interventions.converting(game.heads, game.to)
    column = {head: i for i, head in enumerate(game.heads)}
    total = torch.zeros(len(batch.tokens), len(game.heads), dtype=torch.float64)
    pending: list[_LayerOutput] = []

    def attend(call: AttentionCall) -> Tensor:
        _check_projected(m.model, pending)
        full, converted = intervened_output(call, m.interventions), intervened_output(call, everywhere)
        pending.append(_LayerOutput(call.layer, call.k.shape[1], full, (full - converted)[sequence, row]))
        return full

    def add_norms(w_o: Float[Tensor, "d_in d_model"]) -> None:
        output = pending.pop()
        norms = _written_norms(output, w_o).double().cpu()
        ranked = [head for head in range(output.n_kv_heads) if KVHead(output.layer, head) in column]
        summed = torch.zeros(len(total), output.n_kv_heads, dtype=torch.float64).index_add_(0, sequence.cpu(), norms)
        total[:, [column[KVHead(output.layer, head)] for head in ranked]] += summed[:, ranked]

    with torch.no_grad(), handling(m.model, attend), _watching_projections(m.model, pending, add_norms):
        answers_of(m.model, batch)
    _check_projected(m.model, pending)
    n_rows = torch.bincount(sequence, minlength=len(batch.tokens)).cpu()
    has_answer = torch.bincount(batch.answers[:, 0], minlength=len(batch.tokens)).cpu() > 0
    return (total / n_rows[:, None])[has_answer]


def _written_norms(output: _LayerOutput, w_o: Float[Tensor, "d_in d_model"]) -> Float[Tensor, "n_rows n_kv"]:
    change = rearrange(output.change, "n (kv g) d -> kv n (g d)", kv=output.n_kv_heads).float()
    by_group = rearrange(w_o.float(), "(kv gd) d_model -> kv gd d_model", kv=output.n_kv_heads)
    # A group at a time: rows × groups × d_model may not fit.
    return torch.stack([(x @ w).norm(dim=-1) for x, w in zip(change, by_group, strict=True)], -1)


@contextmanager
def _watching_projections(
    model: nn.Module, pending: list[_LayerOutput], add_norms: Callable[[Float[Tensor, "d_in d_model"]], None]
) -> Generator[None]:
    """Inside the block, call `add_norms` with the matrix of the linear map whose input is the pending output."""

    def check_input(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not (pending and args and isinstance(args[0], Tensor) and pending[-1].equals(args[0])):
            return
        if id(module) in plain:
            weight: Any = module.weight
            add_norms(weight if isinstance(module, Conv1D) else weight.T)
            return
        # The outermost module is the map: inside it, an adapter may be beside the weight.
        w_o = effective_weight(module, args[0].shape[-1], args[0])
        if w_o is None:
            _check_projected(model, pending)
        else:
            add_norms(w_o)

    plain = {id(x) for x in model.modules() if is_plain(x)}
    handles = [x.register_forward_pre_hook(check_input) for x in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_projected(model: nn.Module, pending: list[_LayerOutput]) -> None:
    if pending:
        raise WorkbenchError(
            f"layer {pending[-1].layer} of {type(model).__name__} does not hand its heads' outputs to its output "
            "projection as they are (a gate or a norm comes between), so that output_error is not defined for it; "
            "use far_mass or window_gates"
        )
