"""Activation patching from a corrupted input, head by head, to find the heads that carry an answer.

A linear head may carry an answer that its pattern does not show; patching its output shows it.

Reference:
    Meng et al. 2022, Locating and Editing Factual Associations in GPT, section 2.1 (causal tracing); Wang et al. 2022,
    Interpretability in the Wild, section 3 (path patching). Here one head's output is patched at all positions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from workbench.console import watched_bar
from workbench.heads import Head, Mixer
from workbench.hooks.head_inputs import HeadsLike, query_heads
from workbench.hooks.model import HookedModel
from workbench.hooks.opening import open_model
from workbench.probes.known_answers import Probe
from workbench.probes.token_inputs import ProbeLike, TokensLike, read_probe


@dataclass(frozen=True, slots=True)
class PatchEffect:
    """The change of the mean loss on a probe's answers when one head's output comes from another input, in nats.

    Positive: the model needs the head's own output. `mixer` tells two mixers of a layer apart.
    """

    layer: int
    head: int
    mixer: Mixer
    effect_nats: float


def patch_effects(
    m: HookedModel | nn.Module,
    probe: ProbeLike,
    source: TokensLike | Probe,
    heads: HeadsLike | None = None,
    *,
    progress: bool = True,
) -> list[PatchEffect]:
    """The loss on the probe's answers with one head patched from `source`, less the loss without, for each head.

    `source` is usually the probe without its answers (`probes.corrupted`), of the same shape. Costs one forward pass
    per head, and one over the source per layer. `heads`: by default all, softmax and linear. `progress`: a bar on a
    terminal and in a notebook, in heads.

    Raises:
        WorkbenchError: for heads the model does not have, a probe without answers, or a source of another shape.
    """
    m = open_model(m)
    probe = read_probe(m, probe)
    chosen = None if heads is None else set(query_heads(m.layers, heads))
    by_layer = [
        (
            info,
            [head for head in (Head(info.index, h) for h in range(info.n_heads)) if chosen is None or head in chosen],
        )
        for info in m.layers
    ]
    n_heads = sum(len(layer_heads) for _, layer_heads in by_layer)
    effects: list[PatchEffect] = []
    with watched_bar("head", shown=progress) as show:
        show(0, n_heads, "unpatched")
        unpatched = float(m.answers(probe).loss_nats.mean())
        for info, layer_heads in by_layer:
            outputs = m.head_outputs(layer_heads, source, mixer=info.mixer) if layer_heads else {}
            for head in layer_heads:
                with m.patch([head], outputs, mixer=info.mixer):
                    loss = float(m.answers(probe).loss_nats.mean())
                effects.append(PatchEffect(info.index, head.head, info.mixer, loss - unpatched))
                show(len(effects), n_heads, f"layer {info.index}")
    return effects
