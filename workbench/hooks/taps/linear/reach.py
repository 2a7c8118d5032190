"""The reach of a linear head: after how many tokens its decay leaves half, or a hundredth, of what it wrote.

Where the decay does not depend on the tokens, the reach follows from the slopes: ln 2 / slope and ln 100 / slope. A
short convolution forgets a token at once, after as many tokens as it has taps.
Elsewhere it is measured on recorded decays. A delta layer also erases, so that its decay is an upper bound on its
reach.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.heads import Mixer, brief
from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer


@dataclass(frozen=True, slots=True)
class Reach:
    """How far each head of a linear layer sees, in tokens; infinite where it forgets less than that within the text.

    One rate per head, or one per key channel (KDA). `is_measured`: a median over the tokens of some sequences, and not
    computed from slopes.
    """

    layer: int
    mixer: Mixer
    half_life: Float[Tensor, "n_heads rates"]
    reach_99: Float[Tensor, "n_heads rates"]
    is_measured: bool

    def __repr__(self) -> str:
        return brief(self)


def decay_reach(layer: LinearLayer) -> Reach | None:
    """The reach of a layer whose decay does not depend on the tokens, or that has taps; None of another."""
    if layer.n_taps is not None:
        taps = torch.full((layer.n_heads, 1), float(layer.n_taps), dtype=torch.float64)
        half_life = reach_99 = taps
    elif layer.slopes is not None:
        slopes = layer.slopes.double()[:, None]
        half_life, reach_99 = math.log(2) / slopes, math.log(100) / slopes
    else:
        return None
    return Reach(
        layer=layer.index,
        mixer=layer.mixer,
        half_life=half_life,
        reach_99=reach_99,
        is_measured=False,
    )


def measured_reach(call: LinearCall, layer: LinearLayer, valid: Bool[Tensor, "b t"]) -> Reach:
    """The reach of a layer on the sequences that are being run.

    Of each token the number of further tokens until its decay leaves at most 1/2, or 1/100; infinite where the sequence
    ends before that. The reach is the median over tokens, finite where at least half of them are.
    """
    assert call.log_decay is not None, "a layer without a decay says its taps"
    log_decay = call.log_decay.expand(len(valid), -1, -1, -1).double() * valid[:, None, :, None]
    forgotten = -log_decay.cumsum(2).movedim(2, -1).contiguous()
    steps = {share: _steps(forgotten, math.log(share), valid) for share in (2, 100)}
    return Reach(layer=layer.index, mixer=layer.mixer, half_life=steps[2], reach_99=steps[100], is_measured=True)


def _steps(
    forgotten: Float[Tensor, "b n_heads rates t"], nats: float, valid: Bool[Tensor, "b t"]
) -> Float[Tensor, "n_heads rates"]:
    n_tokens = forgotten.shape[-1]
    reached = torch.searchsorted(forgotten, forgotten + nats)
    steps = (reached - torch.arange(n_tokens, device=forgotten.device)).double()
    steps = torch.where(reached < n_tokens, steps, torch.inf)
    by_head = steps.movedim(0, 2)[:, :, valid]
    return by_head.quantile(0.5, dim=-1, interpolation="higher")
