"""Activation patching from a corrupted input, head by head, to find the heads that carry an answer.

A linear head may carry an answer that its pattern does not show; patching its output shows it.

Reference:
    Meng et al. 2022, Locating and Editing Factual Associations in GPT, section 2.1 (causal tracing); Wang et al. 2022,
    Interpretability in the Wild, section 3 (path patching). Here one head's output is patched at all positions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

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
) -> list[PatchEffect]:
    """The loss on the probe's answers with one head patched from `source`, less the loss without, for each head.

    `source` is usually the probe without its answers (`probes.corrupted`), of the same shape. Costs one forward pass
    per head, and one over the source per layer. `heads`: by default all, softmax and linear.

    Raises:
        WorkbenchError: for heads the model does not have, a probe without answers, or a source of another shape.
    """
    m = open_model(m)
    probe = read_probe(m, probe)
    chosen = None if heads is None else set(query_heads(m.layers, heads))
    unpatched = float(m.answers(probe).loss_nats.mean())
    effects: list[PatchEffect] = []
    for info in m.layers:
        layer_heads = [Head(info.index, h) for h in range(info.n_heads)]
        if chosen is not None:
            layer_heads = [head for head in layer_heads if head in chosen]
        outputs = m.head_outputs(layer_heads, source, mixer=info.mixer) if layer_heads else {}
        for head in layer_heads:
            with m.patch([head], outputs, mixer=info.mixer):
                loss = float(m.answers(probe).loss_nats.mean())
            effects.append(PatchEffect(info.index, head.head, info.mixer, loss - unpatched))
    return effects
