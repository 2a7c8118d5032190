"""Mamba-1 state space layers, of which every channel has a pattern of its own; the layer is one head.

P_c[i, j] = Σ_n C_i[n] B_j[n] dt_j[c] exp(−exp(A_log[c, n]) Σ_{j < s ≤ i} dt_s[c]), plus D[c] on the diagonal, times x
after the convolution. The head's pattern is the mean over channels. The gate comes after, channel by channel.

Reference:
    Gu and Dao 2023, Mamba, algorithm 2; Ali et al. 2024, The Hidden Attention of Mamba Models, eq. 11, without D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import silu, softplus

from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer, convolved
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import ChannelDecayRows


def _describe(module: Any) -> LinearLayer:
    return LinearLayer(
        index=int(module.layer_idx),
        mixer="mamba1",
        n_heads=1,
        n_kv_heads=1,
        d_head=int(module.ssm_state_size),
        has_conv=True,
    )


@mixer(
    "MambaMixer",
    describe=_describe,
    taps=("in_proj", "x_proj"),
    norm="out_proj",
    projection="out_proj",
)
def read_mamba1(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read Mamba-1: one projection gives x and gate, and one of x gives dt, B and C."""
    n = module.ssm_state_size
    dt, b, c = outputs["x_proj"].split([module.time_step_rank, n, n], -1)
    return _call(module, outputs["in_proj"], (dt, b, c), valid)


@mixer(
    "FalconMambaMixer",
    "JambaMambaMixer",
    describe=_describe,
    taps=("in_proj", "dt_layernorm", "b_layernorm", "c_layernorm"),
    norm="out_proj",
    projection="out_proj",
)
def read_normalised_mamba1(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read Mamba-1 of Falcon-Mamba and Jamba, which normalise dt, B and C."""
    dt, b, c = (outputs[f"{name}_layernorm"] for name in ("dt", "b", "c"))
    return _call(module, outputs["in_proj"], (dt, b, c), valid)


def _call(
    module: Any,
    projected: Float[Tensor, "b t two_c"],
    selective: tuple[Tensor, Tensor, Tensor],
    valid: Bool[Tensor, "b t"],
) -> LinearCall:
    """The call of a layer; `selective`: dt before its projection, B and C."""
    mixed, gate = projected.chunk(2, -1)
    x = convolved(module, mixed) * valid[..., None].to(mixed.dtype)
    low_rank, b, c = selective
    dt = softplus((low_rank @ module.dt_proj.weight.T).float() + module.dt_proj.bias.float())
    rates = module.A_log.float().exp()
    return LinearCall(
        layer=int(module.layer_idx),
        q=rearrange(c, "b t n -> b 1 t n"),
        k=rearrange(b, "b t n -> b 1 t n"),
        v=rearrange(x, "b t c -> b 1 t c"),
        log_decay=rearrange(-dt * rates.amin(-1), "b t c -> b 1 t c"),
        rows=ChannelDecayRows(
            1, c, b, -dt, rates, strength=dt, skip=module.D.detach().float()[None, None], valid=valid
        ),
        gate=rearrange(silu(gate), "b t c -> b t 1 c"),
    )
