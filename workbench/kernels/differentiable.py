"""Attention's output under any mask with a backward pass, row-blocked both ways: memory is O(tokens), never T × T.

Forward keeps q, k, v, the output and one number per row, the lse. Backward makes each block of weights again:
p = exp(s − lse), ds = p (dp − δ) with dp = dO vᵀ and δ = dO · o; dq = ds k, dk = dsᵀ q, dv = pᵀ dO. Accumulators are
float32; gradients are tested to 2e-6 relative of float64 autograd on the dense form.

Reference:
    Dao et al. 2022, FlashAttention, algorithm 4; a learned sink is one more key without a value.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.blockwise import attention_statistics
from workbench.kernels.masks import TileMask, per_head
from workbench.kernels.statistics import Request

# A block of float32 weights of all heads; three of them are alive in a backward pass.
_BLOCK_BYTES = 16 << 20


def differentiable_attention(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    mask: TileMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
) -> Float[Tensor, "b q n_heads d_v"]:
    """Softmax attention's output, with gradients for q, k, v and the learned sinks.

    Rows that see no key at all (padding) give zero output and take no gradient.

    Raises:
        WorkbenchError: if n_heads is not a multiple of n_kv_heads.
    """
    return _Attention.apply(q, k, v, sinks, mask, scale, softcap)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        mask: TileMask,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        out, statistics = attention_statistics(q, k, v, mask, Request(), scale=scale, softcap=softcap, sinks=sinks)
        ctx.save_for_backward(q, k, v, sinks, out, statistics.lse)
        ctx.mask, ctx.scale, ctx.softcap = mask, scale, softcap
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, lse = ctx.saved_tensors
        (d_out,) = gradients
        d_out = rearrange(d_out, "b q h d -> b h q d").float()
        delta = (d_out * rearrange(out, "b q h d -> b h q d")).sum(-1)
        lse = torch.where(torch.isneginf(lse), torch.inf, lse)
        dq, dk, dv = _gradients(q, k, v, ctx.mask, ctx.scale, ctx.softcap, d_out, delta, lse)
        d_sinks = None
        if sinks is not None:
            share = torch.exp(rearrange(sinks.float(), "h -> 1 h 1") - lse)
            d_sinks = -reduce(share * delta, "b h q -> h", "sum").to(sinks.dtype)
        return dq, dk, dv, d_sinks, None, None, None


def _gradients(
    q: Float[Tensor, "b h q d"],
    k: Float[Tensor, "b kv k d"],
    v: Float[Tensor, "b kv k d_v"],
    mask: TileMask,
    scale: float,
    softcap: float | None,
    d_out: Float[Tensor, "b h q d_v"],
    delta: Float[Tensor, "b h q"],
    lse: Float[Tensor, "b h q"],
) -> tuple[Float[Tensor, "b h q d"], Float[Tensor, "b kv k d"], Float[Tensor, "b kv k d_v"]]:
    group, (n_b, n_heads, n_queries, _) = q.shape[1] // k.shape[1], q.shape
    dq = torch.zeros_like(q, dtype=torch.float32)
    dk, dv = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
    for batch, rows in _blocks(n_b, n_heads, n_queries, k.shape[2], q.device):
        lo, hi = mask.key_range(rows)
        span = slice(lo, hi)

        def grouped(x: Tensor, batch: slice = batch, rows: Int[Tensor, " r"] = rows) -> Tensor:
            return rearrange(x[batch][:, :, rows].float(), "b (kv g) ... -> b kv g ...", g=group)

        queries, keys, values = grouped(q), k[batch, :, span].float(), v[batch, :, span].float()
        scores = einsum(queries, keys, "b kv g q d, b kv k d -> b kv g q k") * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.exp(scores - grouped(lse)[..., None])
        for first, hidden in mask.hidden(batch, rows, (lo, hi)):
            weights[..., first - lo : first - lo + hidden.shape[-1]].masked_fill_(per_head(hidden), 0)
        d_rows = grouped(d_out)
        dv[batch, :, span] += einsum(weights, d_rows, "b kv g q k, b kv g q d -> b kv k d")
        d_scores = einsum(d_rows, values, "b kv g q d, b kv k d -> b kv g q k").sub_(grouped(delta)[..., None])
        d_scores.mul_(weights).mul_(scale)
        if softcap is not None:
            d_scores.mul_(1 - (scores / softcap) ** 2)
        dq[batch, :, rows] = rearrange(
            einsum(d_scores, keys, "b kv g q k, b kv k d -> b kv g q d"), "b kv g q d -> b (kv g) q d"
        )
        dk[batch, :, span] += einsum(d_scores, queries, "b kv g q k, b kv g q d -> b kv k d")
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _blocks(
    n_sequences: int, n_heads: int, n_queries: int, n_keys: int, device: torch.device
) -> list[tuple[slice, Int[Tensor, " r"]]]:
    row_bytes = 4 * n_heads * n_keys
    step_b = max(1, min(n_sequences, _BLOCK_BYTES // (n_queries * row_bytes)))
    step_r = max(16, min(n_queries, _BLOCK_BYTES // (step_b * row_bytes)))
    return [
        (slice(b, min(n_sequences, b + step_b)), torch.arange(r, min(n_queries, r + step_r), device=device))
        for b in range(0, n_sequences, step_b)
        for r in range(0, n_queries, step_r)
    ]
