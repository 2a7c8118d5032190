"""Kimi Delta Attention: a gated delta net with one decay per key channel.

Reference:
    Kimi Team 2025, Kimi Linear, eq. 1. Ling 3.0 (`bailing_hybrid`) bounds the forget gate from below; the recurrence
    is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from jaxtyping import Bool
from torch import Tensor, cat

from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer, convolved, normalised
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import DeltaRows


def _describe(module: Any) -> LinearLayer:
    n_heads = int(module.num_heads)
    return LinearLayer(
        index=int(module.layer_idx),
        mixer="kda",
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=int(module.head_dim),
        has_conv=True,
    )


@mixer(
    "KimiLinearDeltaAttention",
    "Glm5NextTextLinearAttention",
    "BailingHybridDeltaAttention",
    describe=_describe,
    taps=("q_proj", "k_proj", "v_proj", "forget_gate", "b_proj"),
    norm="o_norm",
    projection="o_proj",
)
def read_kimi_delta(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read Kimi Delta Attention: the forget gate gives the log decay of each key channel."""
    mixed = cat([outputs[name] for name in ("q_proj", "k_proj", "v_proj")], -1)
    q, k, v = rearrange(convolved(module, mixed), "b t (three h d) -> three b h t d", three=3, h=module.num_heads)
    q, k = normalised(q) * q.shape[-1] ** -0.5, normalised(k)
    log_decay = rearrange(outputs["forget_gate"].float(), "b t h d -> b h t d")
    strength = rearrange(outputs["b_proj"].float().sigmoid(), "b t h -> b h t")
    return LinearCall(
        layer=int(module.layer_idx),
        q=q,
        k=k,
        v=v,
        log_decay=log_decay,
        rows=DeltaRows(q, k, log_decay, strength, valid),
    )
