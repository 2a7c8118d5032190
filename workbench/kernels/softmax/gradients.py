"""Gradients of softmax attention through its output and its denominators, row-blocked in torch on any device."""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from workbench.kernels.masks import TileMask
from workbench.kernels.softmax.softmax_tiles import LN_2, SoftmaxLayer
from workbench.kernels.tiles import Cut, Scratch, within_memory


def attention_backward(
    d_out: Float[Tensor, "b n_heads q d_v"] | None,
    d_lse: Float[Tensor, "b n_heads q"],
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    out: Float[Tensor, "b n_heads q d_v"] | None,
    lse: Float[Tensor, "b n_heads q"],
    mask: TileMask,
    *,
    scale: float,
    softcap: float | None = None,
) -> tuple[
    Float[Tensor, "b n_heads q d"], Float[Tensor, "b n_kv_heads k d"], Float[Tensor, "b n_kv_heads k d_v"] | None
]:
    """Gradients of q, k and v from those of the output and of lse; statistics are for reading and pass none."""
    layer = SoftmaxLayer(q, k, mask, scale, softcap, None)
    # lse moves every score by its weight, the output by weight · (d_out · v − d_out · out).
    flow = d_lse.float() if d_out is None or out is None else d_lse.float() - (d_out.float() * out.float()).sum(-1)

    def compute(cut: Cut) -> tuple[Tensor, Tensor, Tensor | None]:
        dq, dk = torch.zeros_like(q, dtype=torch.float32), torch.zeros_like(k, dtype=torch.float32)
        dv = None if v is None else torch.zeros_like(v, dtype=torch.float32)
        scratch = Scratch(q.device, cut.largest)
        for tiles in cut.tiles(torch.arange(q.shape[2], device=q.device), mask):
            for tile in tiles:
                columns = (tile.batch, tile.kv_heads, slice(*tile.keys))
                slope = None
                if softcap is not None:
                    slope = 1 - (layer.scores(tile, scratch) * (LN_2 / softcap)).clamp_(-1, 1) ** 2
                weights = layer.weights(tile, lse, scratch)
                d_scores = layer.rows_of(flow, tile)[..., None]
                if d_out is not None and v is not None and dv is not None:
                    upstream = layer.rows_of(d_out, tile)
                    dv[columns] += einsum(weights, upstream, "b kv g q k, b kv g q e -> b kv k e")
                    d_scores = d_scores + einsum(upstream, v[columns].float(), "b kv g q e, b kv k e -> b kv g q k")
                d_scores = weights * d_scores * scale
                if slope is not None:
                    d_scores = d_scores * slope
                d_queries = einsum(d_scores, k[columns].float(), "b kv g q k, b kv k d -> b kv g q d")
                dq[tile.batch, tile.heads(layer.group), tile.span] = d_queries.flatten(1, 2)
                dk[columns] += einsum(d_scores, layer.rows_of(q, tile), "b kv g q k, b kv g q d -> b kv k d")
        return dq, dk, dv

    dq, dk, dv = within_memory(compute, layer.shape, n_rows=q.shape[2], n_keys=k.shape[2])
    return dq.to(q.dtype), dk.to(k.dtype), None if dv is None or v is None else dv.to(v.dtype)
