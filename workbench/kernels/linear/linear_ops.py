"""Linear attention and the delta rule as torch custom ops: schema, fake kernels, gradients.

Plain tensors and flat arguments, because torch reads the schema off the annotations; `ops` wraps them with shapes.
"""

# ruff: noqa: ARG001
# (Fake kernels and gradient set-ups take every argument of the op.)

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import torch
from torch import Tensor
from torch.library import custom_op

from workbench.kernels.linear import decay, delta

_DEVICES = ("cpu", "cuda")


@custom_op("workbench::linear_attention", mutates_args=(), device_types=_DEVICES)
@no_type_check
def linear_attention_op(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, initial_state: Tensor | None,
    cu_seqlens: Sequence[int] | None, snapshots: Sequence[int], backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    run = decay.triton_linear if backend == "triton" else decay.chunked_linear
    inputs = decay.LinearInputs(q, k, v, log_decay, scale, initial_state, cu_seqlens)
    out, state, taken = run(inputs, snapshots=snapshots)
    return out.contiguous(), state.contiguous(), taken.contiguous()


@linear_attention_op.register_fake
@no_type_check
def _(q, k, v, log_decay, scale, initial_state, cu_seqlens, snapshots, backend):
    n = len(q) if cu_seqlens is None else len(cu_seqlens) - 1
    wide = torch.promote_types(q.dtype, torch.float32)
    size = (q.shape[1], q.shape[3], v.shape[3])
    out = v.new_empty(v.shape)
    return out, q.new_empty((n, *size), dtype=wide), q.new_empty((n, len(snapshots), *size), dtype=wide)


@no_type_check
def _keep_linear(ctx, inputs, output):
    q, k, v, log_decay, ctx.scale, initial_state, ctx.cu_seqlens, _, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, log_decay, initial_state)
    ctx.mark_non_differentiable(output[2])


@no_type_check
def _linear_gradients(ctx, d_out, d_state, _):
    q, k, v, log_decay, initial_state = ctx.saved_tensors
    with_gate = ctx.needs_input_grad[3]
    dq, dk, dv, d_gate, d_initial = linear_attention_backward_op(
        d_out, d_state, q, k, v, log_decay, ctx.scale, initial_state, ctx.cu_seqlens, with_gate, ctx.backend
    )
    d_initial = None if initial_state is None else d_initial.to(initial_state.dtype)
    return dq, dk, dv, d_gate if with_gate else None, None, d_initial, None, None, None


linear_attention_op.register_autograd(_linear_gradients, setup_context=_keep_linear)


@custom_op("workbench::linear_attention_backward", mutates_args=(), device_types=_DEVICES)
@no_type_check
def linear_attention_backward_op(
    d_out: Tensor, d_state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float,
    initial_state: Tensor | None, cu_seqlens: Sequence[int] | None, with_gate: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    run = decay.triton_linear_backward if backend == "triton" else decay.chunked_linear_backward
    inputs = decay.LinearInputs(q, k, v, log_decay, scale, initial_state, cu_seqlens)
    dq, dk, dv, d_gate, d_initial = run(inputs, d_out, d_state, with_gate=with_gate)
    d_gate = log_decay.new_empty(0) if d_gate is None else d_gate
    return tuple(x.contiguous() for x in (dq, dk, dv, d_gate, d_initial))


@linear_attention_backward_op.register_fake
@no_type_check
def _(d_out, d_state, q, k, v, log_decay, scale, initial_state, cu_seqlens, with_gate, backend):
    d_gate = log_decay.new_empty(log_decay.shape if with_gate else (0,))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), d_gate, d_state.new_empty(d_state.shape)


@custom_op("workbench::linear_attention_step", mutates_args=(), device_types=_DEVICES)
@no_type_check
def linear_attention_step_op(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    run = decay.triton_linear_step if backend == "triton" else decay.linear_step
    out, new = run(q, k, v, state, log_decay, scale=scale)
    return out.contiguous(), new.contiguous()


@linear_attention_step_op.register_fake
@no_type_check
def _(q, k, v, state, log_decay, scale, backend):
    return v.new_empty(v.shape), state.new_empty(state.shape, dtype=torch.promote_types(q.dtype, torch.float32))


@custom_op("workbench::gated_delta_rule", mutates_args=(), device_types=_DEVICES)
@no_type_check
def gated_delta_rule_op(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, initial_state: Tensor | None,
    cu_seqlens: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, state = delta.triton_delta(delta.DeltaInputs(q, k, v, g, beta, scale, initial_state, cu_seqlens))
    return out, state


@gated_delta_rule_op.register_fake
@no_type_check
def _(q, k, v, g, beta, scale, initial_state, cu_seqlens):
    n = len(q) if cu_seqlens is None else len(cu_seqlens) - 1
    return v.new_empty(v.shape), q.new_empty((n, q.shape[1], q.shape[3], v.shape[3]), dtype=torch.float32)
