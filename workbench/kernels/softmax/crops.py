"""Crops of a pattern: exact probabilities of chosen queries on chosen keys, for looking at one head."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.masks import TileMask, visible_tile
from workbench.kernels.softmax.blockwise import attention_statistics
from workbench.kernels.softmax.statistics import Request

_ROWS = 128


def attention_crop(
    q: Float[Tensor, "q d"],
    k: Float[Tensor, "k d"],
    mask: TileMask,
    *,
    queries: Int[Tensor, " rows"],
    keys: Int[Tensor, " columns"],
    scale: float,
    softcap: float | None = None,
    sink: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "rows columns"]:
    """Attention probabilities of one head on one sequence; the denominator runs over all keys the mask allows."""
    crop = torch.empty(len(queries), len(keys), device=q.device)
    for first in range(0, len(queries), _ROWS):
        rows, place = torch.sort(queries[first : first + _ROWS])
        _, statistics = attention_statistics(
            rearrange(q, "q d -> 1 1 q d"),
            rearrange(k, "k d -> 1 1 k d"),
            torch.empty(1, 1, len(k), 0, device=q.device),
            mask,
            Request(rows=rows),
            scale=scale,
            softcap=softcap,
            sinks=None if sink is None else rearrange(sink, "-> 1"),
        )
        scores = scale * einsum(q[rows].float(), k[keys].float(), "q d, k d -> q k")
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        visible = visible_tile(mask, slice(0, 1), rows, len(k))[0][:, keys]
        lse = rearrange(statistics.lse[0, 0], "q -> q 1")
        crop[first + place] = torch.where(visible, torch.exp(scores - lse), 0)
    return crop
