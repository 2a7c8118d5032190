"""The linear attention nearest to each head's output: a feature map's sharpness and a decay, fitted without training.

Every pair of a grid is tried on the head's own queries, keys and values in the model as it is, and the pair whose
outputs differ least is taken. This takes one forward pass of the model, and one pass of linear attention for each pair.
A fit that is no good is flagged: one at the end of the grid that would be better still beyond it, and one that is worse
than the head's mean output.

Reference:
    Zhang et al. 2024, LoLCATs, section 3.1: linear attention that matches a layer's outputs, there by training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from math import inf
from typing import Literal

import pandas as pd
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

# Far out, elu features are those of a ReLU, whose weights no longer depend on the sharpness.
_SHARPNESS: dict[Features, tuple[float, ...]] = {
    "elu": (0.0625, 0.25, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0),
    "taylor": (0.125, 0.25, 0.5, 1.0, 2.0, 4.0),
}
_HALF_LIVES = (inf, 1024.0, 256.0, 64.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25)  # in tokens
# A fit at an end of the grid is flagged if the error falls by more than this share on the way there.
_STILL_FALLS = 0.01
LADDER_END, ERROR_ABOVE_1 = "ladder_end", "error_above_1"


@dataclass(frozen=True, slots=True)
class LinearFit:
    """The linear attention of each head, and the share of the variance of its outputs that this leaves unexplained.

    `flags`: of each head, `;` between them; "" for a fit that can be used. `ladder_end`: the error still falls at the
    end of the grid. `error_above_1`: the head's mean output, always, would be nearer to its outputs.
    """

    forms: dict[KVHead, LinearAttention]
    error: dict[KVHead, float]
    flags: dict[KVHead, str]

    def __repr__(self) -> str:
        errors = sorted(self.error.values())
        span = f", unexplained {errors[0]:.3g} to {errors[-1]:.3g}" if errors else ""
        n_flagged = sum(map(bool, self.flags.values()))
        flagged = f", {n_flagged} flagged" if n_flagged else ""
        return f"LinearFit({len(self.forms)} heads{span}{flagged}; .forms, .error, .table())"

    @property
    def usable(self) -> dict[KVHead, LinearAttention]:
        """The forms without a flag."""
        return {head: form for head, form in self.forms.items() if not self.flags[head]}

    def table(self) -> pd.DataFrame:
        """One row per head: head_name, layer, kv_head, features, sharpness, decay, error, flags (also as fit_flags)."""
        rows = [
            {
                "head_name": str(head),
                "layer": head.layer,
                "kv_head": head.kv_head,
                **asdict(form),
                "error": self.error[head],
                "flags": self.flags[head],
                "fit_flags": self.flags[head],  # `table.flags` is an attribute of every DataFrame
            }
            for head, form in self.forms.items()
        ]
        columns = ["head_name", "layer", "kv_head", "features", "sharpness", "decay", "error", "flags", "fit_flags"]
        return pd.DataFrame(rows, columns=columns)


def fit_linear_attention(
    m: HookedModel | nn.Module,
    tokens: TokensLike | Probe,
    *,
    features: Features | Literal["best"] = "elu",
    heads: HeadsLike | None = None,
    progress: bool = True,
) -> LinearFit:
    """The linear attention for `m.linearize` that is nearest to the heads' outputs on some tokens, in squared error.

    The variance is over positions and sequences. Padding does not count.

    Args:
        tokens: text like that which the model is used on; the more, the better.
        features: see `LinearAttention`; `best`: for each head those that come nearer. Taylor features take minutes
            where elu features take seconds.
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
    by_head = {
        head: dict(zip(candidates, errors[head.layer][:, head.kv_head].tolist(), strict=True)) for head in fitted
    }
    forms = {head: min(by_form, key=lambda form: by_form[form]) for head, by_form in by_head.items()}
    return LinearFit(
        forms,
        {head: by_head[head][form] for head, form in forms.items()},
        {head: _flags(form, by_head[head]) for head, form in forms.items()},
    )


def n_candidates(features: Features | Literal["best"] = "elu") -> int:
    """How many forms are tried for each head."""
    return len(_candidates(features))


def _candidates(features: Features | Literal["best"]) -> list[LinearAttention]:
    if features != "best" and features not in _SHARPNESS:
        LinearAttention(features)  # raises, listing the known features
    chosen: tuple[Features, ...] = tuple(_SHARPNESS) if features == "best" else (features,)
    return [LinearAttention(f, s, _decay(life)) for f in chosen for s, life in product(_SHARPNESS[f], _HALF_LIVES)]


def _decay(half_life: float) -> float:
    return 0.5 ** (1 / half_life)


def _flags(form: LinearAttention, errors: dict[LinearAttention, float]) -> str:
    """What is wrong with a fit, given the errors of all candidates."""
    sharpness, decays = _SHARPNESS[form.features], [_decay(life) for life in _HALF_LIVES]
    inner: list[LinearAttention] = []
    for end, next_to_it in ((0, 1), (-1, -2)):
        if form.sharpness == sharpness[end]:
            inner.append(replace(form, sharpness=sharpness[next_to_it]))
    if form.decay == decays[-1]:  # the other end is no decay at all
        inner.append(replace(form, decay=decays[-2]))
    still_falls = any(errors[form] < (1 - _STILL_FALLS) * errors[other] for other in inner)
    named = {LADDER_END: still_falls, ERROR_ABOVE_1: not errors[form] <= 1}
    return ";".join(name for name, is_so in named.items() if is_so)


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
