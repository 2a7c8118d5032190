"""Sliding layers of a model that see the whole past: whether any of them wants more than its window.

Their queries and keys stay as they are, rotated as the model rotates them, so that distances beyond the window are
ones that the layer was never trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor
from transformers.masking_utils import causal_mask_function

from workbench.heads import LayerInfo, WorkbenchError
from workbench.hooks import HookedModel
from workbench.hooks.interventions.windows import intervened_output
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling


def sliding_layers(layers: Sequence[LayerInfo]) -> list[int]:
    """The numbers of the layers that have a sliding window of their own."""
    return [info.index for info in layers if info.kind == "sliding"]


@contextmanager
def without_own_window(m: HookedModel, layers: Collection[int]) -> Generator[None]:
    """Inside the block, these sliding layers see the whole past, padding apart; interventions stay in force.

    Raises:
        WorkbenchError: for a layer that has no sliding window, and inside for packed documents.
    """
    others = sorted(set(layers) - set(sliding_layers(m.layers)))
    if others:
        raise WorkbenchError(
            f"layers {others} of {m!r} have no sliding window; expected some of {sliding_layers(m.layers)}"
        )

    def attend(call: AttentionCall) -> Tensor:
        if call.layer in layers:
            if call.mask.documents is not None:
                raise WorkbenchError("packed documents were given; expected one text a sequence")
            call = replace(call, mask=replace(call.mask, function=causal_mask_function, window=None))
        return intervened_output(call, m.interventions)

    with handling(m.model, attend):
        yield
