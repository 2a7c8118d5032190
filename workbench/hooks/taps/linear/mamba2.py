"""Mamba-2 state space layers: A[i, j] = (C_i · B_j) dt_j exp(Σ_{j < s ≤ i} −exp(A_log) dt_s), plus D on the diagonal.

C are the queries and B the keys, shared by the heads of a group; v is x after the convolution.

Reference:
    Dao and Gu 2024, Transformers are SSMs, eq. 6; D is the skip connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import softplus

from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer, convolved
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import DecayRows


def _describe(module: Any) -> LinearLayer:
    return LinearLayer(
        index=int(module.layer_idx),
        mixer="ssm",
        n_heads=int(module.num_heads),
        n_kv_heads=int(module.n_groups),
        d_head=int(module.ssm_state_size),
        has_conv=True,
    )


@mixer(
    "BambaMixer",
    "FalconH1Mixer",
    "GraniteMoeHybridMambaLayer",
    "Mamba2Mixer",
    "NemotronHMamba2Mixer",
    "Zamba2MambaMixer",
    describe=_describe,
    taps=("in_proj",),
    norm="norm",
    projection="out_proj",
)
def read_mamba2(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read Mamba-2: one projection gives gate, x, B, C and dt."""
    projected = outputs["in_proj"]
    multipliers = getattr(module, "mup_vector", None)  # Falcon-H1 scales its projections
    if multipliers is not None:
        projected = projected * multipliers
    width, state = module.intermediate_size, module.n_groups * module.ssm_state_size
    _, mixed, dt = projected.split([width, width + 2 * state, module.num_heads], -1)
    x, b, c = convolved(module, mixed).split([width, state, state], -1)
    q, k = (rearrange(y, "b t (g n) -> b g t n", g=module.n_groups) for y in (c, b))
    dt = softplus(dt.float() + module.dt_bias.float()).clamp(*module.time_step_limit)
    dt = rearrange(dt, "b t h -> b h t")
    log_decay = -rearrange(module.A_log.float().exp(), "h -> 1 h 1") * dt
    return LinearCall(
        layer=int(module.layer_idx),
        q=q,
        k=k,
        v=rearrange(x, "b t (h p) -> b h t p", h=module.num_heads),
        log_decay=rearrange(log_decay, "b h t -> b h t 1"),
        rows=DecayRows(q, k, log_decay, strength=dt, skip=module.D.float(), valid=valid),
    )
