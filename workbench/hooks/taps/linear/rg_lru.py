"""RG-LRU, the recurrence of Griffin and RecurrentGemma: every channel keeps one number and has its own gate.

P_c[i, j] = sqrt(1 − a_j[c]²) g_j[c] Π_{j < s ≤ i} a_s[c], times x after the convolution; g is the input gate, and the
root is 1 at the first token. A head is a block of the block-diagonal gates, and its pattern the mean over its channels.
The other branch multiplies the outputs afterwards, channel by channel. The model does not hide padding from the layer.

Reference:
    De et al. 2024, Griffin, eq. 1–4; RecurrentGemma does not normalise the first token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from workbench.hooks.taps.linear.linear_layer import WITHOUT_NUMBER, LinearCall, LinearLayer, causal_convolution
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import ChannelDecayRows

# The exponent c of the recurrence gate, a = σ(Λ)^(c r).
_SHARPNESS = 8.0


def _describe(module: Any) -> LinearLayer:
    n_heads = int(module.rg_lru.num_attention_heads)
    return LinearLayer(
        index=WITHOUT_NUMBER,
        mixer="rg_lru",
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=int(module.rg_lru.block_width),
        has_conv=True,
        reads_padding=True,
    )


@mixer(
    "RecurrentGemmaRecurrentBlock",
    describe=_describe,
    taps=("linear_x", "linear_y"),
    norm="linear_out",
    projection="linear_out",
)
def read_rg_lru(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read RG-LRU: one projection is convolved and goes through the recurrence, the other becomes the gate."""
    unit, x = module.rg_lru, causal_convolution(module.conv_1d, outputs["linear_x"])
    n_heads = int(unit.num_attention_heads)
    input_gate, recurrence_gate = (_gate(unit, x, name) for name in ("input_gate", "recurrent_gate"))
    log_decay = -_SHARPNESS * recurrence_gate * softplus(unit.recurrent_param.float())
    root = torch.sqrt(-torch.expm1(2 * log_decay))
    root[:, 0] = 1
    one = torch.ones_like(log_decay[..., :1])
    strength, rates = input_gate * root, torch.ones_like(log_decay[0, 0, :, None])
    return LinearCall(
        layer=WITHOUT_NUMBER,
        q=rearrange(one, "b t 1 -> b 1 t 1").expand(-1, n_heads, -1, -1),
        k=rearrange(one, "b t 1 -> b 1 t 1").expand(-1, n_heads, -1, -1),
        v=rearrange(x, "b t (h p) -> b h t p", h=n_heads),
        log_decay=rearrange(log_decay, "b t (h p) -> b h t p", h=n_heads),
        rows=ChannelDecayRows(n_heads, one, one, log_decay, rates, strength=strength, valid=valid),
        gate=rearrange(module.act_fn(outputs["linear_y"]), "b t (h p) -> b t h p", h=n_heads),
    )


def _gate(unit: Any, x: Float[Tensor, "b t c"], name: str) -> Float[Tensor, "b t c"]:
    """A block-diagonal gate, in float32."""
    weight, bias = (getattr(unit, f"{name}_{part}").detach().float() for part in ("weight", "bias"))
    blocks = rearrange(x.float(), "b t (h p) -> b t h p", h=len(weight))
    return rearrange(torch.sigmoid(einsum(blocks, weight, "b t h p, h p r -> b t h r") + bias), "b t h r -> b t (h r)")
