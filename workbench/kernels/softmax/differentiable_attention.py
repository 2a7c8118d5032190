"""Attention's output under any mask, and its gradients, row-blocked both ways: memory is O(tokens), never T × T.

Forward keeps q, k, v, the output and one number per row, the lse; backward makes each tile of weights again from it.
Accumulators are float32; gradients are tested to 2e-6 relative of float64 autograd on dense attention.

Reference:
    Dao et al. 2022, FlashAttention, algorithm 4; a learned sink is one more key without a value.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from workbench.kernels.masks import TileMask
from workbench.kernels.softmax.blockwise import blockwise_statistics
from workbench.kernels.softmax.softmax_tiles import LN_2, SoftmaxLayer, sink_share
from workbench.kernels.softmax.statistics_request import Request
from workbench.kernels.tiles import Cut, Scratch, within_memory


def differentiable_attention(
    layer: SoftmaxLayer, v: Float[Tensor, "b n_kv_heads k d_v"]
) -> Float[Tensor, "b q n_heads d_v"]:
    """Softmax attention's output, with gradients for q, k, v and the learned sinks.

    Rows that see no key at all (padding) give zero output and take no gradient.
    """
    return _Attention.apply(  # type: ignore[no-any-return]
        layer.q, layer.k, v, layer.sinks, layer.mask, layer.scale, layer.softcap
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  # torch passes tensors and numbers one by one
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        mask: TileMask,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        out, statistics = blockwise_statistics(SoftmaxLayer(q, k, mask, scale, softcap, sinks), v, Request())
        ctx.save_for_backward(q, k, v, sinks, out, statistics.lse)
        ctx.mask, ctx.scale, ctx.softcap = mask, scale, softcap
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, lse = ctx.saved_tensors
        out, d_out = (rearrange(x, "b q h d -> b h q d") for x in (out, *gradients))
        layer = SoftmaxLayer(q, k, ctx.mask, ctx.scale, ctx.softcap, sinks)
        dq, dk, dv = attention_gradients(layer, v, out=out, lse=lse, d_out=d_out, d_lse=torch.zeros_like(lse))
        d_sinks, share = None, sink_share(sinks, lse)
        if share is not None:
            # The sink is a key without a value: its weight flows against the gain of the row's output.
            gain = (d_out.float() * out.float()).sum(-1)
            d_sinks = -reduce(share * gain, "b h q -> h", "sum").to(sinks.dtype)
        return dq, dk, dv, d_sinks, None, None, None


def attention_gradients(
    layer: SoftmaxLayer,
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    *,
    out: Float[Tensor, "b n_heads q d_v"] | None,
    lse: Float[Tensor, "b n_heads q"],
    d_out: Float[Tensor, "b n_heads q d_v"] | None,
    d_lse: Float[Tensor, "b n_heads q"],
) -> tuple[
    Float[Tensor, "b n_heads q d"], Float[Tensor, "b n_kv_heads k d"], Float[Tensor, "b n_kv_heads k d_v"] | None
]:
    """Gradients of q, k and v from those of the output and of lse; statistics pass none."""
    q, k = layer.q, layer.k
    # lse moves every score by its weight, the output by weight · (d_out · v − d_out · out).
    flow = d_lse.float() if d_out is None or out is None else d_lse.float() - (d_out.float() * out.float()).sum(-1)

    def compute(cut: Cut) -> tuple[Tensor, Tensor, Tensor | None]:
        dq, dk = torch.zeros_like(q, dtype=torch.float32), torch.zeros_like(k, dtype=torch.float32)
        dv = None if v is None else torch.zeros_like(v, dtype=torch.float32)
        scratch = Scratch(q.device, cut.largest)
        for tiles in cut.tiles(torch.arange(q.shape[2], device=q.device), layer.mask):
            for tile in tiles:
                columns = (tile.batch, tile.kv_heads, tile.key_index)
                slope = None
                if layer.softcap is not None:
                    slope = 1 - (layer.scores(tile, scratch) * (LN_2 / layer.softcap)).clamp_(-1, 1) ** 2
                weights = layer.weights(tile, lse, scratch)
                d_scores = layer.rows_of(flow, tile)[..., None]
                if d_out is not None and v is not None and dv is not None:
                    upstream = layer.rows_of(d_out, tile)
                    dv[columns] += einsum(weights, upstream, "b kv g q k, b kv g q e -> b kv k e")
                    d_scores = d_scores + einsum(upstream, v[columns].float(), "b kv g q e, b kv k e -> b kv g q k")
                d_scores = weights * d_scores * layer.scale
                if slope is not None:
                    d_scores = d_scores * slope
                d_queries = einsum(d_scores, k[columns].float(), "b kv g q k, b kv k d -> b kv g q d")
                dq[tile.batch, tile.heads(layer.group), tile.span] = d_queries.flatten(1, 2)
                dk[columns] += einsum(d_scores, layer.rows_of(q, tile), "b kv g q k, b kv g q d -> b kv k d")
        return dq, dk, dv

    dq, dk, dv = within_memory(compute, layer.shape, n_rows=q.shape[2], n_keys=k.shape[2])
    return dq.to(q.dtype), dk.to(k.dtype), None if dv is None or v is None else dv.to(v.dtype)
