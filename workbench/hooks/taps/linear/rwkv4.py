"""RWKV-4: every channel averages its past values with weights that fall at its own rate; one head a layer.

P_c[i, j] ∝ exp(k_j[c] − (i − 1 − j) w[c]) for j < i and exp(u[c] + k_i[c]) for j = i: positive, and rows sum to 1. The
head's pattern is the mean over channels. The receptance multiplies the outputs afterwards, channel by channel. The
model does not hide padding from the layer.

The sums are folded into gates, so that no exponent is above 0: with D_i the log of Σ_{j ≤ i} exp(k_j − (i − j) w), the
average after token i keeps exp(D_{i−1} − w − D_i) of the one before and takes in exp(k_i − D_i) of v_i.

Reference:
    Peng et al. 2023, RWKV, eq. 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import ChannelDecayRows


def _describe(module: Any) -> LinearLayer:
    return LinearLayer(
        index=int(module.layer_id),
        mixer="rwkv4",
        n_heads=1,
        n_kv_heads=1,
        d_head=int(module.attention_hidden_size),
        has_conv=True,
        reads_padding=True,
    )


@mixer(
    "RwkvSelfAttention",
    describe=_describe,
    taps=("key", "value", "receptance"),
    norm="output",
    projection="output",
)
def read_rwkv4(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read RWKV-4: keys are log weights; each of key, value and receptance mixes a token with the one before."""
    k = outputs["key"].double()  # the sums of rates over tokens grow with the text
    w, u = module.time_decay.detach().double().exp(), module.time_first.detach().double()
    lapsed = torch.arange(k.shape[1], device=k.device)[:, None] * w
    total = torch.logcumsumexp(k + lapsed, 1) - lapsed
    before = pad(total[:, :-1], (0, 0, 1, 0), value=-torch.inf)
    log_decay = (before - w - total).clamp(max=0)
    log_decay[:, 0] = 0
    one = torch.ones_like(k[..., :1], dtype=torch.float32)
    rows = ChannelDecayRows(
        n_heads=1,
        q=one,
        k=one,
        log_decay=log_decay,
        rates=torch.ones_like(w[:, None], dtype=torch.float32),
        strength=torch.exp(k - total).float(),
        read=torch.sigmoid(before - u - k).float(),
        skip=torch.sigmoid(u + k - before).float(),
        valid=valid,
        sees_itself=False,
    )
    return LinearCall(
        layer=int(module.layer_id),
        q=rearrange(one, "b t 1 -> b 1 t 1"),
        k=rearrange(one, "b t 1 -> b 1 t 1"),
        v=rearrange(outputs["value"], "b t c -> b 1 t c"),
        log_decay=-w.float().expand(1, 1, k.shape[1], -1),
        rows=rows,
        gate=rearrange(torch.sigmoid(outputs["receptance"]), "b t c -> b t 1 c"),
    )
