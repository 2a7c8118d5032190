"""Differential attention (DiffLlama): two softmaxes a head, read as the difference that they are.

A head is a pair of the model's query heads, i and i + H/2, with the values of two key/value heads side by side; its row
is signed and sums to 1 − λ. It goes through transformers' attention twice, once for each half of the values.

Reference:
    Ye et al. 2024, Differential Transformer, arXiv 2410.05258; as transformers computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool
from torch import Tensor

from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import DifferenceRows


def _describe(module: Any) -> LinearLayer:
    n_heads = int(module.config.num_attention_heads) // 2
    return LinearLayer(
        index=int(module.layer_idx),
        mixer="diff",
        n_heads=n_heads,
        n_kv_heads=int(module.config.num_key_value_heads) // 2,
        d_head=int(module.head_dim),
        has_conv=False,
        slopes=torch.zeros(n_heads),
    )


@mixer(
    "DiffLlamaAttention",
    describe=_describe,
    taps=("q_proj", "k_proj", "v_proj"),
    keywords=("position_embeddings",),
    norm="groupnorm",
    projection="o_proj",
)
def read_difference(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read a layer of differential attention: rotated queries and keys, and λ from its four vectors."""
    q, k, v = (
        rearrange(outputs[name], "b t (h d) -> b h t d", d=module.head_dim) for name in ("q_proj", "k_proj", "v_proj")
    )
    cos, sin = outputs["position_embeddings"]
    q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    # Of the halves of the heads: the first softmax of every pair, and the second.
    halves_q, halves_k = (rearrange(x, "b (two h) t d -> two b h t d", two=2) for x in (q, k))
    rows = DifferenceRows(halves_q, halves_k, _lambda(module), float(module.scaling), valid)
    values = rearrange(v, "b (two h) t d -> b h t (two d)", two=2)
    group = rows.shape[1] // values.shape[1]
    return LinearCall(
        layer=int(module.layer_idx),
        q=halves_q[0],
        k=repeat(halves_k[0], "b h t d -> b (h g) t d", g=group),
        v=repeat(values, "b h t d -> b (h g) t d", g=group),
        log_decay=None,
        rows=rows,
    )


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys after the rotary embedding, as Llama's halves of channels."""
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


def _lambda(module: Any) -> float:
    exponents = ((module.lambda_q1, module.lambda_k1), (module.lambda_q2, module.lambda_k2))
    first, second = (torch.exp((q * k).sum(dtype=torch.float32)) for q, k in exponents)
    return float(first - second) + float(module.lambda_init)
