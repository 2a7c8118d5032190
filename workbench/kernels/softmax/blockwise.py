"""Softmax attention with exact statistics, row-blocked in torch, on any device: a block of query rows against its keys.

Per tile: one matrix product for the scores, softmax in place, one matrix product with v, and a pass at the speed of
memory for each statistic. Memory is O(tile), whatever the length. Reads and writes per query row and head, k keys of
width d: 4·k bytes of scores written once and passed over in cache four to eight times; k and v once per block.
Arg-maxima come from the maxima of runs of columns, the ladder of windows from sums between its steps.
Under a selection, k counts the keys that some row of a block selects: k and v are copied for these, no others are read.
Accumulators are float32; tested to 2e-6 relative of the float64 reference.
"""

from __future__ import annotations

import threading

import torch
from einops import einsum, repeat
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from workbench.kernels.softmax.row_sums import RowSums, runs_of_rows
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer
from workbench.kernels.softmax.statistics_collector import Collector
from workbench.kernels.softmax.statistics_request import AttentionProfile, Request, RowStatistics
from workbench.kernels.softmax.tile_sums import beyond, distance_sum, ladder_of
from workbench.kernels.tiles import Cut, Scratch, Tile, within_memory


def blockwise_statistics(
    layer: SoftmaxLayer, v: Float[Tensor, "b n_kv_heads k d_v"], request: Request, *, tile_bytes: int | None = None
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    """The output and the statistics of a layer's rows; both of `request.rows` only, where given.

    Rows that see no key at all (padding) give zero output and zero mass, and lse −inf unless there is a learned sink.
    Tiles have `tile_bytes`, the fastest size where absent; where memory runs out they are halved.

    Raises:
        WorkbenchError: if tiles of one row do not fit the memory either.
    """
    assert request.is_of_rows, "arg-maxima of all rows and tags are statistics of a profile"
    n_queries, device = layer.q.shape[2], layer.q.device
    rows = torch.arange(n_queries, device=device) if request.rows is None else request.rows.to(device)

    def compute(cut: Cut) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
        try:
            return _statistics(layer, v, request, rows, cut)
        except RuntimeError:  # memory may have run out: the next try begins with buffers of its own, smaller size
            request.scratches.pop(_owner(rows), None)
            raise

    return within_memory(compute, layer.shape, n_rows=len(rows), n_keys=v.shape[2], tile_bytes=tile_bytes)


def _owner(rows: Int[Tensor, " q2"]) -> tuple[torch.device, int]:
    """Whose buffers they are: threads that share a request must not write into each other's tiles."""
    return rows.device, threading.get_ident()


def _statistics(
    layer: SoftmaxLayer,
    v: Float[Tensor, "b n_kv_heads k d_v"],
    request: Request,
    rows: Int[Tensor, " q2"],
    cut: Cut,
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    n_sequences, n_heads, n_queries, _ = layer.q.shape
    out = torch.empty(n_sequences, len(rows), n_heads, v.shape[-1], dtype=v.dtype, device=v.device)
    collector = Collector(request, (n_sequences, n_heads, n_queries, v.shape[2]), rows)
    sums = RowSums(request, layer.shape, len(rows), rows.device)
    norms = v.float().norm(dim=-1) if request.value_norms else None
    # All layers that the request goes to share the buffers: fresh ones cost a page fault for every 4 KB.
    scratch = request.scratches.setdefault(_owner(rows), Scratch(rows.device))
    scratch.grow(cut.largest)
    for run in runs_of_rows(layer, request, rows, cut, collector):
        for tile in run.tiles:
            softmax = layer.softmax(tile, scratch, keep_shifted=request.entropy)
            weights, total = softmax.weights, softmax.total
            value = softmax.output(tile.keys_in(v), scratch)
            out[tile.batch, tile.span, tile.heads(layer.group)] = value.flatten(1, 2).transpose(1, 2)
            sums.add(run, tile, softmax)
            if run.windows is not None:
                masses = beyond(run.windows, weights, run.first)
                collector.put(collector.beyond, tile, masses / total[..., None])
            if norms is not None:
                collector.put(collector.output_norm, tile, value.norm(dim=-1))
                key_norms = norms[tile.batch, tile.kv_heads, tile.key_index]
                weighted = einsum(weights, key_norms, "b kv g q k, b kv k -> b kv g q")
                collector.put(collector.value_norm, tile, weighted / total)
            collector.read_sums(tile, weights, weights, total)
            collector.read(run.reads, tile, weights, total)
    sums.finish(layer, collector)
    return out, collector.finish(None if norms is None else _of_first(norms, request, layer.group))


def _of_first(norms: Float[Tensor, "b n_kv_heads k"], request: Request, group: int) -> Float[Tensor, "b n_heads 1"]:
    """The value norm of each sequence's first key, for every query head."""
    first = torch.zeros(len(norms), dtype=torch.long, device=norms.device) if request.first is None else request.first
    by_kv_head = norms[torch.arange(len(norms), device=norms.device), :, first.to(norms.device)]
    return repeat(by_kv_head, "b kv -> b (kv g) 1", g=group)


def blockwise_profile(
    layer: SoftmaxLayer,
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    request: Request,
    *,
    tile_bytes: int | None = None,
) -> AttentionProfile:
    """The profile of a layer whose mask is `Intervals`, or selects of them; tiles as in `blockwise_statistics`."""
    position = layer.profile_mask[0].position
    return within_memory(
        lambda cut: _profile(layer, v, position, request, cut),
        layer.shape,
        n_rows=layer.q.shape[2],
        n_keys=layer.k.shape[2],
        tile_bytes=tile_bytes,
    )


def _profile(
    layer: SoftmaxLayer,
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    position: Int[Tensor, " q"],
    request: Request,
    cut: Cut,
) -> AttentionProfile:
    profile = _blank(layer, v, request)
    scratch = Scratch(layer.q.device, cut.largest)
    for tiles in cut.tiles(torch.arange(len(position), device=position.device), layer.mask):
        positions = position[tiles[0].span]
        far = ladder_of(tiles[0], positions, request.windows) if request.windows else None
        same = _same_tags(request, tiles[0])
        for tile in tiles:
            block = (tile.batch, tile.heads(layer.group), tile.span)
            softmax = layer.softmax(tile, scratch, keep_shifted=request.entropy, find_best=request.top)
            weights, total = softmax.weights, softmax.total
            _put(profile.lse, block, softmax.lse())
            if v is not None and profile.out is not None:
                value = softmax.output(tile.keys_in(v), scratch)
                profile.out[block] = value.flatten(1, 2).to(profile.out.dtype)
            if request.entropy:
                _put(profile.entropy, block, softmax.entropy())
            if softmax.best is not None:
                _put(profile.top_key, block, torch.where(softmax.is_blind, -1, tile.keys_of(softmax.best)).int())
                _put(profile.top_mass, block, torch.exp2(softmax.highest - softmax.top) / total)
            if request.distance:
                _put(profile.mean_distance, block, distance_sum(weights, softmax.seen, positions, tile) / total)
            if far is not None:
                _put(profile.beyond, block, torch.stack(far.masses(weights), -1) / total[..., None])
            if same is not None:
                tagged = torch.mul(weights, same, out=scratch.second(weights))
                _put(profile.tag_mass, block, tagged.sum(-1) / total)
            if softmax.sink is not None:
                _put(profile.sink_mass, block, torch.exp2(softmax.sink - softmax.top) / total)
    return profile


def _same_tags(request: Request, tile: Tile) -> Float[Tensor, "#b 1 1 q k"] | None:
    """1 where a key has its query's tag."""
    if request.query_tags is None or request.key_tags is None:
        return None
    of_queries, of_keys = (x[tile.batch] if len(x) > 1 else x for x in (request.query_tags, request.key_tags))
    of_queries, of_keys = of_queries[:, None, None, tile.span, None], of_keys[:, None, None, None, tile.key_index]
    # Comparing into float32 takes a seventh of the time of comparing and converting.
    return torch.eq(of_queries, of_keys, out=torch.empty(0, device=of_keys.device))


def _put(buffer: Tensor | None, block: tuple[slice, slice, slice], values: Shaped[Tensor, "b kv g *rest"]) -> None:
    assert buffer is not None
    buffer[block] = values.flatten(1, 2)


def _blank(layer: SoftmaxLayer, v: Tensor | None, request: Request) -> AttentionProfile:
    """A profile with uninitialised memory."""
    q = layer.q

    def empty(*more: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*q.shape[:3], *more, dtype=dtype, device=q.device)

    return AttentionProfile(
        out=None if v is None else empty(v.shape[-1], dtype=q.dtype),
        lse=empty(),
        entropy=empty() if request.entropy else None,
        top_key=empty(dtype=torch.int32) if request.top else None,
        top_mass=empty() if request.top else None,
        mean_distance=empty() if request.distance else None,
        beyond=empty(len(request.windows)) if request.windows else None,
        tag_mass=empty() if request.query_tags is not None else None,
        sink_mass=None if layer.sinks is None else empty(),
    )


def blockwise_column_sums(
    layer: SoftmaxLayer, lse: Float[Tensor, "b n_heads q"], *, tile_bytes: int | None = None
) -> Float[Tensor, "b n_heads k"]:
    """Attention received by each key, Σ_i p_ij, from the rows' denominators."""
    q, n_keys = layer.q, layer.k.shape[2]

    def compute(cut: Cut) -> Float[Tensor, "b n_heads k"]:
        sums, scratch = torch.zeros(*q.shape[:2], n_keys, device=q.device), Scratch(q.device, cut.largest)
        for tiles in cut.tiles(torch.arange(q.shape[2], device=q.device), layer.mask):
            for tile in tiles:
                weights = layer.weights(tile, lse, scratch)
                sums[tile.batch, tile.heads(layer.group), tile.key_index] += weights.sum(-2).flatten(1, 2)
        return sums

    return within_memory(compute, layer.shape, n_rows=q.shape[2], n_keys=n_keys, tile_bytes=tile_bytes)
