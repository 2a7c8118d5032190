"""The conversion of a keep-set: the heads that are not kept, and the window or the linear attention that they get.

Measuring converts by `m.restrict` and `m.linearize`. Training uses explicit forms for a Llama without padding and with
one key/value head per query head: one mask per head for windows (`masked`), all weights of a head at once for linear
attention (`linear_heads`). Both hold length × length numbers, so they are for short contexts only. A test checks that
they have the loss and gradients of the intervention.

Time of a training step, one CPU thread: quick study, 64 tokens: 41 ms with full attention, 43 ms with masks, 86 ms
within `m.restrict`; larger study, 256 tokens: 0.64, 0.68 and 1.14 s. For linear attention: quick study, 58 ms with full
attention, 74 ms here, 104 ms within `m.linearize`; medium study: 204, 239 and 350 ms.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from workbench.experiments.conversion.settings import Conversion, ConvertedTo
from workbench.heads import KVHead
from workbench.hooks import HookedModel, LinearAttention
from workbench.hooks.interventions.gates import converted
from workbench.hooks.interventions.linear_attention import linearised
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.store.conversions import Forms, Window


@dataclass(frozen=True, slots=True)
class HeadConversion:
    """The converted heads, and what they are converted to."""

    heads: tuple[KVHead, ...]
    to: Window | Forms

    def measuring(self, m: HookedModel) -> AbstractContextManager[Any]:
        """Inside the block, the model is converted."""
        return converted(m, self.heads, self.to)

    def training(self, model: PreTrainedModel, length: int) -> AbstractContextManager[None]:
        """The same for sequences of this length, in the explicit form, which trains faster where they are short."""
        if isinstance(self.to, Window):
            return masked(model, self.heads, length=length, window=self.to.window, sink=self.to.sink)
        return linear_heads(model, {head: self.to[head] for head in self.heads}, length=length)


def conversion_of(
    study: Conversion, full: Collection[KVHead], *, to: ConvertedTo, sink: int, forms: Forms
) -> HeadConversion:
    """The conversion of all heads but those that stay full."""
    every = (KVHead(layer, head) for layer in range(study.n_layers) for head in range(study.n_heads))
    heads = tuple(head for head in every if head not in full)
    return HeadConversion(heads, Window(study.window, sink) if to == "window" else forms)


def forms_from(rows: Collection[dict[str, Any]]) -> dict[KVHead, LinearAttention]:
    """Linear attention by head, from the rows that a part has of it."""
    return {KVHead(r["layer"], r["head"]): LinearAttention(r["features"], r["sharpness"], r["decay"]) for r in rows}


@contextmanager
def masked(
    model: PreTrainedModel, windowed: Collection[KVHead], *, length: int, window: int, sink: int = 0
) -> Generator[None]:
    """Inside the block, these heads of a Llama see the first `sink` and the last `window` keys, in tokens."""
    n_heads = _n_heads(model)
    handles = [
        layer.self_attn.register_forward_pre_hook(
            _with_mask(head_masks(windowed, index, n_heads, length=length, window=window, sink=sink)), with_kwargs=True
        )
        for index, layer in enumerate(model.model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def head_masks(
    windowed: Collection[KVHead], layer: int, n_heads: int, *, length: int, window: int, sink: int
) -> Float[Tensor, "1 n_heads t t"]:
    """What a layer adds to its scores: 0 where a head sees the key, −∞ where it does not."""
    back = _tokens_back(length)
    is_causal = back >= 0
    is_near = is_causal & ((back < window) | (torch.arange(length) < sink))
    visible = torch.stack([is_near if KVHead(layer, head) in windowed else is_causal for head in range(n_heads)])
    hidden = rearrange(~visible, "h q k -> 1 h q k")
    return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))


def _with_mask(mask: Tensor) -> Any:
    def replace_mask(
        _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "attention_mask": mask}

    return replace_mask


@contextmanager
def linear_heads(model: PreTrainedModel, forms: Forms, *, length: int) -> Generator[None]:
    """Inside the block, these heads of a Llama have linear attention, all with the same features."""
    n_heads = _n_heads(model)
    linear_by_layer = {
        layer: [head for head in range(n_heads) if KVHead(layer, head) in forms]
        for layer in range(model.config.num_hidden_layers)
    }
    decays = {
        layer: _decays([forms[KVHead(layer, head)].decay for head in heads], length)
        for layer, heads in linear_by_layer.items()
    }

    def attend(call: AttentionCall) -> Tensor:
        linear = linear_by_layer[call.layer]
        full = [head for head in range(n_heads) if head not in linear]
        outputs: list[Tensor] = []
        if full:
            q, k, v = (x[:, full] for x in (call.q, call.k, call.v))
            outputs.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=call.scale))
        if linear:
            linear_call = replace(call, q=call.q[:, linear], k=call.k[:, linear], v=call.v[:, linear])
            mapped = linearised(linear_call, [forms[KVHead(call.layer, head)] for head in linear])
            weights = (mapped.q @ mapped.k.transpose(-1, -2)) * decays[call.layer]
            outputs.append((weights @ mapped.v) / weights.sum(-1, keepdim=True))
        order = torch.tensor([*full, *linear]).argsort()
        return rearrange(torch.cat(outputs, 1)[:, order], "b h t d -> b t h d")

    with handling(model, attend, leaves_mode=True):
        yield


def _decays(by_head: list[float], length: int) -> Float[Tensor, "n_heads t t"]:
    """λ^(i−j) for every key that a query sees, else 0."""
    back = _tokens_back(length)
    rates = rearrange(torch.tensor(by_head), "h -> h 1 1")
    return torch.where(back >= 0, rates ** back.clamp_min(0), 0)


def _tokens_back(length: int) -> Tensor:
    """How many tokens before each query each key stands: query, key."""
    position = torch.arange(length)
    return rearrange(position, "q -> q 1") - position


def _n_heads(model: PreTrainedModel) -> int:
    n_heads = int(model.config.num_attention_heads)
    assert model.config.num_key_value_heads == n_heads
    return n_heads
