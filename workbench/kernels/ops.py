"""The operations as one calls them: the form for each device is chosen openly, gradients and torch.compile work.

Each is a torch custom op with a kernel per device. `explain` tells which form an operation will take and why; a form
that was asked for by name and cannot run is refused, never replaced.
"""

# ruff: noqa: ARG001
# (Fake kernels and gradient set-ups take all that the real ones take.)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.library import custom_op

from workbench.heads import WorkbenchError
from workbench.kernels import attention_gradients, attention_triton, delta_rule, profile_blockwise
from workbench.kernels import linear_attention as linear
from workbench.kernels.dialect import HAS_TRITON, is_interpreted
from workbench.kernels.intervals import Intervals
from workbench.kernels.linear_attention import LinearOutput
from workbench.kernels.profiles import AttentionProfile, ProfileRequest, sink_share

Backend = Literal["auto", "torch", "triton", "fla"]
_DEVICES = ("cpu", "cuda")
_FORMS = {
    "attention_profile": "row-blocked torch",
    "attention_column_sums": "row-blocked torch",
    "linear_attention": "chunked torch",
    "linear_attention_step": "torch",
    "gated_delta_rule": "chunked torch",
}


class Choice(NamedTuple):
    """The form an operation takes, and why."""

    form: str
    why: str


def choose(operation: str, device: torch.device | str, backend: Backend = "auto") -> Choice:
    """The form of one operation on one device.

    Raises:
        WorkbenchError: if the operation is unknown, or the form asked for does not exist or cannot run there.
    """
    if operation not in _FORMS:
        raise WorkbenchError(f"no operation {operation!r}; expected one of {', '.join(_FORMS)}")
    kind = torch.device(device).type
    if backend == "torch":
        return Choice("torch", "asked for")
    if backend == "fla":
        if operation != "gated_delta_rule":
            raise WorkbenchError(f"backend='fla' was asked for {operation}; it serves gated_delta_rule only")
        return Choice("fla", "asked for")
    if backend == "triton":
        if not HAS_TRITON:
            raise WorkbenchError("backend='triton' was asked for, but triton is not installed: pip install triton")
        if kind != "cuda" and not is_interpreted():
            raise WorkbenchError(f"backend='triton' was asked for on {kind}; expected cuda, or backend='auto'")
        return Choice("triton", "asked for")
    if kind != "cuda":
        return Choice("torch", f"{kind}: exact, and Triton's kernels need a GPU")
    if not HAS_TRITON:
        return Choice("torch", "cuda, but triton is not installed")
    return Choice("triton", "cuda: one pass in registers")


def explain(device: torch.device | str | None = None) -> dict[str, str]:
    """For each operation the form it takes on a device (the first GPU, or else the CPU) and why."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, str] = {}
    for operation, torch_name in _FORMS.items():
        form, why = choose(operation, device)
        found[operation] = f"{torch_name if form == 'torch' else 'Triton'} ({why})"
    found["attention_cells"] = "torch (any device: a product per cell, from the rows' denominators)"
    return found


def attention_profile(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    seen: Intervals,
    request: ProfileRequest,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
    backend: Backend = "auto",
) -> AttentionProfile:
    """Output and row statistics of one layer; gradients flow through `out` and `lse`, the rest is for reading.

    Raises:
        WorkbenchError: if n_heads is not a multiple of n_kv_heads, or the form asked for cannot run.
    """
    _check_groups(q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    form = choose("attention_profile", q.device, backend).form
    seen_by = (seen.position, seen.low, seen.high, seen.starts_at_zero)
    tags = (request.query_tags, request.key_tags)
    wanted = (list(request.windows), *tags, request.entropy, request.top, request.distance)
    found = _attention_profile(q, k, v, *seen_by, sinks, scale, softcap, *wanted, form)
    out, lse, entropy, top_key, top_mass, mean_distance, beyond, tag_mass = found
    return AttentionProfile(
        out=None if v is None else out,
        lse=lse,
        entropy=entropy if request.entropy else None,
        top_key=top_key if request.top else None,
        top_mass=top_mass if request.top else None,
        mean_distance=mean_distance if request.distance else None,
        beyond=beyond if request.windows else None,
        tag_mass=tag_mass if request.query_tags is not None else None,
        sink_mass=sink_share(sinks, lse),
    )


def attention_column_sums(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    lse: Float[Tensor, "b n_heads q"],
    seen: Intervals,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "b n_heads k"]:
    """What each key receives, Σ_i p_ij, from the rows' denominators; no gradient."""
    _check_groups(q, k)
    form = choose("attention_column_sums", q.device, backend).form
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seen_by = (seen.position, seen.low, seen.high, seen.starts_at_zero)
    return _attention_column_sums(q.detach(), k.detach(), lse.detach(), *seen_by, scale, softcap, form)


def linear_attention(
    q: Float[Tensor, "b n_heads t d"],
    k: Float[Tensor, "b n_heads t d"],
    v: Float[Tensor, "b n_heads t d_v"],
    *,
    log_decay: Float[Tensor, " n_heads"] | Float[Tensor, "b n_heads t"],
    scale: float = 1.0,
    initial_state: Float[Tensor, "sequences n_heads d d_v"] | None = None,
    cu_seqlens: Sequence[int] | None = None,
    snapshots: Sequence[int] = (),
    backend: Backend = "auto",
) -> LinearOutput:
    """Rows o_t = scale · q_t S_t, last states, and states after `snapshots` tokens; S_t = exp(g_t) S_{t−1} + k_t v_tᵀ.

    Args:
        log_decay: g <= 0, −slope per head or a gate per token. Gradients flow into it; none flow out of snapshots.
        cu_seqlens: bounds of packed sequences, for a batch of one; `initial_state` then holds one state each.
    """
    form = choose("linear_attention", q.device, backend).form
    gate = log_decay[None, :, None] if log_decay.ndim == 1 else log_decay
    bounds = None if cu_seqlens is None else list(cu_seqlens)
    out, state, taken = _linear_attention(q, k, v, gate, scale, initial_state, bounds, list(snapshots), form)
    return LinearOutput(out, state, taken)


def linear_attention_step(
    q: Float[Tensor, "b n_heads d"],
    k: Float[Tensor, "b n_heads d"],
    v: Float[Tensor, "b n_heads d_v"],
    state: Float[Tensor, "b n_heads d d_v"],
    *,
    log_decay: Float[Tensor, " n_heads"] | Float[Tensor, "b n_heads"],
    scale: float = 1.0,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "b n_heads d_v"], Float[Tensor, "b n_heads d d_v"]]:
    """One token more: its row and the new state; for decoding, without gradients."""
    form = choose("linear_attention_step", q.device, backend).form
    gate = log_decay[None] if log_decay.ndim == 1 else log_decay
    return _linear_attention_step(*(x.detach() for x in (q, k, v, state, gate)), scale, form)


def gated_delta_rule(
    q: Float[Tensor, "b n_heads t d"],
    k: Float[Tensor, "b n_heads t d"],
    v: Float[Tensor, "b n_heads t d_v"],
    *,
    g: Float[Tensor, "b n_heads t"],
    beta: Float[Tensor, "b n_heads t"],
    scale: float | None = None,
    initial_state: Float[Tensor, "sequences n_heads d d_v"] | None = None,
    cu_seqlens: Sequence[int] | None = None,
    backend: Backend = "auto",
) -> delta_rule.DeltaOutput:
    """Rows and last states of the gated delta rule; `k` at unit length.

    Gradients: of the torch form and fla's. Where any input asks for them, "auto" takes torch; the Triton form has none.
    Heads wider than 128 channels take the torch form too.
    """
    form = choose("gated_delta_rule", q.device, backend).form
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    bounds = None if cu_seqlens is None else list(cu_seqlens)
    inputs = (q, k, v, g, beta)
    has_gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*inputs, initial_state))
    is_wide = max(q.shape[-1], v.shape[-1]) > 128
    if form == "triton" and backend == "auto" and (has_gradients or is_wide):
        form = "torch"
    if form == "triton" and has_gradients:
        raise WorkbenchError(
            "backend='triton' was asked for the gated delta rule of tensors that require gradients, and it has no "
            "backward pass; use backend='auto', 'torch' or 'fla', or torch.no_grad()"
        )
    if form == "fla":
        return delta_rule.by_fla(*inputs, scale=factor, initial_state=initial_state, cu_seqlens=bounds)
    if form == "torch":
        return delta_rule.chunked(*inputs, scale=factor, initial_state=initial_state, cu_seqlens=bounds)
    return delta_rule.DeltaOutput(*_gated_delta_rule(*inputs, factor, initial_state, bounds))


# Custom ops: plain tensors, because torch reads their schema off the annotations; the wrappers above carry the shapes.


@custom_op("workbench::attention_profile", mutates_args=(), device_types=_DEVICES)
@no_type_check
def _attention_profile(
    q: Tensor, k: Tensor, v: Tensor | None, position: Tensor, low: Tensor, high: Tensor, starts_at_zero: bool,
    sinks: Tensor | None, scale: float, softcap: float | None, windows: Sequence[int], query_tags: Tensor | None,
    key_tags: Tensor | None, entropy: bool, top: bool, distance: bool, form: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    run = attention_triton.attention_profile if form == "triton" else profile_blockwise.attention_profile
    seen = Intervals(position, low, high, starts_at_zero)
    request = ProfileRequest(entropy, top, distance, tuple(windows), query_tags, key_tags)
    found = run(q, k, v, seen, request, scale=scale, softcap=softcap, sinks=sinks)

    def given(x: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(0, dtype=dtype, device=q.device) if x is None else x.contiguous()

    statistics = (found.top_mass, found.mean_distance, found.beyond, found.tag_mass)
    head = (given(found.out, q.dtype), found.lse, given(found.entropy), given(found.top_key, torch.int32))
    return (*head, *(given(x) for x in statistics))


@_attention_profile.register_fake
@no_type_check
def _(
    q, k, v, position, low, high, starts_at_zero, sinks, scale, softcap, windows, query_tags, key_tags, entropy, top,
    distance, form,
):  # fmt: skip
    def blank(wanted: bool, *more: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return q.new_empty((*q.shape[:3], *more) if wanted else (0,), dtype=dtype)

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
    ctx.save_for_backward(q, k, v, position, low, high, sinks, output[0], output[1])
    ctx.scale, ctx.softcap, ctx.starts_at_zero = scale, softcap, starts_at_zero
    ctx.mark_non_differentiable(*output[2:])


@no_type_check
def _profile_gradients(ctx, d_out, d_lse, *_):
    q, k, v, position, low, high, sinks, out, lse = ctx.saved_tensors
    d_lse = torch.zeros_like(lse) if d_lse is None else d_lse
    d_out = torch.zeros_like(out) if d_out is None else d_out
    dq, dk, dv, d_sinks = _attention_backward(
        d_out, d_lse, q, k, v, position, low, high, ctx.starts_at_zero, sinks, out, lse, ctx.scale, ctx.softcap
    )
    gradients = [dq, dk, None if v is None else dv, *[None] * 4, None if sinks is None else d_sinks]
    return (*gradients, *[None] * 9)


_attention_profile.register_autograd(_profile_gradients, setup_context=_keep_profile)


@custom_op("workbench::attention_backward", mutates_args=(), device_types=_DEVICES)
@no_type_check
def _attention_backward(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor | None, position: Tensor, low: Tensor, high: Tensor,
    starts_at_zero: bool, sinks: Tensor | None, out: Tensor, lse: Tensor, scale: float, softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    seen = Intervals(position, low, high, starts_at_zero)
    ends = (None, None) if v is None else (d_out, out)
    dq, dk, dv = attention_gradients.attention_backward(
        ends[0], d_lse, q, k, v, ends[1], lse, seen, scale=scale, softcap=softcap
    )
    d_sinks = q.new_empty(0)
    share = sink_share(sinks, lse)
    if sinks is not None and share is not None:
        flow = d_lse.float() - (0 if v is None else (d_out.float() * out.float()).sum(-1))
        d_sinks = (share * flow).sum((0, 2)).to(sinks.dtype)
    return dq, dk, q.new_empty(0) if dv is None else dv, d_sinks


@_attention_backward.register_fake
@no_type_check
def _(d_out, d_lse, q, k, v, position, low, high, starts_at_zero, sinks, out, lse, scale, softcap):
    d_sinks = q.new_empty(0) if sinks is None else torch.empty_like(sinks)
    return torch.empty_like(q), torch.empty_like(k), q.new_empty(0) if v is None else torch.empty_like(v), d_sinks


@custom_op("workbench::attention_column_sums", mutates_args=(), device_types=_DEVICES)
@no_type_check
def _attention_column_sums(
    q: Tensor, k: Tensor, lse: Tensor, position: Tensor, low: Tensor, high: Tensor, starts_at_zero: bool, scale: float,
    softcap: float | None, form: str,
) -> Tensor:  # fmt: skip
    run = attention_triton.column_sums if form == "triton" else profile_blockwise.column_sums
    return run(q, k, lse, Intervals(position, low, high, starts_at_zero), scale=scale, softcap=softcap)


@_attention_column_sums.register_fake
@no_type_check
def _(q, k, lse, position, low, high, starts_at_zero, scale, softcap, form):
    return q.new_empty((*q.shape[:2], k.shape[2]), dtype=torch.float32)


@custom_op("workbench::linear_attention", mutates_args=(), device_types=_DEVICES)
@no_type_check
def _linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, initial_state: Tensor | None,
    cu_seqlens: Sequence[int] | None, snapshots: Sequence[int], form: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    run = linear.launched if form == "triton" else linear.chunked
    options = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens, "snapshots": snapshots}
    out, state, taken = run(q, k, v, log_decay, **options)
    return out.contiguous(), state.contiguous(), taken.contiguous()


@_linear_attention.register_fake
@no_type_check
def _(q, k, v, log_decay, scale, initial_state, cu_seqlens, snapshots, form):
    n = len(q) if cu_seqlens is None else len(cu_seqlens) - 1
    wide = torch.promote_types(q.dtype, torch.float32)
    size = (q.shape[1], q.shape[3], v.shape[3])
    out = v.new_empty(v.shape)
    return out, q.new_empty((n, *size), dtype=wide), q.new_empty((n, len(snapshots), *size), dtype=wide)


@no_type_check
def _keep_linear(ctx, inputs, output):
    q, k, v, log_decay, ctx.scale, initial_state, ctx.cu_seqlens, _, ctx.form = inputs
    ctx.save_for_backward(q, k, v, log_decay, initial_state)
    ctx.mark_non_differentiable(output[2])


@no_type_check
def _linear_gradients(ctx, d_out, d_state, _):
    q, k, v, log_decay, initial_state = ctx.saved_tensors
    with_gate = ctx.needs_input_grad[3]
    dq, dk, dv, d_gate, d_initial = _linear_attention_backward(
        d_out, d_state, q, k, v, log_decay, ctx.scale, initial_state, ctx.cu_seqlens, with_gate, ctx.form
    )
    d_initial = None if initial_state is None else d_initial.to(initial_state.dtype)
    return dq, dk, dv, d_gate if with_gate else None, None, d_initial, None, None, None


_linear_attention.register_autograd(_linear_gradients, setup_context=_keep_linear)


@custom_op("workbench::linear_attention_backward", mutates_args=(), device_types=_DEVICES)
@no_type_check
def _linear_attention_backward(
    d_out: Tensor, d_state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float,
    initial_state: Tensor | None, cu_seqlens: Sequence[int] | None, with_gate: bool, form: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    run = linear.launched_backward if form == "triton" else linear.chunked_backward
    options = {"scale": scale, "initial_state": initial_state, "cu_seqlens": cu_seqlens, "with_gate": with_gate}
    dq, dk, dv, d_gate, d_initial = run(d_out, d_state, q, k, v, log_decay, **options)
    d_gate = log_decay.new_empty(0) if d_gate is None else d_gate
    return tuple(x.contiguous() for x in (dq, dk, dv, d_gate, d_initial))


@_linear_attention_backward.register_fake
@no_type_check
def _(d_out, d_state, q, k, v, log_decay, scale, initial_state, cu_seqlens, with_gate, form):
    d_gate = log_decay.new_empty(log_decay.shape if with_gate else (0,))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), d_gate, d_state.new_empty(d_state.shape)


@custom_op("workbench::linear_attention_step", mutates_args=(), device_types=_DEVICES)
@no_type_check
def _linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, scale: float, form: str
) -> tuple[Tensor, Tensor]:
    run = linear.launched_step if form == "triton" else linear.step
    out, new = run(q, k, v, state, log_decay, scale=scale)
    return out.contiguous(), new.contiguous()


@_linear_attention_step.register_fake
@no_type_check
def _(q, k, v, state, log_decay, scale, form):
    return v.new_empty(v.shape), state.new_empty(state.shape, dtype=torch.promote_types(q.dtype, torch.float32))


@custom_op("workbench::gated_delta_rule", mutates_args=(), device_types=_DEVICES)
@no_type_check
def _gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, initial_state: Tensor | None,
    cu_seqlens: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, state = delta_rule.launched(q, k, v, g, beta, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return out, state


@_gated_delta_rule.register_fake
@no_type_check
def _(q, k, v, g, beta, scale, initial_state, cu_seqlens):
    n = len(q) if cu_seqlens is None else len(cu_seqlens) - 1
    return v.new_empty(v.shape), q.new_empty((n, q.shape[1], q.shape[3], v.shape[3]), dtype=torch.float32)


def _check_groups(q: Tensor, k: Tensor) -> None:
    if q.shape[1] % k.shape[1]:
        raise WorkbenchError(
            f"{q.shape[1]} query heads cannot share {k.shape[1]} key/value heads evenly; expected a multiple"
        )
