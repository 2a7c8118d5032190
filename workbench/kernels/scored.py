"""Attention statistics from scores that a model has already made: T × T of one layer, read a block of rows at a time.

For families that form their scores themselves and hand out no queries and keys. Per tile: mask, softmax, one product
with v, one pass for each statistic. Reads 4·k bytes of scores per query row and head, and v once per block; memory
beside the scores is O(tile). Accumulators are float32; tested to 2e-6 relative of the float64 reference.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.kernels.masks import TileMask, per_head, visible_tile
from workbench.kernels.statistics import Far, Request, RowStatistics
from workbench.kernels.tiles import TILE_BYTES, Collector, batches


def scored_statistics(
    scores: Float[Tensor, "b n_heads q k"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    mask: TileMask,
    request: Request,
    *,
    tile_bytes: int = TILE_BYTES,
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    """Softmax attention's output and the statistics of its rows; both of `request.rows` only, where given.

    Shapes:
        scores: scaled, with every bias; cells that `mask` hides may hold anything.

    Rows that see no key at all (padding) give zero output, zero mass and lse −inf.
    """
    n_sequences, n_heads, n_queries, n_keys = scores.shape
    group = n_heads // v.shape[1]
    rows = torch.arange(n_queries, device=scores.device) if request.rows is None else request.rows.to(scores.device)
    out = torch.empty(n_sequences, len(rows), n_heads, v.shape[-1], dtype=v.dtype, device=v.device)
    collector = Collector(request, n_sequences, n_heads, n_queries, rows)
    for batch, heads, tiles in batches(n_sequences, v.shape[1], group, rows, n_keys, tile_bytes):
        values = v[batch, heads].float()
        for tile in tiles:
            visible = visible_tile(mask, batch, tile.rows, n_keys)
            picked = rearrange(scores[batch, tile.heads(group), tile.rows], "b (kv g) q k -> b kv g q k", g=group)
            masked, lse, weights = _softmax(picked, per_head(visible))
            value = einsum(weights, values, "b kv g q k, b kv k d -> b q kv g d")
            out[batch, tile.span, tile.heads(group)] = rearrange(value, "b q kv g d -> b q (kv g) d").to(out.dtype)
            mass = weights.sum(-1)
            collector.put(collector.lse, tile, lse)
            collector.put(collector.mass, tile, mass)
            if request.entropy:
                # −Σ p ln p with ln p = s − lse; hidden cells have p = 0 and s = 0, where −inf would give NaN.
                entropy = torch.where(mass > 0, lse * mass, 0) - torch.linalg.vecdot(weights, masked)
                collector.put(collector.entropy, tile, entropy)
            distance = (tile.rows + n_keys - n_queries)[:, None] - torch.arange(n_keys, device=scores.device)
            if request.distance:
                collector.put(collector.mean_distance, tile, (weights * distance).sum(-1))
            if request.far is not None:
                is_far = _is_far(distance, request.far, _first(request, batch, scores))
                collector.put(collector.far_mass, tile, (weights * per_head(is_far)).sum(-1))
            collector.read_cells(tile, weights, torch.ones_like(lse), (0, n_keys))
    return out, collector.finish()


def scored_crop(
    scores: Float[Tensor, "q k"],
    mask: TileMask,
    *,
    queries: Int[Tensor, " rows"],
    keys: Int[Tensor, " columns"],
) -> Float[Tensor, "rows columns"]:
    """Attention probabilities of one head on one sequence; the denominator runs over all keys the mask allows."""
    rows, place = torch.sort(queries)
    visible = visible_tile(mask, slice(0, 1), rows, scores.shape[-1])[0]
    crop = torch.empty(len(queries), len(keys), device=scores.device)
    crop[place] = _softmax(scores[rows], visible)[2][:, keys]
    return crop


def _softmax(
    scores: Float[Tensor, "*h q k"], visible: Bool[Tensor, "*#h q k"]
) -> tuple[Float[Tensor, "*h q k"], Float[Tensor, "*h q"], Float[Tensor, "*h q k"]]:
    """The scores with 0 where hidden, the log of each row's denominator, and the probabilities."""
    hidden = scores.float().masked_fill(~visible, -torch.inf)
    lse = hidden.logsumexp(-1)
    weights = torch.exp(hidden - torch.where(torch.isneginf(lse), 0, lse)[..., None])
    return hidden.masked_fill_(~visible, 0), lse, weights


def _is_far(distance: Int[Tensor, "q k"], far: Far, first: Int[Tensor, " b"]) -> Bool[Tensor, "b q k"]:
    after_sink = torch.arange(distance.shape[1], device=distance.device) >= first[:, None] + far.sink
    return (distance >= far.window) & rearrange(after_sink, "b k -> b 1 k")


def _first(request: Request, batch: slice, like: Tensor) -> Int[Tensor, " b"]:
    if request.first is None:
        return torch.zeros(batch.stop - batch.start, dtype=torch.long, device=like.device)
    return request.first[batch].to(like.device)
