"""Activation patching from a corrupted input, head by head, to find the heads that carry an answer.

A linear head may carry an answer that its pattern does not show; patching its output shows it.

Reference:
    Meng et al. 2022, Locating and Editing Factual Associations in GPT, section 2.1 (causal tracing); Wang et al. 2022,
    Interpretability in the Wild, section 3 (path patching). Here one head's output is patched at all positions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import nn

from workbench.console import watched_bar
from workbench.heads import Head, Mixer
from workbench.hooks.head_inputs import HeadsLike, query_heads
from workbench.hooks.model import HookedModel
from workbench.hooks.opening import open_model
from workbench.probes.known_answers import Probe, corrupted
from workbench.probes.token_inputs import ProbeLike, TokensLike, read_probe

# As those of scores.
_RESAMPLES, _MIN_SEQUENCES = 1000, 5


@dataclass(frozen=True, slots=True)
class PatchEffect:
    """The change of the mean loss on a probe's answers when one head's output comes from another input, in nats.

    Positive: the model needs the head's own output. `mixer` tells two mixers of a layer apart. `ci_lo`, `ci_hi`: the
    95 % interval over sequences, NaN below five. `accuracy_change`: of the share of answers that are right.
    """

    layer: int
    head: int
    mixer: Mixer
    effect_nats: float
    ci_lo: float = math.nan
    ci_hi: float = math.nan
    accuracy_change: float = math.nan


class PatchEffects(list[PatchEffect]):
    """The effects of heads, in the order of the model's; `table` has them as pandas."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per head: head_name, layer, head, mixer, effect_nats, ci_lo, ci_hi, accuracy_change."""
        names = [str(Head(effect.layer, effect.head)) for effect in self]
        rows = pd.DataFrame([asdict(effect) for effect in self], columns=[field.name for field in fields(PatchEffect)])
        rows.insert(0, "head_name", pd.Series(names, dtype=object))
        return rows


def patch_effects(
    m: HookedModel | nn.Module,
    probe: ProbeLike,
    source: TokensLike | Probe | None = None,
    heads: HeadsLike | None = None,
    *,
    progress: bool = True,
) -> PatchEffects:
    """The loss on the probe's answers with one head patched from `source`, less the loss without, for each head.

    `source`: tokens of the same shape; by default the probe's own without its answers (`probes.corrupted`). Costs one
    forward pass per head, and one over the source per layer. `heads`: by default all, softmax and linear. `progress`: a
    bar on a terminal and in a notebook, in heads.

    Returns:
        A list of `PatchEffect`, whose `table` is the same as pandas.

    Raises:
        WorkbenchError: for heads the model does not have, a probe without answers, or a source of another shape.
    """
    m = open_model(m)
    probe = read_probe(m, probe)
    other = corrupted(m, probe) if source is None else source
    chosen = None if heads is None else set(query_heads(m.layers, heads))
    by_layer = [
        (
            info,
            [head for head in (Head(info.index, h) for h in range(info.n_heads)) if chosen is None or head in chosen],
        )
        for info in m.layers
    ]
    n_heads = sum(len(layer_heads) for _, layer_heads in by_layer)
    effects = PatchEffects()
    with watched_bar("head", shown=progress) as show:
        show(0, n_heads, "unpatched")
        unpatched = m.answers(probe)
        for info, layer_heads in by_layer:
            outputs = m.head_outputs(layer_heads, other, mixer=info.mixer) if layer_heads else {}
            for head in layer_heads:
                with m.patch([head], outputs, mixer=info.mixer):
                    patched = m.answers(probe)
                change = (patched.loss_nats - unpatched.loss_nats).double().cpu().numpy()
                interval = _interval(change, unpatched.at[:, 0].cpu().numpy())
                accuracy = patched.accuracy - unpatched.accuracy
                effect = PatchEffect(
                    info.index, head.head, info.mixer, patched.loss - unpatched.loss, *interval, accuracy
                )
                effects.append(effect)
                show(len(effects), n_heads, f"layer {info.index}")
    return effects


def _interval(change: Float[np.ndarray, " n_rows"], sequence: Int[np.ndarray, " n_rows"]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over answers, sequences drawn anew."""
    _, index = np.unique(sequence, return_inverse=True)
    n = int(index.max()) + 1
    if n < _MIN_SEQUENCES:
        return math.nan, math.nan
    total, count = np.bincount(index, weights=change), np.bincount(index)
    draws = np.random.default_rng([0, n]).integers(n, size=(_RESAMPLES, n))
    low, high = np.percentile(total[draws].sum(1) / count[draws].sum(1), (2.5, 97.5))
    return float(low), float(high)
