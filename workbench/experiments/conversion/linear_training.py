"""Linear attention for training: all weights of a head at once, which at these lengths is a third cheaper.

At 64 tokens a step of the quick study took 58 ms with full attention, 74 ms so and 104 ms within `m.linearize`, of the
medium one 204, 239 and 350 ms (one CPU thread). The weights are length × length, so that `m.linearize` is the one for
long contexts. A test holds the two to the same loss and gradients.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from workbench.heads import KVHead
from workbench.hooks.interventions.linear_attention import linearised
from workbench.hooks.interventions.windows import Forms
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling


@contextmanager
def linear_heads(model: PreTrainedModel, forms: Forms, *, length: int) -> Generator[None]:
    """Inside the block, these heads of a Llama have linear attention, all with the same features.

    For whole sequences of `length` tokens without padding, one key/value head per query head.
    """
    n_heads = int(model.config.num_attention_heads)
    assert model.config.num_key_value_heads == n_heads
    mine = {
        layer: [head for head in range(n_heads) if KVHead(layer, head) in forms]
        for layer in range(model.config.num_hidden_layers)
    }
    decays = {layer: _decays([forms[KVHead(layer, h)].decay for h in heads], length) for layer, heads in mine.items()}

    def attend(call: AttentionCall) -> Tensor:
        linear = mine[call.layer]
        full = [head for head in range(n_heads) if head not in linear]
        said: list[Tensor] = []
        if full:
            q, k, v = (x[:, full] for x in (call.q, call.k, call.v))
            said.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=call.scale))
        if linear:
            part = replace(call, q=call.q[:, linear], k=call.k[:, linear], v=call.v[:, linear])
            mapped = linearised(part, [forms[KVHead(call.layer, head)] for head in linear])
            weights = (mapped.q @ mapped.k.transpose(-1, -2)) * decays[call.layer]
            said.append((weights @ mapped.v) / weights.sum(-1, keepdim=True))
        order = torch.tensor([*full, *linear]).argsort()
        return rearrange(torch.cat(said, 1)[:, order], "b h t d -> b t h d")

    with handling(model, attend):
        yield


def _decays(by_head: list[float], length: int) -> Float[Tensor, "n_heads t t"]:
    """λ^(i−j) for every key that a query sees, else 0."""
    at = torch.arange(length)
    back = rearrange(at, "q -> q 1") - at
    rates = rearrange(torch.tensor(by_head), "h -> h 1 1")
    return torch.where(back >= 0, rates ** back.clamp_min(0), 0)
