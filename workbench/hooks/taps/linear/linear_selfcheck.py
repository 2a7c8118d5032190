"""Check that an adapter reads a linear layer rightly: its implied rows times v are what the layer's heads hand on.

Where the channels of a head have a pattern each, every channel's pattern times its values is compared.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.hooks.taps.linear.linear_layer import LinearCall
from workbench.hooks.taps.linear.linear_reading import OutputChange, head_outputs, linear_layers, reading_linear
from workbench.kernels import ChannelRows, MlstmRows, signed_pattern

# Relative to the largest output. A right adapter differs by rounding, a wrong one by far more; bfloat16 rounds v and
# the output to 2^-8.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_ROUGH_TOLERANCE = 5e-2


@contextmanager
def checking_linear(model: PreTrainedModel, valid: Bool[Tensor, "b t"]) -> Generator[dict[int, bool]]:
    """Yield a dict that says, for every linear layer that runs inside the block, whether it is read rightly.

    Builds whole patterns, T × T: for a few tokens only. `valid`: False on padding, where outputs are not compared.
    """
    outputs: dict[int, Tensor] = {}
    is_right: dict[int, bool] = {}

    def compare(call: LinearCall) -> None:
        out = outputs.pop(call.layer)
        tolerance = _TOLERANCE.get(out.dtype, _ROUGH_TOLERANCE)
        allowed = tolerance * out.float()[valid].abs().max() * _lost_digits(call)[valid]
        difference = (implied_output(call) - out.float())[valid].abs().amax(-1)
        # `not` of a comparison: NaN passes, because finiteness is checked by loading.pretrained.
        is_right[call.layer] = not bool((difference > allowed).any())

    with ExitStack() as stack:
        for layer in linear_layers(model):
            stack.enter_context(head_outputs(model, layer, _keeping(outputs, layer)))
        stack.enter_context(reading_linear(model, valid, compare))
        yield is_right


def implied_output(call: LinearCall) -> Float[Tensor, "b t n_heads d_v"]:
    """Every implied row, or row of a channel, times v, and the gate, which the heads hand on.

    T × T, so for small T only.
    """
    if isinstance(call.rows, ChannelRows):
        out = rearrange(call.rows.handed_on(call.v), "b h t c -> b t h c")
    else:
        out = einsum(signed_pattern(call.rows), call.v.float(), "b h i j, b h j d -> b i h d")
    return out if call.gate is None else out * call.gate.float()


def _lost_digits(call: LinearCall) -> Float[Tensor, "b t n_heads"]:
    """By how much rounding is larger in a row: where it is divided by its own sum, whose terms may cancel."""
    _, n_heads, n_tokens = call.rows.shape
    if not isinstance(call.rows, MlstmRows):
        return torch.ones(len(call.q), n_tokens, n_heads, device=call.q.device)
    return rearrange(signed_pattern(call.rows).abs().sum(-1).clamp_min(1), "b h t -> b t h")


def _keeping(outputs: dict[int, Tensor], layer: int) -> OutputChange:
    def keep(out: Tensor) -> Tensor:
        outputs[layer] = out.detach()
        return out

    return keep
