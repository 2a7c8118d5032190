"""The linear attention nearest to each head's output: a feature map's sharpness and a decay, fitted without training.

Every pair of a grid is tried on the head's own queries, keys and values in the model as it is, and the pair whose
outputs differ least is taken. This takes one forward pass of the model, and one pass of linear attention for each pair.

Reference:
    Zhang et al. 2024, LoLCATs, section 3.1: linear attention that matches a layer's outputs, there by training.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import inf

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from workbench.console import watched_bar
from workbench.heads import KVHead
from workbench.hooks import HookedModel, open_model
from workbench.hooks.head_inputs import HeadsLike, kv_heads
from workbench.hooks.interventions.linear_attention import linearised
from workbench.hooks.interventions.targets import check_linearisable
from workbench.hooks.interventions.windows import intervened_output
from workbench.hooks.recording.forward_pass import answers_of, batch_of
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.probes import Probe
from workbench.probes.token_inputs import TokensLike
from workbench.store.conversions import Features, LinearAttention

_SHARPNESS = {"elu": (1.0, 2.0, 4.0, 8.0, 16.0), "taylor": (0.5, 1.0, 2.0)}
_HALF_LIVES = (inf, 1024.0, 256.0, 64.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5)  # in tokens


@dataclass(frozen=True, slots=True)
class LinearFit:
    """The linear attention of each head, and the share of the variance of its outputs that this leaves unexplained."""

    forms: dict[KVHead, LinearAttention]
    error: dict[KVHead, float]

    def __repr__(self) -> str:
        errors = sorted(self.error.values())
        span = f", unexplained {errors[0]:.3g} to {errors[-1]:.3g}" if errors else ""
        return f"LinearFit({len(self.forms)} heads{span}; .forms, .error)"


def fit_linear_attention(
    m: HookedModel | nn.Module,
    tokens: TokensLike | Probe,
    *,
    features: Features = "elu",
    heads: HeadsLike | None = None,
    progress: bool = True,
) -> LinearFit:
    """The linear attention for `m.linearize` that is nearest to the heads' outputs on some tokens, in squared error.

    The variance is over positions and sequences. Padding does not count.

    Args:
        tokens: text like that which the model is used on; the more, the better.
        features: see `LinearAttention`.
        heads: default all heads of the layers that see their whole past.
        progress: a bar on a terminal and in a notebook, in layers.

    Raises:
        WorkbenchError: for heads that cannot have linear attention, unknown features, or tokens that do not fit.
    """
    m, candidates = open_model(m), _candidates(features)
    full = [info for info in m.layers if info.mixer == "softmax" and info.kind == "full"]
    fitted = (
        [KVHead(i.index, h) for i in full for h in range(i.n_kv_heads)] if heads is None else kv_heads(m.layers, heads)
    )
    for head in fitted:
        check_linearisable(m.layers, head)
    batch = batch_of(m.model, tokens, tokenizer=m.tokenizer)
    layers = {head.layer for head in fitted}
    errors: dict[int, Float[Tensor, "n_candidates n_kv"]] = {}

    def attend(call: AttentionCall) -> Tensor:
        out = intervened_output(call, m.interventions)
        if call.layer in layers:
            errors[call.layer] = _unexplained(call, out, batch.valid, candidates)
            show(len(errors), len(layers), f"layer {call.layer}")
        return out

    with watched_bar("layer", shown=progress) as show, torch.no_grad(), handling(m.model, attend):
        show(0, len(layers), "")
        answers_of(m.model, batch)
    best = {layer: by_candidate.min(0) for layer, by_candidate in errors.items()}
    return LinearFit(
        {head: candidates[int(best[head.layer].indices[head.kv_head])] for head in fitted},
        {head: float(best[head.layer].values[head.kv_head]) for head in fitted},
    )


def _candidates(features: Features) -> list[LinearAttention]:
    if features not in _SHARPNESS:
        LinearAttention(features)  # raises, listing the known features
    return [LinearAttention(features, s, 0.5 ** (1 / life)) for s, life in product(_SHARPNESS[features], _HALF_LIVES)]


def _unexplained(
    call: AttentionCall,
    out: Float[Tensor, "b t n_heads d_v"],
    valid: Bool[Tensor, "b t"],
    candidates: list[LinearAttention],
) -> Float[Tensor, "n_candidates n_kv"]:
    """The unexplained share of the variance by candidate, for each key/value head of the layer."""
    n_kv = call.k.shape[1]
    counted = rearrange(valid.to(out.device), "b t -> b t 1 1")

    def squared(x: Float[Tensor, "b t n_heads d_v"]) -> Float[Tensor, " n_kv"]:
        return reduce((x.double() * counted).square(), "b t (kv g) d -> kv", "sum", kv=n_kv)

    mean = (out.double() * counted).sum((0, 1)) / counted.sum()
    variance = squared(out - mean).clamp_min(torch.finfo(torch.float64).tiny)
    n_heads = call.q.shape[1]
    errors = [squared(linearised(call, [form] * n_heads).output() - out) / variance for form in candidates]
    return torch.stack(errors)
