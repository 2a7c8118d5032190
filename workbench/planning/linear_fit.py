"""Which linear attention comes nearest to what each head does: a feature map's sharpness and a decay, without training.

Every pair of a ladder is tried on the head's own queries, keys and values in the model as it is, and the one whose
outputs differ least is taken. One forward pass of the model, and of linear attention as many as there are pairs.

Reference:
    Zhang et al. 2024, LoLCATs, section 3.1: linear attention that matches a layer's outputs, there by training.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from math import inf

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import KVHead
from workbench.hooks import HookedModel
from workbench.hooks.interventions.linear_attention import Features, LinearAttention, linearised
from workbench.hooks.interventions.targets import check_linearisable
from workbench.hooks.interventions.windows import intervened_output
from workbench.hooks.recording.forward_pass import answers_of, batch_of
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.probes import Probe

_SHARPNESS = {"elu": (1.0, 2.0, 4.0, 8.0, 16.0), "taylor": (0.5, 1.0, 2.0)}
_HALF_LIVES = (inf, 1024.0, 256.0, 64.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5)  # in tokens


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A form for each head, and the share of the variance of the head's outputs that it leaves unexplained."""

    forms: dict[KVHead, LinearAttention]
    error: dict[KVHead, float]


def fit_linear_attention(
    m: HookedModel,
    tokens: Int[Tensor, "b t"] | Int[Tensor, " t"] | Probe,
    *,
    features: Features = "elu",
    heads: Collection[KVHead] | None = None,
) -> LinearFit:
    """The forms for `m.linearize`, nearest to what the heads say on some tokens, in squared error of their outputs.

    The variance is that over positions and sequences. Padding does not count.

    Args:
        tokens: text as the model is used on; the more of it the better, but no training is done.
        features: see `LinearAttention`.
        heads: all heads of the layers that see their whole past where absent.

    Raises:
        WorkbenchError: for heads that cannot be given linear attention, unknown features, or tokens that do not fit.
    """
    candidates = _candidates(features)
    full = [info for info in m.layers if info.mixer == "softmax" and info.kind == "full"]
    asked = [KVHead(i.index, h) for i in full for h in range(i.n_kv_heads)] if heads is None else [*heads]
    for head in asked:
        check_linearisable(m.layers, head)
    batch = batch_of(m.model, tokens)
    layers = {head.layer for head in asked}
    errors: dict[int, Float[Tensor, "n_candidates n_kv"]] = {}

    def attend(call: AttentionCall) -> Tensor:
        out = intervened_output(call, m.interventions)
        if call.layer in layers:
            errors[call.layer] = _unexplained(call, out, batch.valid, candidates)
        return out

    with torch.no_grad(), handling(m.model, attend):
        answers_of(m.model, batch)
    best = {layer: found.min(0) for layer, found in errors.items()}
    return LinearFit(
        {head: candidates[int(best[head.layer].indices[head.kv_head])] for head in asked},
        {head: float(best[head.layer].values[head.kv_head]) for head in asked},
    )


def _candidates(features: Features) -> list[LinearAttention]:
    if features not in _SHARPNESS:
        LinearAttention(features)  # which says what was expected
    return [LinearAttention(features, s, 0.5 ** (1 / life)) for s, life in product(_SHARPNESS[features], _HALF_LIVES)]


def _unexplained(
    call: AttentionCall,
    out: Float[Tensor, "b t n_heads d_v"],
    valid: Bool[Tensor, "b t"],
    candidates: list[LinearAttention],
) -> Float[Tensor, "n_candidates n_kv"]:
    """Of every candidate, for each key/value head of the layer."""
    n_kv = call.k.shape[1]
    counted = rearrange(valid.to(out.device), "b t -> b t 1 1")

    def size(x: Float[Tensor, "b t n_heads d_v"]) -> Float[Tensor, " n_kv"]:
        return reduce((x.double() * counted).square(), "b t (kv g) d -> kv", "sum", kv=n_kv)

    mean = (out.double() * counted).sum((0, 1)) / counted.sum()
    variance = size(out - mean).clamp_min(torch.finfo(torch.float64).tiny)
    n_heads = call.q.shape[1]
    found = [size(linearised(call, [form] * n_heads).output() - out) / variance for form in candidates]
    return torch.stack(found)
