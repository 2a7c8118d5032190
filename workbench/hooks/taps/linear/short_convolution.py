"""Gated short convolutions: LFM2, LFM2-MoE, LFM3.

Every channel c is y_i = C_i[c] Σ_l w[c, l] B_{i−l}[c] x_{i−l}[c] over the kernel's few tokens. With v = x it has the
pattern P_c[i, j] = C_i[c] w[c, i − j] B_j[c], both gates in it. There are no heads: the layer is one head, whose
implied pattern is the mean of P_c over the channels. What a channel hands on is P_c x_c, and not the mean times x_c.

Reference:
    Liquid AI 2025, LFM2 Technical Report, gated short convolution; the mean over channels is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import BandRows


def _describe(module: Any) -> LinearLayer:
    if module.conv.bias is not None:
        raise WorkbenchError(
            f"{type(module).__name__} of layer {module.layer_idx} adds a bias behind its convolution (conv_bias), "
            "which no pattern times values gives, and padding is not zero before it; expected conv_bias=False, as "
            "published checkpoints have it. Leave this model out"
        )
    return LinearLayer(
        index=int(module.layer_idx),
        mixer="conv",
        n_heads=1,
        n_kv_heads=1,
        d_head=int(module.conv.in_channels),
        has_conv=False,
        n_taps=int(module.conv.kernel_size[0]),
    )


@mixer(
    "Lfm2ShortConv",
    "Lfm2MoeShortConv",
    "Lfm3ShortConv",
    describe=_describe,
    taps=("in_proj",),
    norm="out_proj",
    projection="out_proj",
)
def read_short_convolution(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read a gated short convolution: one projection gives the gate of writing, the gate of reading, and the values."""
    writes, reads, v = rearrange(outputs["in_proj"], "b t (three c) -> three b 1 t c", three=3)
    taps = rearrange(module.conv.weight, "c 1 lag -> 1 c lag").flip(-1)  # of a kernel the last is the own token's
    return LinearCall(
        layer=int(module.layer_idx),
        q=reads,
        k=writes,
        v=v,
        log_decay=None,
        rows=BandRows(reads, writes, taps, valid),
    )
