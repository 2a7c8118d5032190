"""What each key adds through a head to the residual stream: W_O per head, and the gate of the attention's output.

Both are read off one pass on the batch itself: the linear map that takes the attention's output, and how its input
differs from that output. A gate is a factor from 0 to 1 per row, head and channel. Anything else between attention and
projection, such as a norm, is refused.

Reference:
    Kobayashi et al. 2020, Attention is Not Only a Weight (arXiv 2004.10102), eq. 5, without bias and residual.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.heads import LayerInfo, WorkbenchError
from workbench.hooks.effective_weights import has_adapters, is_plain
from workbench.hooks.interventions.windows import Interventions, intervened_output
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.hooks.taps.layer_lists import blocks

_MOST_NUMBERS = 1 << 22


@dataclass(frozen=True, slots=True)
class Projection:
    """Of one layer: W_O Wᵀ_O of each head, float64, and the gate of its output; None without one."""

    squares: Float[Tensor, "n_heads d d"]
    gate: Float[Tensor, "b t n_heads d"] | None

    def norms(self, head: int, v: Float[Tensor, "keys d"], rows: Int[Tensor, "r 2"]) -> Float[Tensor, "_ keys"]:
        """‖W_O (g_i ⊙ v_j)‖ of some rows i and all keys j; one row for all without a gate."""
        square, v = self.squares[head], v.double()
        if self.gate is None:
            return _length(v, square)[None]
        gate = self.gate[rows[:, 0], rows[:, 1], head].double()
        step = max(1, _MOST_NUMBERS // max(1, v.numel()))
        pieces = [_length(g[:, None] * v, square) for g in gate.split(step)]
        return torch.cat(pieces) if pieces else v.new_zeros(0, len(v))


def shares(pattern: Float[Tensor, "r keys"], norms: Float[Tensor, "_ keys"]) -> Float[Tensor, "r keys"]:
    """A[i, j] ‖W_O (g_i ⊙ v_j)‖ over its sum over j; 0 in a row that adds nothing."""
    added = pattern.double() * norms
    total = added.sum(-1, keepdim=True)
    return torch.where(total > 0, added / total, 0)


def read_projections(
    model: PreTrainedModel,
    layers: tuple[LayerInfo, ...],
    interventions: Interventions,
    run: Callable[[], object],
) -> dict[int, Projection]:
    """The projection of each softmax layer, from one pass, `run`, under the interventions in force.

    Raises:
        WorkbenchError: for unmerged adapters, or a layer whose attention output no plain linear map takes, gated or as
            it is.
    """
    if has_adapters(model):
        raise WorkbenchError(
            "contribution scores read W_O, and the model has unmerged adapters beside its weights; merge them with "
            "merge_and_unload() and open the model again"
        )
    projections: dict[int, Projection] = {}
    waiting: dict[int, Tensor] = {}

    def attend(call: AttentionCall) -> Tensor:
        out = intervened_output(call, interventions)
        waiting[call.layer] = out.detach().clone()
        return out

    def reader(layer: int, is_own_weight: bool) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            out = waiting.get(layer)
            if out is None or not args or args[0].numel() != out.numel() or args[0].shape[-1] != out[0, 0].numel():
                return
            del waiting[layer]  # the first map that could take it, or none
            projection = _projection(module, args[0].reshape(out.shape), out) if is_own_weight else None
            if projection is not None:
                projections[layer] = projection

        return read

    with ExitStack() as stack:
        for layer, block in blocks(model):
            for module in block.modules():
                if isinstance(module, nn.Linear | Conv1D):
                    stack.callback(module.register_forward_pre_hook(reader(layer, is_plain(module))).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(handling(model, attend))
        run()
    missing = next((i for i in layers if i.mixer == "softmax" and i.index not in projections), None)
    if missing is not None:
        raise WorkbenchError(
            f"no W_O per head can be read for layer {missing.index} of {type(model).__name__}: no plain linear map "
            "takes its attention's output, as it is or under a gate from 0 to 1. Contribution scores need one; "
            "scores of attention alone do not"
        )
    return projections


def _projection(module: nn.Module, x: Float[Tensor, "b t h d"], out: Float[Tensor, "b t h d"]) -> Projection | None:
    weight: Any = module.weight
    gate = None
    if not torch.equal(x, out):
        gate = torch.where((out == 0) & (x == 0), 1, x.double() / out.double())
        if not bool(((gate >= 0) & (gate <= 1 + 1e-2)).all()):
            return None
    o = rearrange(weight if isinstance(module, Conv1D) else weight.T, "(h d) m -> h d m", h=out.shape[2]).double()
    return Projection(einsum(o, o, "h d m, h e m -> h d e"), gate)


def _length(x: Float[Tensor, "*n d"], square: Float[Tensor, "d d"]) -> Float[Tensor, "*n"]:
    """√(xᵀ W_O Wᵀ_O x)."""
    return ((x @ square) * x).sum(-1).clamp_min(0).sqrt()
