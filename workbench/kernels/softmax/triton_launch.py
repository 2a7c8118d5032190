"""Launch the Triton kernels of attention statistics: profiles and column sums of one layer.

Strides are free; the last is made 1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.dialect import arch_of, launching_on, precision_of
from workbench.kernels.key_intervals import Intervals
from workbench.kernels.launch_shapes import attention_config, column_config, edge_config
from workbench.kernels.selected_tiles import tile_list
from workbench.kernels.softmax import triton_kernels
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer, sink_share
from workbench.kernels.softmax.statistics_request import AttentionProfile, Request

_NEVER = 2**31 - 1


def triton_profile(
    layer: SoftmaxLayer, v: Float[Tensor, "b n_kv_heads k d_v"] | None, request: Request
) -> AttentionProfile:
    """The profile of a layer whose mask is `Intervals`, or selects of them."""
    (seen, selection), sinks = layer.profile_mask, layer.sinks
    n_sequences, n_heads, n_queries, d = layer.q.shape
    shape = (n_sequences, n_heads, n_queries)
    q, k, v = _unit_last(layer.q), _unit_last(layer.k), None if v is None else _unit_last(v)
    n_windows = len(request.windows)
    flags = (request.entropy, request.top, request.distance, n_windows > 0, request.query_tags is not None)
    arch, width = arch_of(q), max(d, 0 if v is None else v.shape[-1])
    launch = attention_config(arch, width, q.dtype, n_statistics=sum(flags))
    n_edges = _power_of_two(n_windows) if n_windows else 0
    edges = torch.tensor([*request.windows, *[_NEVER] * (n_edges - n_windows)], dtype=torch.int32, device=q.device)

    def empty(is_requested: bool, *more: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return torch.empty(*shape, *more, dtype=dtype, device=q.device) if is_requested else None

    lse = torch.empty(shape, device=q.device)
    profile = AttentionProfile(
        out=None if v is None else empty(True, v.shape[-1], dtype=q.dtype),
        lse=lse,
        entropy=empty(request.entropy),
        top_key=empty(request.top, dtype=torch.int32),
        top_mass=empty(request.top),
        mean_distance=empty(request.distance),
        beyond=empty(n_edges > 0, n_edges),
        tag_mass=empty(request.query_tags is not None),
        sink_mass=None,
    )
    query_tags, key_tags = _tags(request.query_tags), _tags(request.key_tags)
    values = k if v is None else v
    widths = {"D": d, "DV": values.shape[-1], "DP": _width(d), "DVP": _width(values.shape[-1])}
    common = {"HEADS": n_heads, "GROUP": n_heads // k.shape[1]}
    common |= {"BLOCK": 0 if selection is None else selection.block}
    common |= {"HAS_CAP": layer.softcap is not None, "N_EDGES": n_edges, "PRECISION": precision_of(q.dtype)}
    listed = None
    if selection is not None:
        listed = tile_list(selection, seen, k.shape[2], rows=launch.rows, columns=launch.columns)
    words, tiles, n_tiles = (seen.position,) * 3 if listed is None else (listed.words, listed.tiles, listed.n_tiles)
    scalars = (n_queries, layer.scale, 1.0 if layer.softcap is None else layer.softcap)
    with launching_on(q):
        triton_kernels.profile_forward[(-(-n_queries // launch.rows), n_sequences * n_heads)](
            q, k, values, seen.position, seen.low, seen.high, words, tiles, n_tiles, _or(sinks, lse), edges,
            _or(query_tags, seen.position), _or(key_tags, seen.position),
            _or(profile.out, lse), lse, _or(profile.entropy, lse), _or(profile.top_key, lse),
            _or(profile.top_mass, lse), _or(profile.mean_distance, lse), _or(profile.beyond, lse),
            _or(profile.tag_mass, lse),
            *q.stride()[:3], *k.stride()[:3], *values.stride()[:3],
            _batch_stride(seen.low), _batch_stride(query_tags), _batch_stride(key_tags),
            words.shape[-1], tiles.shape[-1], *scalars,
            **widths, **common, BM=launch.rows, BN=launch.columns,
            HAS_LOW=not seen.starts_at_zero, HAS_SINK=sinks is not None, HAS_TAGS=query_tags is not None,
            ENTROPY=request.entropy, TOP=request.top, DISTANCE=request.distance, HAS_OUT=v is not None,
            **launch.options(),
        )  # fmt: skip
        if n_windows:
            launch = edge_config(arch, width, q.dtype, n_statistics=sum(flags))
            grid = (-(-n_queries // launch.rows), n_windows, n_sequences * n_heads)
            triton_kernels.window_edges[grid](
                q, k, seen.position, seen.low, seen.high, words, edges, lse, profile.beyond,
                *q.stride()[:3], *k.stride()[:3], _batch_stride(seen.low), words.shape[-1], *scalars,
                D=d, DP=_width(d), **common, BM=launch.rows, BN=launch.columns, **launch.options(),
            )  # fmt: skip
    beyond = None if profile.beyond is None else profile.beyond[..., :n_windows]
    return replace(profile, beyond=beyond, sink_mass=sink_share(sinks, lse))


def triton_column_sums(layer: SoftmaxLayer, lse: Float[Tensor, "b n_heads q"]) -> Float[Tensor, "b n_heads k"]:
    """Attention received by each key, Σ_i p_ij, from the rows' denominators."""
    seen, softcap = layer.intervals, layer.softcap
    n_sequences, n_heads, n_queries, d = layer.q.shape
    q, k = _unit_last(layer.q), _unit_last(layer.k)
    n_keys = k.shape[2]
    launch = column_config(arch_of(q), d, q.dtype)
    first, last = _rows_of_key_blocks(seen, n_keys, launch.rows)
    sums = torch.empty(n_sequences, n_heads, n_keys, device=q.device)
    with launching_on(q):
        triton_kernels.column_sums[(-(-n_keys // launch.rows), n_sequences * n_heads)](
            q, k, seen.low, seen.high, first.expand(n_sequences, -1).contiguous(),
            last.expand(n_sequences, -1).contiguous(), lse.contiguous(), sums,
            *q.stride()[:3], *k.stride()[:3], _batch_stride(seen.low), n_queries, n_keys,
            layer.scale, 1.0 if softcap is None else softcap,
            HEADS=n_heads, GROUP=n_heads // k.shape[1], D=d, DP=_width(d), BM=launch.columns, BN=launch.rows,
            HAS_CAP=softcap is not None, PRECISION=precision_of(q.dtype), **launch.options(),
        )  # fmt: skip
    return sums


def _rows_of_key_blocks(seen: Intervals, n_keys: int, block: int) -> tuple[Int[Tensor, "#b n"], Int[Tensor, "#b n"]]:
    """The first row, and one past the last, that sees any key of each block; rows' ends never fall."""
    starts = torch.arange(0, n_keys, block, dtype=torch.int32, device=seen.low.device).expand(len(seen.low), -1)
    first = torch.searchsorted(seen.high, starts.contiguous(), right=True)
    last = torch.searchsorted(seen.low, (starts + block).contiguous())
    return first.int(), last.int()


def _unit_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _or(x: Tensor | None, stand_in: Tensor) -> Tensor:
    """A valid pointer also for an argument that the kernel does not touch."""
    return stand_in if x is None else x


def _batch_stride(x: Tensor | None) -> int:
    return 0 if x is None or len(x) == 1 else x.stride(0)


def _tags(tags: Tensor | None) -> Tensor | None:
    return None if tags is None else tags.int().contiguous()


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _width(d: int) -> int:
    return max(16, _power_of_two(d))
