"""What heads hand to the output projection, collected while the model runs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.heads import Head
from workbench.hooks.interventions.targets import ChosenHeads, HeadKey
from workbench.hooks.recording.cells import Sequences
from workbench.hooks.recording.forward_pass import answers_of
from workbench.hooks.taps.attention_call import AttentionCall, Handler
from workbench.hooks.taps.eager import handling
from workbench.hooks.taps.linear.linear_reading import changing_linear


def outputs_of(
    model: PreTrainedModel, chosen: ChosenHeads, batch: Sequences, attend: Handler
) -> dict[HeadKey, Float[Tensor, "b t d_v"]]:
    """The outputs of these heads on a batch, softmax layers being computed by `attend`."""
    found: dict[HeadKey, Tensor] = {}

    def keep(layer: int, out: Tensor, heads: tuple[Head, ...], *, is_linear: bool) -> None:
        found.update({(h, is_linear): out[:, :, h.head].clone() for h in heads if h.layer == layer})

    def attend_and_keep(call: AttentionCall) -> Tensor:
        out = attend(call)
        keep(call.layer, out, chosen.softmax, is_linear=False)
        return out

    def keep_linear(layer: int, out: Tensor, *_: Any) -> Tensor:
        keep(layer, out, chosen.linear, is_linear=True)
        return out

    layers = {h.layer for h in chosen.linear}
    with torch.no_grad(), handling(model, attend_and_keep), changing_linear(model, layers, keep_linear):
        answers_of(model, batch)
    return found
