"""Softmax attention of a block of rows under a mask that is written out: for a few rows, or a band of keys.

By torch's own kernel where the layer is a plain softmax; with a softcap or a learned sink by its definition, in float32.
Query heads that share keys are rows of one product, so that no key is repeated.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

# Rows whose scores over a whole context may be in memory at once.
FEW_ROWS = 16


def rows_output(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    visible: Bool[Tensor, "#b q k"] | None,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
) -> Float[Tensor, "b q n_heads d_v"]:
    """The output of these rows; one that sees no key gives zero. `visible` None: every row sees every key."""
    group, n_rows = q.shape[1] // k.shape[1], q.shape[2]
    is_blind = None if visible is None else ~visible.any(-1)
    if visible is not None and is_blind is not None:
        # A softmax over no key is no number on some devices.
        visible = rearrange(
            repeat(visible | is_blind[..., None], "b q k -> b g q k", g=group), "b g q k -> b 1 (g q) k"
        )
    rows = rearrange(q, "b (kv g) q d -> b kv (g q) d", g=group)
    if softcap is None and sinks is None:
        out = scaled_dot_product_attention(rows, k, v, attn_mask=visible, scale=scale)
    else:
        out = _defined(rows, k, v, visible, scale=scale, softcap=softcap, sinks=_of_rows(sinks, group, n_rows))
    out = rearrange(out, "b kv (g q) d -> b q (kv g) d", g=group)
    return out if is_blind is None else out.masked_fill(rearrange(is_blind, "b q -> b q 1 1"), 0)


def _of_rows(
    sinks: Float[Tensor, " n_heads"] | None, group: int, n_rows: int
) -> Float[Tensor, "1 n_kv_heads rows 1"] | None:
    return None if sinks is None else repeat(sinks.float(), "(kv g) -> 1 kv (g q) 1", g=group, q=n_rows)


def _defined(
    q: Float[Tensor, "b kv rows d"],
    k: Float[Tensor, "b kv k d"],
    v: Float[Tensor, "b kv k d_v"],
    visible: Bool[Tensor, "#b 1 rows k"] | None,
    *,
    scale: float,
    softcap: float | None,
    sinks: Float[Tensor, "1 kv rows 1"] | None,
) -> Float[Tensor, "b kv rows d_v"]:
    scores = einsum(q.float(), k.float(), "b h q d, b h k d -> b h q k") * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores if visible is None else scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.expand(len(scores), -1, -1, -1)], -1)
        v = pad(v, (0, 0, 0, 1))
    return einsum(scores.softmax(-1), v.float(), "b h q k, b h k d -> b h q d").to(v.dtype)
