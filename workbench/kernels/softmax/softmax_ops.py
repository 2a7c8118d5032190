"""Softmax attention's statistics as torch custom ops: schema, fake kernels, gradients.

Plain tensors and flat arguments, because torch reads the schema off the annotations; `ops` wraps them with shapes.
"""

# ruff: noqa: ARG001
# (Flat schemas; fake kernels and gradient set-ups take every argument of the op.)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.library import custom_op

from workbench.kernels.key_intervals import Intervals
from workbench.kernels.masks import SelectedMask, TileMask
from workbench.kernels.softmax.blockwise import blockwise_column_sums, blockwise_profile
from workbench.kernels.softmax.differentiable_attention import attention_gradients
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer, sink_share
from workbench.kernels.softmax.statistics_request import Request
from workbench.kernels.softmax.triton_launch import triton_column_sums, triton_profile

_DEVICES = ("cpu", "cuda")


def _mask(seen: Intervals, selected: Tensor | None, block: int) -> TileMask:
    return seen if selected is None else SelectedMask(seen, selected, block)


@custom_op("workbench::attention_profile", mutates_args=(), device_types=_DEVICES)
@no_type_check
def profile_op(
    q: Tensor, k: Tensor, v: Tensor | None, position: Tensor, low: Tensor, high: Tensor, starts_at_zero: bool,
    sinks: Tensor | None, scale: float, softcap: float | None, windows: Sequence[int], query_tags: Tensor | None,
    key_tags: Tensor | None, entropy: bool, top: bool, distance: bool, backend: str,
    selected: Tensor | None = None, block: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    run = triton_profile if backend == "triton" else blockwise_profile
    seen = _mask(Intervals(position, low, high, starts_at_zero), selected, block)
    layer = SoftmaxLayer(q, k, seen, scale, softcap, sinks)
    request = Request(
        entropy=entropy, top=top, distance=distance, windows=tuple(windows), query_tags=query_tags, key_tags=key_tags
    )
    profile = run(layer, v, request)

    def present(x: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(0, dtype=dtype, device=q.device) if x is None else x.contiguous()

    out, top_key = present(profile.out, q.dtype), present(profile.top_key, torch.int32)
    statistics = (profile.top_mass, profile.mean_distance, profile.beyond, profile.tag_mass)
    return out, profile.lse, present(profile.entropy), top_key, *(present(x) for x in statistics)


@profile_op.register_fake
@no_type_check
def _(
    q, k, v, position, low, high, starts_at_zero, sinks, scale, softcap, windows, query_tags, key_tags, entropy, top,
    distance, backend, selected=None, block=1,
):  # fmt: skip
    def blank(is_requested: bool, *more: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return q.new_empty((*q.shape[:3], *more) if is_requested else (0,), dtype=dtype)

    width = () if v is None else (v.shape[-1],)
    return (
        blank(v is not None, *width, dtype=q.dtype),
        blank(True),
        blank(entropy),
        blank(top, dtype=torch.int32),
        blank(top),
        blank(distance),
        blank(len(windows) > 0, len(windows)),
        blank(query_tags is not None),
    )


@no_type_check
def _keep_profile(ctx, inputs, output):
    q, k, v, position, low, high, starts_at_zero, sinks, scale, softcap = inputs[:10]
    selected, block = inputs[-2:]
    ctx.save_for_backward(q, k, v, position, low, high, sinks, output[0], output[1], selected)
    ctx.scale, ctx.softcap, ctx.starts_at_zero, ctx.block = scale, softcap, starts_at_zero, block
    ctx.mark_non_differentiable(*output[2:])


@no_type_check
def _profile_gradients(ctx, d_out, d_lse, *_):
    q, k, v, position, low, high, sinks, out, lse, selected = ctx.saved_tensors
    d_lse = torch.zeros_like(lse) if d_lse is None else d_lse
    d_out = torch.zeros_like(out) if d_out is None else d_out
    dq, dk, dv, d_sinks = profile_backward_op(
        d_out, d_lse, q, k, v, position, low, high, ctx.starts_at_zero, sinks, out, lse, ctx.scale, ctx.softcap,
        selected, ctx.block,
    )  # fmt: skip
    gradients = [dq, dk, None if v is None else dv, *[None] * 4, None if sinks is None else d_sinks]
    return (*gradients, *[None] * 11)


profile_op.register_autograd(_profile_gradients, setup_context=_keep_profile)


@custom_op("workbench::attention_backward", mutates_args=(), device_types=_DEVICES)
@no_type_check
def profile_backward_op(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor | None, position: Tensor, low: Tensor, high: Tensor,
    starts_at_zero: bool, sinks: Tensor | None, out: Tensor, lse: Tensor, scale: float, softcap: float | None,
    selected: Tensor | None = None, block: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    seen = _mask(Intervals(position, low, high, starts_at_zero), selected, block)
    layer = SoftmaxLayer(q, k, seen, scale, softcap, sinks)
    has_out = v is not None
    dq, dk, dv = attention_gradients(
        layer, v, out=out if has_out else None, lse=lse, d_out=d_out if has_out else None, d_lse=d_lse
    )
    d_sinks = q.new_empty(0)
    share = sink_share(sinks, lse)
    if sinks is not None and share is not None:
        flow = d_lse.float() - (0 if v is None else (d_out.float() * out.float()).sum(-1))
        d_sinks = (share * flow).sum((0, 2)).to(sinks.dtype)
    return dq, dk, q.new_empty(0) if dv is None else dv, d_sinks


@profile_backward_op.register_fake
@no_type_check
def _(
    d_out, d_lse, q, k, v, position, low, high, starts_at_zero, sinks, out, lse, scale, softcap, selected=None, block=1
):  # fmt: skip
    d_sinks = q.new_empty(0) if sinks is None else torch.empty_like(sinks)
    return torch.empty_like(q), torch.empty_like(k), q.new_empty(0) if v is None else torch.empty_like(v), d_sinks


@custom_op("workbench::attention_column_sums", mutates_args=(), device_types=_DEVICES)
@no_type_check
def column_sums_op(
    q: Tensor, k: Tensor, lse: Tensor, position: Tensor, low: Tensor, high: Tensor, starts_at_zero: bool, scale: float,
    softcap: float | None, backend: str,
) -> Tensor:  # fmt: skip
    run = triton_column_sums if backend == "triton" else blockwise_column_sums
    return run(SoftmaxLayer(q, k, Intervals(position, low, high, starts_at_zero), scale, softcap), lse)


@column_sums_op.register_fake
@no_type_check
def _(q, k, lse, position, low, high, starts_at_zero, scale, softcap, backend):
    return q.new_empty((*q.shape[:2], k.shape[2]), dtype=torch.float32)
