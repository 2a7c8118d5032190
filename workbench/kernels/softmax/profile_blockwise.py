"""Attention profiles row-blocked in torch, on any device: the statistics of `blockwise` for every row, and more.

A pass at the speed of memory for each statistic, of 4 bytes per query row, head and key, which stay in cache; memory is
O(tile). Arg-maxima come from the maxima of runs of columns, the ladder of windows from sums between its steps.
float32 throughout; tested to 2e-6 relative of the float64 definitions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from workbench.kernels.intervals import Intervals
from workbench.kernels.softmax.profiles import AttentionProfile, ProfileRequest
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer
from workbench.kernels.softmax.tile_sums import distance_sum, ladder
from workbench.kernels.tiles import Cut, Scratch, Tile, within_memory


def attention_profile(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    seen: Intervals,
    request: ProfileRequest,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
    tile_bytes: int | None = None,
) -> AttentionProfile:
    """Output and row statistics of one layer, for masks that are intervals; memory and tiles as in the statistics."""
    layer = SoftmaxLayer(q, k, seen, scale, softcap, sinks)
    return within_memory(
        lambda cut: _profile(layer, v, seen.position, request, cut),
        layer.shape,
        n_rows=q.shape[2],
        n_keys=k.shape[2],
        tile_bytes=tile_bytes,
    )


def _profile(
    layer: SoftmaxLayer,
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    position: Int[Tensor, " q"],
    request: ProfileRequest,
    cut: Cut,
) -> AttentionProfile:
    profile = _blank(layer.q, v, request, has_sinks=layer.sinks is not None)
    scratch = Scratch(layer.q.device, cut.largest)
    for tiles in cut.tiles(torch.arange(len(position), device=position.device), layer.mask):
        positions, keys = position[tiles[0].span], tiles[0].keys
        far = ladder(positions, keys, request.windows) if request.windows else None
        same = _same_tags(request, tiles[0])
        for tile in tiles:
            at = (tile.batch, tile.heads(layer.group), tile.span)
            found = layer.softmax(tile, scratch, keep_shifted=request.entropy, find_best=request.top)
            _put(profile.lse, at, found.lse())
            if v is not None and profile.out is not None:
                value = found.output(v[tile.batch, tile.kv_heads, slice(*keys)].float())
                profile.out[at] = value.flatten(1, 2).to(profile.out.dtype)
            if request.entropy:
                _put(profile.entropy, at, found.entropy())
            if found.best is not None:
                _put(profile.top_key, at, torch.where(found.is_blind, -1, found.best + keys[0]).int())
                _put(profile.top_mass, at, torch.exp2(found.highest - found.top) / found.total)
            if request.distance:
                distance = distance_sum(found.weights, found.seen, positions, keys)
                _put(profile.mean_distance, at, distance / found.total)
            if far is not None:
                masses = torch.stack(far.masses(found.weights), -1)
                _put(profile.beyond, at, masses / found.total[..., None])
            if same is not None:
                tagged = torch.mul(found.weights, same, out=scratch.second(found.weights))
                _put(profile.tag_mass, at, tagged.sum(-1) / found.total)
            if found.sink is not None:
                _put(profile.sink_mass, at, torch.exp2(found.sink - found.top) / found.total)
    return profile


def _same_tags(request: ProfileRequest, tile: Tile) -> Float[Tensor, "#b 1 1 q k"] | None:
    """1 where a key has its query's tag."""
    if request.query_tags is None or request.key_tags is None:
        return None
    of_queries, of_keys = (x[tile.batch] if len(x) > 1 else x for x in (request.query_tags, request.key_tags))
    of_queries, of_keys = of_queries[:, None, None, tile.span, None], of_keys[:, None, None, None, slice(*tile.keys)]
    # Comparing into float32 takes a seventh of the time of comparing and converting.
    return torch.eq(of_queries, of_keys, out=torch.empty(0, device=of_keys.device))


def _put(buffer: Tensor | None, at: tuple[slice, slice, slice], values: Shaped[Tensor, "b kv g *rest"]) -> None:
    assert buffer is not None
    buffer[at] = values.flatten(1, 2)


def _blank(q: Tensor, v: Tensor | None, request: ProfileRequest, *, has_sinks: bool) -> AttentionProfile:
    """A profile to be written into."""

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
        sink_mass=empty() if has_sinks else None,
    )


def column_sums(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    lse: Float[Tensor, "b n_heads q"],
    seen: Intervals,
    *,
    scale: float,
    softcap: float | None = None,
    tile_bytes: int | None = None,
) -> Float[Tensor, "b n_heads k"]:
    """What each key receives, Σ_i p_ij, from the rows' denominators."""
    layer = SoftmaxLayer(q, k, seen, scale, softcap, None)

    def compute(cut: Cut) -> Float[Tensor, "b n_heads k"]:
        sums, scratch = torch.zeros(*q.shape[:2], k.shape[2], device=q.device), Scratch(q.device, cut.largest)
        for tiles in cut.tiles(torch.arange(q.shape[2], device=q.device), seen):
            for tile in tiles:
                weights = layer.weights(tile, lse, scratch)
                sums[tile.batch, tile.heads(layer.group), slice(*tile.keys)] += weights.sum(-2).flatten(1, 2)
        return sums

    return within_memory(compute, layer.shape, n_rows=q.shape[2], n_keys=k.shape[2], tile_bytes=tile_bytes)
