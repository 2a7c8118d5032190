"""Attention's output under any mask with a backward pass, row-blocked both ways: memory is O(tokens), never T × T.

Forward keeps q, k, v, the output and one number per row, the lse; backward makes each tile of weights again from it.
Accumulators are float32; gradients are tested to 2e-6 relative of float64 autograd on the dense form.

Reference:
    Dao et al. 2022, FlashAttention, algorithm 4; a learned sink is one more key without a value.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from workbench.kernels.masks import TileMask
from workbench.kernels.softmax.blockwise import attention_statistics
from workbench.kernels.softmax.gradients import attention_backward
from workbench.kernels.softmax.statistics import Request


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
        out, d_out = (rearrange(x, "b q h d -> b h q d") for x in (out, *gradients))
        nothing = torch.zeros_like(lse)
        dq, dk, dv = attention_backward(
            d_out, nothing, q, k, v, out, lse, ctx.mask, scale=ctx.scale, softcap=ctx.softcap
        )
        d_sinks = None
        if sinks is not None:
            # The sink is a key without a value: its weight flows against what the row's output gains.
            share = torch.exp(rearrange(sinks.float(), "h -> 1 h 1") - lse)
            gain = (d_out.float() * out.float()).sum(-1)
            d_sinks = -reduce(share * gain, "b h q -> h", "sum").to(sinks.dtype)
        return dq, dk, dv, d_sinks, None, None, None
