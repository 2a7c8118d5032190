"""Linear attention with a decay per head (lightning, RetNet) or token (simple GLA): chunked torch, and the launches.

S_t = exp(g_t) S_{t−1} + k_t v_tᵀ and o_t = scale · q_t S_t, with g <= 0 an input: slopes and gates belong to the model.
Both backends take and return the state, so two calls equal one, and both can return states on the way. The state is
float32 whatever the inputs (float64 for float64 inputs in torch).

The backward pass is linear attention three times more, dq of (do, v, k) and, backwards in time, dv of (k, q, do) and
dk of (v, do, q); the gradient of the gate is the running sum of q · dq − k · dk.

Reference:
    Qin et al. 2024, Lightning Attention-2, algorithms 1 and 2; Yang et al. 2024, Gated Linear Attention, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.kernels.dialect import arch_of, launching_on, precision_of
from workbench.kernels.launch_shapes import linear_config, step_config
from workbench.kernels.linear import decay_triton
from workbench.kernels.linear.segments import (
    Segments,
    check_snapshots,
    cut_segments,
    join_segments,
    segment_decay,
    sequence_bounds,
)

CHUNK = 64
# Tokens that one program works through: long enough to read k and v little more than once, short enough to fill a GPU.
SEGMENT = 2048


@dataclass(frozen=True, slots=True)
class LinearInputs:
    """One pass of linear attention. `cu_seqlens`: bounds of packed sequences, for a batch of one."""

    q: Float[Tensor, "b n_heads t d"]
    k: Float[Tensor, "b n_heads t d"]
    v: Float[Tensor, "b n_heads t d_v"]
    log_decay: Float[Tensor, "#b n_heads t_or_1"]
    scale: float = 1.0
    initial_state: Float[Tensor, "sequences n_heads d d_v"] | None = None
    cu_seqlens: Sequence[int] | None = None

    def bounds(self) -> list[tuple[int, int, int]]:
        """Batch row, first token and one past the last of each sequence."""
        return sequence_bounds(len(self.q), self.q.shape[2], self.cu_seqlens)

    def tokens(self, rows: slice, first: int, last: int) -> LinearInputs:
        """A run of tokens of some batch rows."""
        q, k, v = (x[rows, :, first:last] for x in (self.q, self.k, self.v))
        gate = self.log_decay if self.log_decay.shape[-1] == 1 else self.log_decay[..., first:last]
        return replace(self, q=q, k=k, v=v, log_decay=gate, initial_state=None, cu_seqlens=None)


class LinearOutput(NamedTuple):
    """Rows, the state after each sequence's last token, and the states after its snapshots' token counts."""

    out: Float[Tensor, "b n_heads t d_v"]
    state: Float[Tensor, "sequences n_heads d d_v"]
    snapshots: Float[Tensor, "sequences snapshots n_heads d d_v"]


class LinearGradients(NamedTuple):
    """Gradients with respect to q, k, v, the log decay and the initial states."""

    q: Float[Tensor, "b n_heads t d"]
    k: Float[Tensor, "b n_heads t d"]
    v: Float[Tensor, "b n_heads t d_v"]
    log_decay: Float[Tensor, "b n_heads t_or_1"] | None
    state: Float[Tensor, "sequences n_heads d d_v"]


def chunked_linear(inputs: LinearInputs, *, snapshots: Sequence[int] = (), chunk: int = CHUNK) -> LinearOutput:
    """Linear attention in torch, on any device: a chunk's own rows as a small matrix, the past through the state."""
    q, v, cu_seqlens = inputs.q, inputs.v, inputs.cu_seqlens
    bounds = inputs.bounds()
    check_snapshots(snapshots, bounds)
    wide = torch.promote_types(q.dtype, torch.float32)
    outs: list[Tensor] = []
    finals: list[Tensor] = []
    taken: list[Tensor] = []
    groups = (
        [(slice(None), slice(0, q.shape[2]))]
        if cu_seqlens is None
        else [(slice(0, 1), slice(a, z)) for _, a, z in bounds]
    )
    for n, (rows, span) in enumerate(groups):
        sequences = slice(None) if cu_seqlens is None else slice(n, n + 1)
        size = (len(q[rows]), q.shape[1], q.shape[3], v.shape[3])
        initial = inputs.initial_state
        state = q.new_zeros(size, dtype=wide) if initial is None else initial[sequences].to(wide)
        edges = [span.start, *(span.start + s for s in snapshots), span.stop]
        stops: list[Tensor] = []
        for t0, t1 in pairwise(edges):
            out, state = _run_tokens(inputs.tokens(rows, t0, t1), state, chunk)
            outs.append(out)
            stops.append(state)
        finals.append(state)
        taken.append(torch.stack(stops[:-1], 1) if len(stops) > 1 else state.new_empty(len(state), 0, *state.shape[1:]))
    out = torch.cat(outs, 2).to(v.dtype)
    return LinearOutput(out, torch.cat(finals), torch.cat(taken))


def _run_tokens(inputs: LinearInputs, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """The rows of a run of tokens of each sequence, and the state after it."""
    q, k, v, log_decay, scale = inputs.q, inputs.k, inputs.v, inputs.log_decay, inputs.scale
    wide = state.dtype
    outs: list[Tensor] = []
    factors: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
    for t0 in range(0, q.shape[2], chunk):
        span = slice(t0, min(t0 + chunk, q.shape[2]))
        n = span.stop - t0
        if log_decay.shape[-1] > 1 or q.shape[2] == 1:
            factor = _factors(log_decay[..., span], wide)
        else:
            factor = factors.setdefault(n, _factors(log_decay.expand(-1, -1, n), wide))
        between, since_start, to_end, whole = factor
        q_c, k_c, v_c = (x[:, :, span].to(wide) for x in (q, k, v))
        rows = einsum(q_c, k_c, "b h i d, b h j d -> b h i j") * between
        outs.append(scale * (rows @ v_c + since_start * (q_c @ state)))
        state = whole * state + einsum(k_c * to_end, v_c, "b h t d, b h t e -> b h d e")
    return (torch.cat(outs, 2) if outs else v[:, :, :0].to(wide)), state


def _factors(log_decay: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decay between tokens of a chunk, since its start, to its end, and over it; sums of gates in float64."""
    through = log_decay.double().cumsum(-1)
    whole = through[..., -1:]
    apart = rearrange(through, "b h i -> b h i 1") - rearrange(through, "b h j -> b h 1 j")
    causal = torch.ones(apart.shape[-2:], dtype=torch.bool, device=apart.device).tril()
    between = torch.exp(apart.masked_fill(~causal, -torch.inf))
    sums = (rearrange(x, "b h t -> b h t 1") for x in (through, whole - through, whole))
    since_start, to_end, over = (torch.exp(x).to(wide) for x in sums)
    return between.to(wide), since_start, to_end, over


def chunked_linear_backward(
    inputs: LinearInputs,
    d_out: Float[Tensor, "b n_heads t d_v"],
    d_state: Float[Tensor, "sequences n_heads d d_v"],
    *,
    with_gate: bool = True,
) -> LinearGradients:
    """Gradients in torch, by the same recurrence: time is flipped, and the gate shifted by a token with it."""
    q, k, v, log_decay = inputs.q, inputs.k, inputs.v, inputs.log_decay
    cu_seqlens, initial_state = inputs.cu_seqlens, inputs.initial_state
    wide = torch.promote_types(q.dtype, torch.float32)
    d_o = d_out.to(wide) * inputs.scale
    turned = None if initial_state is None else rearrange(initial_state, "n h d e -> n h e d")
    of_dq = LinearInputs(d_o, v.to(wide), k.to(wide), log_decay, initial_state=turned, cu_seqlens=cu_seqlens)
    dq, bounds = chunked_linear(of_dq).out, inputs.bounds()
    gate = log_decay.expand(-1, -1, q.shape[2])
    spans = [(0, q.shape[2])] if cu_seqlens is None else [(first, last) for _, first, last in bounds]
    dk, dv = torch.empty_like(k, dtype=wide), torch.empty_like(v, dtype=wide)
    d_initial: list[Tensor] = []
    for n, (t0, t1) in enumerate(spans):
        grad = d_state if cu_seqlens is None else d_state[n : n + 1]
        if t0 == t1:
            d_initial.append(grad.to(wide))
            continue
        q_r, k_r, v_r, o_r = (x[:, :, t0:t1].to(wide).flip(2) for x in (q, k, v, d_o))
        after = torch.nn.functional.pad(gate[..., t0 + 1 : t1].flip(-1), (1, 0))
        if t1 - t0 == 1:
            after = torch.zeros_like(gate[..., :1])
        back = chunked_linear(LinearInputs(k_r, q_r, o_r, after, initial_state=grad.to(wide)))
        dv[:, :, t0:t1] = back.out.flip(2)
        turned_grad = rearrange(grad.to(wide), "n h d e -> n h e d")
        of_dk = LinearInputs(v_r, o_r, q_r, after, initial_state=turned_grad)
        dk[:, :, t0:t1] = chunked_linear(of_dk).out.flip(2)
        d_initial.append(back.state * torch.exp(gate[..., t0].to(wide))[..., None, None])
    d_gate = None
    if with_gate:
        final = chunked_linear(inputs).state
        d_gate = _gate_gradient(inputs, bounds, dq=dq, dk=dk, final=final, d_final=d_state)
    return LinearGradients(dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), d_gate, torch.cat(d_initial).to(wide))


def _gate_gradient(
    inputs: LinearInputs, bounds: list[tuple[int, int, int]], *, dq: Tensor, dk: Tensor, final: Tensor, d_final: Tensor
) -> Tensor:
    """d g_t = Σ_{i >= t} (q_i · dq_i − k_i · dk_i) + ⟨S_T, dS_T⟩ of t's own sequence, summed in float64."""
    log_decay = inputs.log_decay
    flow = (inputs.q.double() * dq.double()).sum(-1) - (inputs.k.double() * dk.double()).sum(-1)
    through_final = (final.double() * d_final.double()).sum((-1, -2))
    gradient = torch.empty_like(flow)
    for n, (b, t0, t1) in enumerate(bounds):
        gradient[b, :, t0:t1] = flow[b, :, t0:t1].flip(-1).cumsum(-1).flip(-1) + through_final[n][:, None]
    if log_decay.shape[-1] == 1:
        gradient = gradient.sum(-1, keepdim=True)
    if len(log_decay) == 1:
        gradient = gradient.sum(0, keepdim=True)
    return gradient.to(log_decay.dtype)


class _Call(NamedTuple):
    """The arguments that every launch of one pass shares."""

    log_decay: Tensor
    segments: Segments
    chunk: int
    options: dict[str, int | bool]
    value_block: int
    is_wide: bool

    def states(self, k: Tensor, v: Tensor, *, update_scale: float = 1.0, is_reversed: bool = False) -> Tensor:
        d, d_v = k.shape[-1], v.shape[-1]
        n, n_heads = len(self.segments.table), k.shape[1]
        states = torch.empty(n, n_heads, d, d_v, device=k.device)
        if n:
            decay_triton.segment_state[(n, -(-d_v // self._block(d_v)), n_heads)](
                k, v, self.log_decay, self.segments.table, states, *k.stride()[:3], *v.stride()[:3], *self._gate(),
                update_scale, **self._widths(d, d_v), REVERSE=is_reversed, **self.options,
            )  # fmt: skip
        return states

    def rows(
        self, qkv: tuple[Tensor, Tensor, Tensor], states: Tensor, dtype: torch.dtype, *,
        scales: tuple[float, float, float], is_reversed: bool = False, is_turned: bool = False,
    ) -> Tensor:  # fmt: skip
        q, k, v = qkv
        d, d_v = k.shape[-1], v.shape[-1]
        n, n_heads = len(self.segments.table), k.shape[1]
        out = torch.empty(*v.shape, dtype=dtype, device=v.device)
        if n:
            decay_triton.segment_rows[(n, -(-d_v // self._block(d_v)), n_heads)](
                q, k, v, self.log_decay, self.segments.table, states, out,
                *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *self._gate(), *out.stride()[:3],
                *((1, d) if is_turned else (d_v, 1)), *scales,
                **self._widths(d, d_v), REVERSE=is_reversed, **self.options,
            )  # fmt: skip
        return out

    def _widths(self, d: int, d_v: int) -> dict[str, object]:
        return {
            "D": d,
            "DV": d_v,
            "DP": max(16, 1 << (d - 1).bit_length()),
            "BV": self._block(d_v),
            "C": self.chunk,
            "PER_TOKEN": self.log_decay.shape[-1] > 1,
            "WIDE": self.is_wide,
        }

    def _block(self, d_v: int) -> int:
        return min(self.value_block, max(16, 1 << (d_v - 1).bit_length()))

    def _gate(self) -> tuple[int, int, int]:
        of_batch, of_head, of_token = self.log_decay.stride()
        return (of_batch if len(self.log_decay) > 1 else 0, of_head, of_token)


def _call(
    inputs: LinearInputs, bounds: list[tuple[int, int, int]], *, snapshots: Sequence[int] = (), segment: int,
    is_wide: bool = False,
) -> _Call:  # fmt: skip
    k, v = inputs.k, inputs.v
    launch = linear_config(arch_of(k), max(k.shape[-1], v.shape[-1]), k.dtype, is_wide=is_wide)
    options = {**launch.options(), "PRECISION": precision_of(k.dtype)}
    segments = cut_segments(bounds, segment, snapshots, k.device)
    return _Call(inputs.log_decay.contiguous(), segments, launch.rows, options, launch.columns, is_wide)  # type: ignore[arg-type]


def triton_linear(inputs: LinearInputs, *, snapshots: Sequence[int] = (), segment: int = SEGMENT) -> LinearOutput:
    """Linear attention by Triton."""
    inputs, bounds, scale = _unit_last(inputs), inputs.bounds(), inputs.scale
    q, k, v = inputs.q, inputs.k, inputs.v
    call = _call(inputs, bounds, snapshots=snapshots, segment=segment)
    with launching_on(q):
        states = call.states(k, v)
        decay = segment_decay(inputs.log_decay, call.segments)
        entering, final = join_segments(states, decay, _initial(inputs, len(bounds)), call.segments)
        out = call.rows((q, k, v), entering, v.dtype, scales=(scale, scale, 1.0))
    picked = call.segments.snapshots
    taken = entering[picked] * decay[picked][..., None, None] + states[picked]
    return LinearOutput(out, final, taken)


def triton_linear_backward(
    inputs: LinearInputs,
    d_out: Float[Tensor, "b n_heads t d_v"],
    d_state: Float[Tensor, "sequences n_heads d d_v"],
    *,
    with_gate: bool = True,
    segment: int = SEGMENT,
) -> LinearGradients:
    """Gradients by Triton; segment states are computed again instead of kept.

    The gate's gradient is the remainder of sums that nearly cancel: `with_gate` rounds nothing to bfloat16 on the way,
    and products take TF32 at half the speed.
    """
    inputs, bounds, scale = _unit_last(inputs), inputs.bounds(), inputs.scale
    q, k, v = inputs.q, inputs.k, inputs.v
    d_out = _with_unit_last(d_out.to(v.dtype))
    call = _call(inputs, bounds, segment=segment, is_wide=with_gate)
    forward, backward = (scale, scale, 1.0), (scale, 1.0, scale)
    dtype = torch.float32 if with_gate else q.dtype
    with launching_on(q):
        decay = segment_decay(inputs.log_decay, call.segments)
        entering, final = join_segments(call.states(k, v), decay, _initial(inputs, len(bounds)), call.segments)
        dq = call.rows((d_out, v, k), entering, dtype, scales=forward, is_turned=True)
        del entering
        added = call.states(q, d_out, update_scale=scale, is_reversed=True)
        leaving, d_initial = join_segments(added, decay, d_state.float(), call.segments, is_reversed=True)
        dv = call.rows((k, q, d_out), leaving, v.dtype, scales=backward, is_reversed=True)
        dk = call.rows((v, d_out, q), leaving, dtype, scales=backward, is_reversed=True, is_turned=True)
    d_gate = _gate_gradient(inputs, bounds, dq=dq, dk=dk, final=final, d_final=d_state) if with_gate else None
    return LinearGradients(dq.to(q.dtype), dk.to(k.dtype), dv, d_gate, d_initial)


def _unit_last(inputs: LinearInputs) -> LinearInputs:
    """The same with strides of 1 along channels, which the kernels need."""
    return replace(inputs, q=_with_unit_last(inputs.q), k=_with_unit_last(inputs.k), v=_with_unit_last(inputs.v))


def _with_unit_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _initial(inputs: LinearInputs, n_sequences: int) -> Tensor:
    if inputs.initial_state is not None:
        return inputs.initial_state.float()
    k, v = inputs.k, inputs.v
    return torch.zeros(n_sequences, k.shape[1], k.shape[-1], v.shape[-1], device=k.device)


def linear_step(
    q: Float[Tensor, "b n_heads d"],
    k: Float[Tensor, "b n_heads d"],
    v: Float[Tensor, "b n_heads d_v"],
    state: Float[Tensor, "b n_heads d d_v"],
    log_decay: Float[Tensor, "#b n_heads"],
    *,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "b n_heads d_v"], Float[Tensor, "b n_heads d d_v"]]:
    """One more token in torch: its row and the new state, float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    update = einsum(k.to(wide), v.to(wide), "b h d, b h e -> b h d e")
    new = state.to(wide) * torch.exp(log_decay.to(wide))[..., None, None] + update
    return (scale * einsum(q.to(wide), new, "b h d, b h d e -> b h e")).to(v.dtype), new


def triton_linear_step(
    q: Float[Tensor, "b n_heads d"],
    k: Float[Tensor, "b n_heads d"],
    v: Float[Tensor, "b n_heads d_v"],
    state: Float[Tensor, "b n_heads d d_v"],
    log_decay: Float[Tensor, "#b n_heads"],
    *,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "b n_heads d_v"], Float[Tensor, "b n_heads d d_v"]]:
    """One more token by Triton: 8 bytes per state entry and nothing else to speak of."""
    q, k, v, gate, state = (x.contiguous() for x in (q, k, v, log_decay, state.float()))
    d, d_v = q.shape[-1], v.shape[-1]
    launch = step_config(arch_of(q))
    out, new = torch.empty_like(v), torch.empty_like(state)
    with launching_on(q):
        decay_triton.recurrent_step[(q.shape[0] * q.shape[1], -(-d_v // launch.columns))](
            q, k, v, gate, state, out, new, 0 if len(gate) == 1 else q.shape[1], scale,
            HEADS=q.shape[1], D=d, DV=d_v, DP=max(16, 1 << (d - 1).bit_length()), BV=launch.columns,
            **launch.options(),
        )  # fmt: skip
    return out, new
