"""Softmax attention of rows under a mask that is written out: of a few rows, or of a band of keys.

By torch's own kernel where the layer is a plain softmax; with a softcap or a learned sink by the definition, in
float32. Query heads that share keys are rows of one product, so that no key is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

# Rows whose scores over a whole context may be in memory at once.
FEW_ROWS = 16


@dataclass(frozen=True, slots=True)
class Scores:
    """What a layer makes of q · k before the softmax: a factor, a softcap, and one learned sink logit for each head."""

    scale: float
    softcap: float | None = None
    sinks: Float[Tensor, " n_heads"] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a factor is all."""
        return self.softcap is None and self.sinks is None


def rows_output(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    visible: Bool[Tensor, "#b q k"] | None,
    scores: Scores,
) -> Float[Tensor, "b q n_heads d_v"]:
    """The output of these rows; one that sees no key gives zero. `visible` None: every row sees every key."""
    group = q.shape[1] // k.shape[1]
    is_blind = None if visible is None else ~visible.any(-1)
    if visible is not None and is_blind is not None:
        # A softmax over no key is no number on some devices.
        visible = rearrange(
            repeat(visible | is_blind[..., None], "b q k -> b g q k", g=group), "b g q k -> b 1 (g q) k"
        )
    rows = rearrange(q, "b (kv g) q d -> b kv (g q) d", g=group)
    if scores.is_plain:
        out = scaled_dot_product_attention(rows, k, v, attn_mask=visible, scale=scores.scale)
    else:
        out = _defined(rows, k, v, visible, scores)
    out = rearrange(out, "b kv (g q) d -> b q (kv g) d", g=group)
    return out if is_blind is None else out.masked_fill(rearrange(is_blind, "b q -> b q 1 1"), 0)


def _defined(
    q: Float[Tensor, "b kv rows d"],
    k: Float[Tensor, "b kv k d"],
    v: Float[Tensor, "b kv k d_v"],
    visible: Bool[Tensor, "#b 1 rows k"] | None,
    how: Scores,
) -> Float[Tensor, "b kv rows d_v"]:
    scores = einsum(q.float(), k.float(), "b h q d, b h k d -> b h q k") * how.scale
    scores = scores if how.softcap is None else how.softcap * torch.tanh(scores / how.softcap)
    scores = scores if visible is None else scores.masked_fill(~visible, -torch.inf)
    if how.sinks is not None:
        # The rows of a key/value head are its query heads one after another.
        of_heads = rearrange(how.sinks.float(), "(kv g) -> 1 kv g", kv=k.shape[1])
        sinks = of_heads.repeat_interleave(q.shape[2] // of_heads.shape[2], -1)
        scores = torch.cat([scores, sinks[..., None].expand(len(q), -1, -1, -1)], -1)
        v = pad(v, (0, 0, 0, 1))
    return einsum(scores.softmax(-1), v.float(), "b h q k, b h k d -> b h q d").to(v.dtype)
