"""Gated delta nets with one decay per head: Qwen3-Next, Qwen3.5, Qwen4-Exp, OLMo-hybrid.

Every token decays the state, erases the value that the state holds at its key, and writes its own with strength β.

Reference:
    Yang et al. 2025, Gated Delta Networks, eq. 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, cat
from torch.nn.functional import softplus

from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer, convolved, normalised
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import DeltaRows


def _describe(module: Any) -> LinearLayer:
    return LinearLayer(
        index=int(module.layer_idx),
        mixer="gdn",
        n_heads=int(module.num_v_heads),
        n_kv_heads=int(module.num_k_heads),
        d_head=int(module.head_k_dim),
        has_conv=True,
    )


@mixer(
    "Qwen3NextGatedDeltaNet",
    describe=_describe,
    taps=("in_proj_qkvz", "in_proj_ba"),
    norm="norm",
    projection="out_proj",
)
def read_qwen3_next(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read Qwen3-Next: queries, keys, values and gate in one projection, write strength and decay in another."""
    q, k, v, _, b, a = module.fix_query_key_value_ordering(outputs["in_proj_qkvz"], outputs["in_proj_ba"])
    mixed = cat([rearrange(x, "b t h d -> b t (h d)") for x in (q, k, v)], -1)
    return _call(module, mixed, decay_input=a, strength=b.float().sigmoid(), valid=valid)


@mixer(
    "Qwen3_5GatedDeltaNet",
    "Qwen3_5MoeGatedDeltaNet",
    "Qwen4ExpTextGatedDeltaNet",
    describe=_describe,
    taps=("in_proj_qkv", "in_proj_a", "in_proj_b"),
    norm="norm",
    projection="out_proj",
)
def read_qwen3_5(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read Qwen3.5 and Qwen4-Exp: queries, keys and values in one projection, decay and write strength in one each."""
    strength = outputs["in_proj_b"].float().sigmoid()
    return _call(module, outputs["in_proj_qkv"], decay_input=outputs["in_proj_a"], strength=strength, valid=valid)


@mixer(
    "OlmoHybridGatedDeltaNet",
    describe=_describe,
    taps=("q_proj", "k_proj", "v_proj", "a_proj", "b_proj"),
    norm="o_norm",
    projection="o_proj",
)
def read_olmo_hybrid(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read OLMo-hybrid: a projection for each input; a write strength of up to 2 where eigenvalues may be negative."""
    mixed = cat([outputs[name] for name in ("q_proj", "k_proj", "v_proj")], -1)
    strength = outputs["b_proj"].float().sigmoid() * (2 if module.allow_neg_eigval else 1)
    return _call(module, mixed, decay_input=outputs["a_proj"], strength=strength, valid=valid)


def _call(
    module: Any,
    mixed: Float[Tensor, "b t c"],
    *,
    decay_input: Float[Tensor, "b t n_heads"],
    strength: Float[Tensor, "b t n_heads"],
    valid: Bool[Tensor, "b t"],
) -> LinearCall:
    """The call of a layer, from its projections; `mixed`: q, k and v side by side."""
    q, k, v = convolved(module, mixed).split([module.key_dim, module.key_dim, module.value_dim], -1)
    q, k = (rearrange(x, "b t (h d) -> b h t d", h=module.num_k_heads) for x in (q, k))
    log_decay = -module.A_log.float().exp() * softplus(decay_input.float() + module.dt_bias.float())
    q, k = normalised(q) * q.shape[-1] ** -0.5, normalised(k)
    log_decay = rearrange(log_decay, "b t h -> b h t 1")
    return LinearCall(
        layer=int(module.layer_idx),
        q=q,
        k=k,
        v=rearrange(v, "b t (h d) -> b h t d", h=module.num_v_heads),
        log_decay=log_decay,
        rows=DeltaRows(q, k, log_decay, rearrange(strength, "b t h -> b h t"), valid),
    )
