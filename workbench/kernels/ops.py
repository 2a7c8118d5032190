"""The operations to call: each chooses its backend by device, and supports gradients and torch.compile.

Each is a torch custom op with a kernel per device. `explain` names the backend of each operation, and why.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels.dispatch import Backend, Choice, choose, choose_for, explain
from workbench.kernels.linear import delta, linear_ops
from workbench.kernels.linear.decay import LinearOutput
from workbench.kernels.softmax import softmax_ops
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer, sink_share
from workbench.kernels.softmax.statistics_request import AttentionProfile, Request

__all__ = [
    "Backend",
    "Choice",
    "attention_column_sums",
    "attention_profile",
    "choose",
    "choose_for",
    "explain",
    "gated_delta_rule",
    "linear_attention",
    "linear_attention_step",
]


def attention_profile(
    layer: SoftmaxLayer,
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    request: Request,
    *,
    backend: Backend = "auto",
) -> AttentionProfile:
    """Output and row statistics of a layer whose mask is `Intervals`, or a `SelectedMask` of them.

    Gradients flow through `out` and `lse` alone.

    Raises:
        WorkbenchError: if the mask is of another kind, a profile does not hold the request, or the requested backend
            cannot run.
    """
    if not request.is_of_profile:
        raise WorkbenchError(
            "a profile holds entropy, arg-maxima, distance, windows and tags of every row, and more was requested; use "
            "workbench.kernels.attention_statistics"
        )
    q, k, (seen, selection) = layer.q, layer.k, layer.profile_mask
    selected, block = (None, 1) if selection is None else (selection.selected, selection.block)
    chosen = choose_for("attention_profile", (q, k if v is None else v), backend).backend
    out, lse, entropy, top_key, top_mass, mean_distance, beyond, tag_mass = softmax_ops.profile_op(
        q, k, v, seen.position, seen.low, seen.high, seen.starts_at_zero, layer.sinks, layer.scale, layer.softcap,
        list(request.windows), request.query_tags, request.key_tags, request.entropy, request.top, request.distance,
        chosen, selected, block,
    )  # fmt: skip
    return AttentionProfile(
        out=None if v is None else out,
        lse=lse,
        entropy=entropy if request.entropy else None,
        top_key=top_key if request.top else None,
        top_mass=top_mass if request.top else None,
        mean_distance=mean_distance if request.distance else None,
        beyond=beyond if request.windows else None,
        tag_mass=tag_mass if request.query_tags is not None else None,
        sink_mass=sink_share(layer.sinks, lse),
    )


def attention_column_sums(
    layer: SoftmaxLayer, lse: Float[Tensor, "b n_heads q"], *, backend: Backend = "auto"
) -> Float[Tensor, "b n_heads k"]:
    """Attention received by each key, Σ_i p_ij, from the rows' denominators; no gradient."""
    q, k, lse, seen = layer.q.detach(), layer.k.detach(), lse.detach(), layer.intervals
    chosen = choose_for("attention_column_sums", (q, k), backend).backend
    return softmax_ops.column_sums_op(
        q, k, lse, seen.position, seen.low, seen.high, seen.starts_at_zero, layer.scale, layer.softcap, chosen
    )


def linear_attention(  # noqa: PLR0913  # public keywords
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
        snapshots: rising token counts, from 1 to the length of the shortest sequence.

    Raises:
        WorkbenchError: for other snapshots, or bounds that do not cover the tokens.
    """
    chosen = choose_for("linear_attention", (q, v), backend).backend
    gate = log_decay[None, :, None] if log_decay.ndim == 1 else log_decay
    bounds = None if cu_seqlens is None else list(cu_seqlens)
    return LinearOutput(
        *linear_ops.linear_attention_op(q, k, v, gate, scale, initial_state, bounds, list(snapshots), chosen)
    )


def linear_attention_step(  # noqa: PLR0913  # public keywords
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
    chosen = choose_for("linear_attention_step", (q, v), backend).backend
    gate = log_decay[None] if log_decay.ndim == 1 else log_decay
    return linear_ops.linear_attention_step_op(*(x.detach() for x in (q, k, v, state, gate)), scale, chosen)


def gated_delta_rule(  # noqa: PLR0913  # public keywords
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
) -> delta.DeltaOutput:
    """Rows and last states of the gated delta rule; `k` at unit length.

    Gradients: with torch and fla. Where any input requires them, "auto" takes torch; the Triton kernel has none.
    """
    chosen = choose_for("gated_delta_rule", (q, v), backend).backend
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    bounds = None if cu_seqlens is None else list(cu_seqlens)
    inputs = delta.DeltaInputs(q, k, v, g, beta, factor, initial_state, bounds)
    if chosen == "triton" and inputs.needs_gradients:
        if backend != "auto":
            raise WorkbenchError(
                "backend='triton' was asked for the gated delta rule of tensors that require gradients, and it has no "
                "backward pass; use backend='auto', 'torch' or 'fla', or torch.no_grad()"
            )
        chosen = "torch"
    if chosen == "fla":
        return delta.fla_delta(inputs)
    if chosen == "torch":
        return delta.chunked_delta(inputs)
    return delta.DeltaOutput(*linear_ops.gated_delta_rule_op(q, k, v, g, beta, factor, initial_state, bounds))
