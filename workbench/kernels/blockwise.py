"""Row-blocked attention with exact statistics in torch, on any device: a block of query rows against its keys.

Per block: one matrix product for the scores, softmax in place, one matrix product with v and a few extra columns
that give the output, the denominator, the mean distance and the far mass together. Only entropy needs one more pass.
Memory is O(tile), whatever the length. Reads and writes per query row and head, k keys of width d: 4·k bytes of scores
written once and passed over three times (four with entropy) in cache; k and v once per block.
Accumulators are float32; tested to 2e-6 relative of the float64 reference.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels.masks import TileMask, per_head
from workbench.kernels.statistics import Request, RowStatistics
from workbench.kernels.tiles import TILE_BYTES, Collector, Columns, Scratch, Tile, batches, weighted_columns

# Hidden scores are finite: exp gives an exact 0 and 0 · hidden stays 0, where −inf would give NaN in the entropy.
_HIDDEN = -1e30


def attention_statistics(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    mask: TileMask,
    request: Request,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
    tile_bytes: int = TILE_BYTES,
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    """Softmax attention's output and the statistics of its rows; both of `request.rows` only, where given.

    Rows that see no key at all (padding) give zero output, zero mass and lse −inf.

    Raises:
        WorkbenchError: if n_heads is not a multiple of n_kv_heads.
    """
    group = _group(q, k)
    n_sequences, n_heads, n_queries, _ = q.shape
    n_keys, offset = k.shape[2], k.shape[2] - n_queries
    rows = _rows(request, n_queries, q)
    out = torch.empty(n_sequences, len(rows), n_heads, v.shape[-1], dtype=v.dtype, device=v.device)
    collector = Collector(request, n_sequences, n_heads, n_queries, rows)
    scratch = Scratch(q.device)
    for batch, heads, tiles in batches(n_sequences, k.shape[1], group, rows, n_keys, tile_bytes):
        queries = rearrange(q[batch], "b (kv g) q d -> b kv g q d", g=group)[:, heads]
        keys_t = _turned(k[batch, heads].float())
        columns = Columns(v[batch, heads], (keys_t.shape[0], keys_t.shape[1], n_keys), request, batch, q)
        sink = None if sinks is None else rearrange(sinks.float(), "(kv g) -> 1 kv g 1", g=group)[:, heads]
        for tile in tiles:
            span = mask.key_range(tile.rows)
            positions = tile.rows + offset
            scores = _scores(queries, keys_t, tile.rows, span, scale, scratch)
            if softcap is not None:
                scores.div_(softcap).tanh_().mul_(softcap)
            for first, hidden in mask.hidden(batch, tile.rows, span):
                scores[..., first - span[0] : first - span[0] + hidden.shape[-1]].masked_fill_(
                    per_head(hidden), _HIDDEN
                )
            top = scores.amax(-1)
            is_empty = top <= _HIDDEN / 2
            if sink is not None:
                top = torch.maximum(top, sink)
            shifted = scores.sub_(top[..., None])
            weights = torch.exp(shifted, out=scratch.second(shifted) if request.entropy else shifted)
            sums = weighted_columns(weights, columns.aim(int(positions[0]), span))
            seen = sums[..., columns.width_v]
            total = seen if sink is None else seen + torch.exp(sink - top)
            total = torch.where(is_empty, torch.inf, total)
            value = sums[..., : columns.width_v] / total[..., None]
            out[batch, tile.span, tile.heads(group)] = rearrange(value, "b kv g q d -> b q (kv g) d").to(out.dtype)
            collector.put(collector.lse, tile, torch.where(is_empty, -torch.inf, top + total.log()))
            if request.entropy:
                dot = torch.linalg.vecdot(weights, shifted)
                if sink is not None:
                    dot = dot + torch.exp(sink - top) * (sink - top)
                collector.put(collector.entropy, tile, torch.where(is_empty, 0, total.log() - dot / total))
            _collect_linear(collector, columns, tile, weights, sums, total, positions, span)
            collector.read_cells(tile, weights, total, span)
    return out, collector.finish()


def _collect_linear(
    collector: Collector,
    columns: Columns,
    tile: Tile,
    weights: Float[Tensor, "b kv g q k"],
    sums: Float[Tensor, "b kv g q c"],
    total: Float[Tensor, "b kv g q"],
    positions: Int[Tensor, " q"],
    span: tuple[int, int],
) -> None:
    """Store the statistics that are linear in the weights: mass, mean distance, far mass."""
    seen, column = sums[..., columns.width_v], columns.width_v + 1
    collector.put(collector.mass, tile, seen / total)
    if collector.mean_distance is not None:
        ahead = (positions - positions[0]).to(seen.dtype)
        collector.put(collector.mean_distance, tile, (ahead * seen - sums[..., column]) / total)
        column += 1
    if collector.far_mass is not None:
        far = sums[..., column] + columns.far_edge(weights, positions, span)
        collector.put(collector.far_mass, tile, far / total)


def _scores(
    queries: Float[Tensor, "b kv g q d"],
    keys_t: Float[Tensor, "b kv d k"],
    rows: Int[Tensor, " q2"],
    span: tuple[int, int],
    scale: float,
    scratch: Scratch,
) -> Float[Tensor, "b kv g q2 k2"]:
    picked = queries[:, :, :, rows].float() * scale
    n_b, n_kv, group, n_rows, _ = picked.shape
    tile = scratch.take(0, (n_b * n_kv, group * n_rows, span[1] - span[0]))
    torch.bmm(
        rearrange(picked, "b kv g q d -> (b kv) (g q) d"),
        rearrange(keys_t[..., slice(*span)], "b kv d k -> (b kv) d k"),
        out=tile,
    )
    return rearrange(tile, "(b kv) (g q) k -> b kv g q k", b=n_b, g=group)


def _turned(k: Float[Tensor, "b kv k d"]) -> Float[Tensor, "b kv d k"]:
    return rearrange(k, "b kv k d -> b kv d k")


def _group(q: Tensor, k: Tensor) -> int:
    if q.shape[1] % k.shape[1]:
        raise WorkbenchError(
            f"{q.shape[1]} query heads cannot share {k.shape[1]} key/value heads evenly; expected a multiple"
        )
    return q.shape[1] // k.shape[1]


def _rows(request: Request, n_queries: int, like: Tensor) -> Int[Tensor, " q"]:
    if request.rows is None:
        return torch.arange(n_queries, device=like.device)
    return request.rows.to(like.device)
