"""The gated delta rule: chunked torch on any device (with autograd), the Triton launch, and flash-linear-attention.

S_t = exp(g_t) (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ and o_t = scale · q_t S_t: the value under key k_t is erased
before v_t is written. Keys are expected at unit length; the state is float32 whatever the inputs.

Reference:
    Yang et al. 2024, Gated Delta Networks, equations 10 and the chunkwise form of section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels.dialect import arch_of, launching_on, precision_of
from workbench.kernels.launch_shapes import delta_config
from workbench.kernels.linear import delta_triton
from workbench.kernels.linear.segments import cut_segments, sequence_bounds

CHUNK = 64
# On Hopper these Triton releases miscompile a product with a transposed product, which fla's kernels use.
_MISCOMPILING = ((3, 4, 0), (3, 7, 1))


@dataclass(frozen=True, slots=True)
class DeltaInputs:
    """One pass of the gated delta rule. `cu_seqlens`: bounds of packed sequences, for a batch of one."""

    q: Float[Tensor, "b n_heads t d"]
    k: Float[Tensor, "b n_heads t d"]
    v: Float[Tensor, "b n_heads t d_v"]
    g: Float[Tensor, "b n_heads t"]
    beta: Float[Tensor, "b n_heads t"]
    scale: float
    initial_state: Float[Tensor, "sequences n_heads d d_v"] | None = None
    cu_seqlens: Sequence[int] | None = None

    @property
    def needs_gradients(self) -> bool:
        tensors = (self.q, self.k, self.v, self.g, self.beta, self.initial_state)
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


class DeltaOutput(NamedTuple):
    """Rows, and the state after each sequence's last token."""

    out: Float[Tensor, "b n_heads t d_v"]
    state: Float[Tensor, "sequences n_heads d d_v"]


def chunked_delta(inputs: DeltaInputs, *, chunk: int = CHUNK) -> DeltaOutput:
    """The delta rule in torch: a triangular solve per chunk, the past through the state."""
    q, k, v, g, beta = inputs.q, inputs.k, inputs.v, inputs.g, inputs.beta
    cu_seqlens, initial_state = inputs.cu_seqlens, inputs.initial_state
    bounds = sequence_bounds(len(q), q.shape[2], cu_seqlens)
    wide = torch.promote_types(q.dtype, torch.float32)
    spans = [(0, q.shape[2])] if cu_seqlens is None else [(first, last) for _, first, last in bounds]
    outs: list[Tensor] = []
    states: list[Tensor] = []
    for n, (t0, t1) in enumerate(spans):
        size = (len(q), q.shape[1], q.shape[3], v.shape[3])
        picked = None if initial_state is None else initial_state if cu_seqlens is None else initial_state[n : n + 1]
        state = q.new_zeros(size, dtype=wide) if picked is None else picked.to(wide)
        for s in range(t0, t1, chunk):
            span = slice(s, min(s + chunk, t1))
            out, state = _chunk(q[:, :, span], k[:, :, span], v[:, :, span], g[:, :, span], beta[:, :, span], state)
            outs.append(inputs.scale * out)
        states.append(state)
    out = torch.cat(outs, 2) if outs else v.to(wide)
    return DeltaOutput(out.to(v.dtype), torch.cat(states))


def _chunk(  # noqa: PLR0917  # the tensors of one chunk
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    wide = state.dtype
    q, k, v, beta = (x.to(wide) for x in (q, k, v, beta))
    through = g.double().cumsum(-1)
    apart = rearrange(through, "b h i -> b h i 1") - rearrange(through, "b h j -> b h 1 j")
    causal = torch.ones(apart.shape[-2:], dtype=torch.bool, device=q.device).tril()
    between = torch.exp(apart.masked_fill(~causal, -torch.inf)).to(wide)
    since_start = torch.exp(through).to(wide)[..., None]
    to_end = torch.exp(through[..., -1:] - through).to(wide)[..., None]
    links = (einsum(k, k, "b h i d, b h j d -> b h i j") * between * beta[..., None]).tril(-1)
    held = since_start * (k @ state)
    update = torch.linalg.solve_triangular(links, beta[..., None] * (v - held), upper=False, unitriangular=True)
    rows = einsum(q, k, "b h i d, b h j d -> b h i j") * between
    out = since_start * (q @ state) + rows @ update
    whole = torch.exp(through[..., -1]).to(wide)[..., None, None]
    return out, whole * state + einsum(k * to_end, update, "b h t d, b h t e -> b h d e")


def triton_delta(inputs: DeltaInputs) -> DeltaOutput:
    """The delta rule by Triton, for heads of at most 128 channels.

    Raises:
        WorkbenchError: for wider heads, whose state no program can hold.
    """
    q, k, v, initial_state = inputs.q, inputs.k, inputs.v, inputs.initial_state
    if max(q.shape[-1], v.shape[-1]) > 128:
        raise WorkbenchError(
            f"heads of {q.shape[-1]} key and {v.shape[-1]} value channels were given; the Triton kernel takes at most "
            "128: use backend='torch'"
        )
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    g, beta = inputs.g.contiguous(), inputs.beta.contiguous()
    n_heads, n_tokens, d, d_v = q.shape[1], q.shape[2], q.shape[3], v.shape[3]
    bounds = sequence_bounds(len(q), n_tokens, inputs.cu_seqlens)
    launch = delta_config(arch_of(q), max(d, d_v), q.dtype)
    chunks = cut_segments(bounds, launch.rows, (), q.device).table
    updates = torch.empty(len(q), n_heads, n_tokens, d_v, device=q.device)
    erased = torch.empty(len(q), n_heads, n_tokens, d, dtype=q.dtype, device=q.device)
    out = torch.empty(len(q), n_heads, n_tokens, d_v, dtype=v.dtype, device=q.device)
    new = torch.empty(len(bounds), n_heads, d, d_v, device=q.device)
    state = torch.zeros_like(new) if initial_state is None else initial_state.float().contiguous()
    block = min(launch.columns, max(16, 1 << (d_v - 1).bit_length()))
    widths = {"HEADS": n_heads, "D": d, "DV": d_v, "DP": max(16, 1 << (d - 1).bit_length()), "BV": block}
    widths |= {"C": launch.rows, "PRECISION": precision_of(q.dtype)}
    with launching_on(q):
        if len(chunks):
            delta_triton.delta_chunks[(len(chunks), n_heads)](
                k, v, g, beta, chunks, updates, erased, *k.stride()[:3], *v.stride()[:3], n_tokens,
                **widths, **launch.options(),
            )  # fmt: skip
        table = torch.tensor(bounds, dtype=torch.int32, device=q.device)
        delta_triton.delta_rows[(len(bounds), -(-d_v // block), n_heads)](
            q, k, g, updates, erased, table, state, out, new, *q.stride()[:3], *k.stride()[:3], n_tokens,
            inputs.scale,
            **widths, **launch.options(),
        )  # fmt: skip
    return DeltaOutput(out, new)


def fla_refusal(arch: int, triton_version: str) -> str | None:
    """Why flash-linear-attention may not be used here; None if it may."""
    if find_spec("fla") is None:
        return "flash-linear-attention is not installed"
    if arch == 0:
        return "flash-linear-attention runs on CUDA only"
    release = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in triton_version.split(".")[:3])
    if 90 <= arch < 100 and _MISCOMPILING[0] <= release < _MISCOMPILING[1]:
        return f"on Hopper, triton {triton_version} miscompiles its kernels: take triton >= 3.7.1"
    return None


def fla_delta(inputs: DeltaInputs) -> DeltaOutput:
    """The delta rule by flash-linear-attention, forward and backward.

    Raises:
        WorkbenchError: where it is not installed, cannot run, or is known to be wrong.
    """
    import triton

    reason = fla_refusal(arch_of(inputs.q), triton.__version__)
    if reason is not None:
        raise WorkbenchError(f"backend='fla' was asked for, but {reason}; use backend='auto'")
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # pyright: ignore[reportMissingImports]

    packed = inputs.cu_seqlens
    bounds = None if packed is None else torch.tensor(list(packed), device=inputs.q.device)
    turned = (rearrange(x, "b h t d -> b t h d") for x in (inputs.q, inputs.k, inputs.v))
    gates = (rearrange(x, "b h t -> b t h") for x in (inputs.g, inputs.beta))
    out, state = chunk_gated_delta_rule(
        *turned,
        *gates,
        scale=inputs.scale,
        initial_state=inputs.initial_state,
        output_final_state=True,
        cu_seqlens=bounds,
    )
    return DeltaOutput(rearrange(out, "b t h d -> b h t d"), state.float())
