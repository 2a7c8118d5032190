"""Weights of every softmax head as TransformerLens names them, with norms folded in.

A head reads the residual stream through a norm and W_Q, W_K, W_V, and writes to it through W_O. A norm is a linear map
(a gain, in a LayerNorm after centring) divided by a scale that differs from token to token. Moving the linear map from
the norm into the weights behind it does not change the model, so it is multiplied in here, that of the final norm into
W_U. Left out are the scale, biases, positions, rotary embedding, the norm of queries and keys, and output gates.

Reference:
    Elhage et al. 2021, A Mathematical Framework for Transformer Circuits, "Handling Layer Normalization".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from workbench.heads import LayerInfo, WorkbenchError
from workbench.hooks.model import HookedModel
from workbench.hooks.taps.finite_values import refuse_nonfinite_weights

# Errors of a bridge without weights per head: latent attention, heads of unequal width, no attention.
_NO_HEAD_WEIGHTS = (AttributeError, NotImplementedError, ValueError, IndexError)


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The heads of one layer, float32, norms folded in; W_K and W_V of a group are repeated for each query head."""

    q: Float[Tensor, "n_heads d_model d_head"]
    k: Float[Tensor, "n_heads d_model d_head"]
    v: Float[Tensor, "n_heads d_model d_value"]
    o: Float[Tensor, "n_heads d_value d_model"]


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights for head scores: embedding, unembedding with the final norm folded in, heads.

    `heads` has an entry per entry of `layers`; None for linear layers, which have no W_Q, W_K, W_V per head.
    """

    layers: tuple[LayerInfo, ...]
    embed: Float[Tensor, "vocab d_model"]
    unembed: Float[Tensor, "d_model vocab"]
    heads: tuple[HeadWeights | None, ...]


def read_weights(m: HookedModel) -> Weights:
    """The weights of a model through its TransformerBridge, on the model's device; a copy, in float32.

    Raises:
        WorkbenchError: if TransformerLens cannot open the model, or has no weights per head for one of its layers; if
            weights are NaN or infinite.
    """
    refuse_nonfinite_weights(m.model)
    bridge: Any = m.bridge
    with torch.no_grad():
        return Weights(
            layers=m.layers,
            embed=bridge.W_E.detach().float(),
            unembed=_read_through(_norm(bridge, "ln_final"), bridge.W_U.detach().float()),
            heads=tuple(_heads(m, bridge, info) if info.mixer == "softmax" else None for info in m.layers),
        )


def _heads(m: HookedModel, bridge: Any, info: LayerInfo) -> HeadWeights:
    try:
        block = bridge.blocks[info.index]
        q, k, v, o = (getattr(block.attn, name).detach().float() for name in ("W_Q", "W_K", "W_V", "W_O"))
    except _NO_HEAD_WEIGHTS as error:
        raise WorkbenchError(
            f"TransformerLens gives no W_Q, W_K, W_V, W_O per head for layer {info.index} of {m.name}: "
            f"{str(error)[:200]}. Scores that are read off recordings do not need them"
        ) from error
    group = info.n_heads // info.n_kv_heads
    k, v = (repeat(x, "kv d_model d -> (kv group) d_model d", group=group) for x in (k, v))
    q, k, v = (_read_through(_norm(block, "ln1"), x) for x in (q, k, v))
    return HeadWeights(q, k, v, _written_through(_norm(block, "ln1_post"), _norm(bridge, "ln_final"), o))


def _read_through(norm: nn.Module | None, reading: Float[Tensor, "... d_model d"]) -> Float[Tensor, "... d_model d"]:
    """A matrix that reads the residual stream through a norm, with the linear part of the norm multiplied in."""
    if norm is None:
        return reading
    gain, is_centred = linear_part(norm, reading.shape[-2], reading.device)
    scaled = gain[:, None] * reading
    return scaled - scaled.mean(-2, keepdim=True) if is_centred else scaled


def _written_through(
    norm: nn.Module | None, final: nn.Module | None, writing: Float[Tensor, "h d d_model"]
) -> Float[Tensor, "h d d_model"]:
    """The matrix that writes to the residual stream, with the linear part of the norm behind it multiplied in.

    Where norms subtract the mean, its mean over coordinates is removed as well: no later layer reads it.
    """
    d_model, device = writing.shape[-1], writing.device
    if norm is not None:
        gain, is_centred = linear_part(norm, d_model, device)
        writing = (writing - writing.mean(-1, keepdim=True) if is_centred else writing) * gain
    if final is not None and linear_part(final, d_model, device)[1]:
        writing = writing - writing.mean(-1, keepdim=True)
    return writing


def _norm(holder: Any, name: str) -> nn.Module | None:
    """The model's norm inside the bridge's wrapper of that name, if there is one."""
    inner: Any = holder._modules.get(name)
    while hasattr(inner, "original_component"):
        inner = inner.original_component
    return inner


def linear_part(norm: nn.Module, d_model: int, device: torch.device) -> tuple[Float[Tensor, " d_model"], bool]:
    """A norm's gain, up to a common factor, and whether it subtracts the mean first.

    Both are measured on inputs, since some families store the gain minus 1.
    """
    n_positive = (d_model + 1) // 2
    signs = torch.ones(d_model, device=device)
    signs[n_positive:] = -n_positive / max(1, d_model - n_positive)  # mean 0 also at odd width
    dtype = next((p.dtype for p in norm.parameters()), torch.float32)
    up, down, shifted = (norm(x.to(dtype)).float() for x in (signs, -signs, signs + 1))
    return (up - down) / (2 * signs), bool(torch.allclose(shifted, up, rtol=1e-2, atol=1e-2 * float(up.abs().max())))
