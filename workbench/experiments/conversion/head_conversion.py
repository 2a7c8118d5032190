"""What a keep-set makes of a model: the heads that are not kept, and the window or the linear attention they get."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from workbench.experiments.conversion.linear_training import linear_heads
from workbench.experiments.conversion.settings import Conversion, Form
from workbench.experiments.conversion.window_masks import masked
from workbench.heads import KVHead
from workbench.hooks import HookedModel, LinearAttention
from workbench.hooks.interventions.gates import converted
from workbench.hooks.interventions.windows import Forms, Window


@dataclass(frozen=True, slots=True)
class Left:
    """The heads that are left without the whole context by softmax, and what becomes of them."""

    heads: tuple[KVHead, ...]
    to: Window | Forms

    def measuring(self, m: HookedModel) -> AbstractContextManager[Any]:
        """Inside the block, the model is converted."""
        return converted(m, self.heads, self.to)

    def training(self, model: PreTrainedModel, length: int) -> AbstractContextManager[None]:
        """The same for sequences of this length, in the form that trains fastest where they are short."""
        if isinstance(self.to, Window):
            return masked(model, self.heads, length=length, window=self.to.window, sink=self.to.sink)
        return linear_heads(model, {head: self.to[head] for head in self.heads}, length=length)


def left_by(study: Conversion, kept: Collection[KVHead], *, form: Form, sink: int, forms: Forms) -> Left:
    """All heads but those that are kept."""
    every = (KVHead(layer, head) for layer in range(study.n_layers) for head in range(study.n_heads))
    heads = tuple(head for head in every if head not in kept)
    return Left(heads, Window(study.window, sink) if form == "window" else forms)


def forms_from(rows: Collection[dict[str, Any]]) -> dict[KVHead, LinearAttention]:
    """Forms as they are written to a part, a row each."""
    return {KVHead(r["layer"], r["head"]): LinearAttention(r["features"], r["sharpness"], r["decay"]) for r in rows}
