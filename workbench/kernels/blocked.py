"""Attention profiles row-blocked in torch, on any device: a block of query rows against the keys that any of it sees.

One matrix product gives the scores; a second one with v, ones, relative positions and far indicators as columns gives
output, denominator, mean distance and whole-column far mass. Entropy, arg-max and tags are one more pass each.
Bytes per query row, head and key: 4, written once and passed over in cache three to six times; memory is O(tile).
float32 throughout; tested to 2e-6 relative of the float64 definitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.intervals import Intervals
from workbench.kernels.profiles import AttentionProfile, ProfileRequest, sink_share
from workbench.kernels.tiles import TILE_BYTES

_HIDDEN = -1e30


@dataclass(frozen=True, slots=True)
class Band:
    """A block of query rows of one sequence, and the run of keys that any of them sees; `hidden` where some do not."""

    rows: slice
    keys: slice
    hidden: Tensor | None


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
    tile_bytes: int = TILE_BYTES,
) -> AttentionProfile:
    """Output and row statistics of one layer."""
    profile = _blank(q, v, request, has_sinks=sinks is not None)
    group = q.shape[1] // k.shape[1]
    columns = _Columns(k.shape[2], v, request)
    position = seen.position.long()
    for b in range(len(q)):
        cut = bands(seen, b, group, k.shape[2], tile_bytes)
        # A fresh allocation per tile would cost as much as a pass over it.
        size = max(group * (x.rows.stop - x.rows.start) * (x.keys.stop - x.keys.start) for x in cut)
        scratch = [torch.empty(size, device=q.device) for _ in range(2 if request.entropy else 1)]
        for kv_head in range(k.shape[1]):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            keys_t = rearrange(k[b, kv_head].float(), "k d -> d k")
            columns.aim(b, kv_head)
            sink = None if sinks is None else rearrange(sinks[heads].float(), "g -> g 1")
            for band in cut:
                at = (b, heads, band.rows)
                scores = band_scores(q[at], keys_t, band, scale=scale, softcap=softcap, scratch=scratch[0])
                tile = _softmax(scores, sink, columns, band, position, request, scratch[-1])
                _write(profile, at, tile, columns, request)
    if sinks is not None and profile.sink_mass is not None:
        share = sink_share(sinks, profile.lse)
        assert share is not None
        profile.sink_mass.copy_(share)
    return profile


def column_sums(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    lse: Float[Tensor, "b n_heads q"],
    seen: Intervals,
    *,
    scale: float,
    softcap: float | None = None,
    tile_bytes: int = TILE_BYTES,
) -> Float[Tensor, "b n_heads k"]:
    """What each key receives, Σ_i p_ij, from the rows' denominators."""
    group = q.shape[1] // k.shape[1]
    sums = torch.zeros(*q.shape[:2], k.shape[2], device=q.device)
    for b in range(len(q)):
        cut = bands(seen, b, group, k.shape[2], tile_bytes)
        for kv_head in range(k.shape[1]):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            keys_t = rearrange(k[b, kv_head].float(), "k d -> d k")
            for band in cut:
                weights = band_weights(q, keys_t, lse, band, (b, heads, band.rows), scale=scale, softcap=softcap)
                sums[b, heads, band.keys] += weights.sum(1)
    return sums


def attention_backward(
    d_out: Float[Tensor, "b n_heads q d_v"] | None,
    d_lse: Float[Tensor, "b n_heads q"],
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    out: Float[Tensor, "b n_heads q d_v"] | None,
    lse: Float[Tensor, "b n_heads q"],
    seen: Intervals,
    *,
    scale: float,
    softcap: float | None = None,
) -> tuple[
    Float[Tensor, "b n_heads q d"], Float[Tensor, "b n_kv_heads k d"], Float[Tensor, "b n_kv_heads k d_v"] | None
]:
    """Gradients of q, k and v from those of the output and of lse; statistics are for reading and pass none."""
    group = q.shape[1] // k.shape[1]
    dq, dk = torch.zeros_like(q, dtype=torch.float32), torch.zeros_like(k, dtype=torch.float32)
    dv = None if v is None else torch.zeros_like(v, dtype=torch.float32)
    for b in range(len(q)):
        cut = bands(seen, b, group, k.shape[2])
        for kv_head in range(k.shape[1]):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            keys = k[b, kv_head].float()
            keys_t = rearrange(keys, "k d -> d k")
            for band in cut:
                at, columns = (b, heads, band.rows), (b, kv_head, band.keys)
                scores = band_scores(q[at], keys_t, band, scale=scale, softcap=softcap)
                weights = torch.exp(scores - lse[at].clamp_min(_HIDDEN / 2)[..., None])
                flow = rearrange(d_lse[at].float(), "g q -> g q 1")
                if d_out is not None and out is not None and v is not None and dv is not None:
                    upstream = d_out[at].float()
                    dv[columns] += einsum(weights, upstream, "g q k, g q e -> k e")
                    flow = flow - (upstream * out[at].float()).sum(-1, keepdim=True)
                    flow = flow + einsum(upstream, v[columns].float(), "g q e, k e -> g q k")
                d_scores = weights * flow * scale
                if softcap is not None:
                    d_scores = d_scores * (1 - (scores / softcap).clamp(-1, 1) ** 2)
                dq[at] = einsum(d_scores, keys[band.keys], "g q k, k d -> g q d")
                dk[columns] += einsum(d_scores, q[at].float(), "g q k, g q d -> k d")
    return dq.to(q.dtype), dk.to(k.dtype), None if dv is None or v is None else dv.to(v.dtype)


def bands(seen: Intervals, b: int, group: int, n_keys: int, tile_bytes: int = TILE_BYTES) -> list[Band]:
    """Cut sequence b's rows so that a tile of float32 scores of one key/value head fits `tile_bytes`."""
    low, high = seen.low[b % len(seen.low)], seen.high[b % len(seen.high)]
    step = max(16, min(128, tile_bytes // max(1, 4 * group * n_keys)))
    found: list[Band] = []
    for start in range(0, len(low), step):
        rows = slice(start, min(len(low), start + step))
        lowest, highest_low = (int(x) for x in low[rows].aminmax())
        lowest_high, highest = (int(x) for x in high[rows].aminmax())
        first = max(0, min(lowest, n_keys - 1))
        keys = slice(first, max(first + 1, highest))
        hidden = None
        if highest_low > keys.start or lowest_high < keys.stop:
            j = torch.arange(keys.start, keys.stop, device=low.device)
            hidden = (j < low[rows, None]) | (j >= high[rows, None])
        found.append(Band(rows, keys, hidden))
    return found


def band_scores(
    q: Float[Tensor, "g q d"],
    keys_t: Float[Tensor, "d k"],
    band: Band,
    *,
    scale: float,
    softcap: float | None,
    scratch: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "g q k2"]:
    """Scaled and capped scores of a band, hidden cells at −1e30; written into `scratch` where given."""
    picked = rearrange(q.float() * scale, "g q d -> (g q) d")
    seen = keys_t[:, band.keys]
    into = None if scratch is None else scratch[: len(picked) * seen.shape[1]].view(len(picked), -1)
    tile = torch.matmul(picked, seen, out=into)
    scores = rearrange(tile, "(g q) k -> g q k", g=len(q))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if band.hidden is not None:
        scores.masked_fill_(band.hidden, _HIDDEN)
    return scores


def band_weights(
    q: Float[Tensor, "b n_heads q d"],
    keys_t: Float[Tensor, "d k"],
    lse: Float[Tensor, "b n_heads q"],
    band: Band,
    at: tuple[int, slice, slice],
    *,
    scale: float,
    softcap: float | None,
) -> Float[Tensor, "g q2 k2"]:
    """Probabilities of a band from the rows' denominators."""
    scores = band_scores(q[at], keys_t, band, scale=scale, softcap=softcap)
    return scores.sub_(lse[at].clamp_min(_HIDDEN / 2)[..., None]).exp_()


@dataclass(frozen=True, slots=True)
class _Tile:
    """One band after its softmax: `shifted`, scores below `top`; `weights`, their exponentials; `sums`, of columns."""

    shifted: Tensor
    weights: Tensor
    sums: Tensor
    top: Tensor
    total: Tensor
    highest: Tensor
    best: Tensor | None
    sink: Tensor | None
    band: Band
    here: Tensor

    @property
    def is_empty(self) -> Tensor:
        return self.total.isinf()


class _Columns:
    """Columns beside v, so that one product gives all that is linear in the weights: v, 1, position, far indicators.

    Positions count from the band's first row, because i·Σp − Σp·j loses 1e-7·T tokens in float32.
    """

    def __init__(self, n_keys: int, v: Tensor | None, request: ProfileRequest):
        self.v, self.width, self.windows = v, 0 if v is None else v.shape[-1], request.windows
        self.table: Tensor | None = None
        self.n_keys = n_keys

    def aim(self, b: int, kv_head: int) -> None:
        self._at = (b, kv_head)
        self.table = None

    def of(self, band: Band, first: int, like: Tensor) -> Tensor:
        if self.table is None:
            self.table = like.new_ones(self.n_keys, self.width + 2 + len(self.windows))
            if self.v is not None:
                self.table[:, : self.width] = self.v[self._at]
        part = self.table[band.keys]
        j = torch.arange(band.keys.start, band.keys.stop, device=like.device)
        part[:, self.width + 1] = (j - first).float()
        for n, window in enumerate(self.windows):
            part[:, self.width + 2 + n] = (j <= first - window).float()
        return part


def _softmax(
    scores: Float[Tensor, "g q k"],
    sink: Float[Tensor, "g 1"] | None,
    columns: _Columns,
    band: Band,
    position: Int[Tensor, " t"],
    request: ProfileRequest,
    scratch: Float[Tensor, " n"],
) -> _Tile:
    highest, best = scores.max(-1) if request.top else (scores.amax(-1), None)
    top = highest if sink is None else torch.maximum(highest, sink)
    shifted = scores.sub_(top[..., None])
    into = scratch[: shifted.numel()].view_as(shifted) if request.entropy else shifted
    weights = torch.exp(shifted, out=into)
    here = position[band.rows]
    table = columns.of(band, int(here[0]), weights)
    sums = rearrange(rearrange(weights, "g q k -> (g q) k") @ table, "(g q) c -> g q c", g=len(weights))
    mass = sums[..., columns.width]
    is_blind = highest <= _HIDDEN / 2
    total = torch.where(is_blind, torch.inf, mass) if sink is None else mass + torch.exp(sink - top)
    return _Tile(shifted, weights, sums, top, total, highest, best, sink, band, here)


def _write(
    profile: AttentionProfile,
    at: tuple[int, slice, slice],
    tile: _Tile,
    columns: _Columns,
    request: ProfileRequest,
) -> None:
    total, width = tile.total, columns.width
    profile.lse[at] = torch.where(tile.is_empty, -torch.inf, tile.top + total.log())
    if profile.out is not None:
        profile.out[at] = (tile.sums[..., :width] / total[..., None]).to(profile.out.dtype)
    if profile.entropy is not None:
        dot = torch.linalg.vecdot(tile.weights, tile.shifted)
        if tile.sink is not None:
            below = tile.sink - tile.top
            dot = dot + below.exp() * below
        profile.entropy[at] = torch.where(tile.is_empty, 0, total.log() - dot / total)
    if profile.top_key is not None and profile.top_mass is not None and tile.best is not None:
        is_blind = tile.highest <= _HIDDEN / 2
        profile.top_key[at] = torch.where(is_blind, -1, tile.best + tile.band.keys.start).int()
        profile.top_mass[at] = torch.where(is_blind, 0, torch.exp(tile.highest - tile.top) / total)
    if profile.mean_distance is not None:
        ahead = (tile.here - tile.here[0]).float()
        profile.mean_distance[at] = (ahead * tile.sums[..., width] - tile.sums[..., width + 1]) / total
    if profile.beyond is not None:
        for n, window in enumerate(request.windows):
            far = tile.sums[..., width + 2 + n] + _far_edge(tile, window)
            profile.beyond[(*at, n)] = far / total
    if profile.tag_mass is not None and request.query_tags is not None and request.key_tags is not None:
        query_tags = request.query_tags[at[0] % len(request.query_tags), at[2]]
        key_tags = request.key_tags[at[0] % len(request.key_tags), tile.band.keys]
        profile.tag_mass[at] = (tile.weights * (query_tags[:, None] == key_tags)).sum(-1) / total


def _far_edge(tile: _Tile, window: int) -> Tensor:
    """Far mass on the columns that are far for the band's later rows only."""
    keys = tile.band.keys
    first = max(keys.start, int(tile.here[0]) - window + 1)
    last = min(keys.stop, int(tile.here[-1]) - window + 1)
    if last <= first:
        return torch.zeros_like(tile.total)
    is_far = tile.here[:, None] - torch.arange(first, last, device=tile.here.device) >= window
    return (tile.weights[..., first - keys.start : last - keys.start] * is_far).sum(-1)


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
