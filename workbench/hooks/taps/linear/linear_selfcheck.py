"""Check that an adapter reads a linear layer rightly: its implied rows times v are what the layer's heads hand on."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.hooks.taps.linear.linear_layer import LinearCall
from workbench.hooks.taps.linear.linear_reading import OutputChange, head_outputs, linear_layers, reading_linear
from workbench.kernels import ChannelRows, signed_pattern

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
        difference = (implied_output(call) - out.float())[valid].abs().max()
        # `not` of a comparison: NaN passes, because finiteness is checked by loading.pretrained.
        is_right[call.layer] = not bool(difference > tolerance * out.float()[valid].abs().max())

    with ExitStack() as stack:
        for layer in linear_layers(model):
            stack.enter_context(head_outputs(model, layer, _keeping(outputs, layer)))
        stack.enter_context(reading_linear(model, valid, compare))
        yield is_right


def implied_output(call: LinearCall) -> Float[Tensor, "b t n_heads d_v"]:
    """Every implied row times v, and the gate, which the heads hand on; T × T, so for small T only.

    Where the rows of a head are means over its channels, each channel's own rows.
    """
    if isinstance(call.rows, ChannelRows):
        out = call.rows.applied_to(call.v)
    else:
        out = einsum(signed_pattern(call.rows), call.v.float(), "b h i j, b h j d -> b i h d")
    return out if call.gate is None else out * call.gate.float()


def _keeping(outputs: dict[int, Tensor], layer: int) -> OutputChange:
    def keep(out: Tensor) -> Tensor:
        outputs[layer] = out.detach()
        return out

    return keep
