"""Checks of a softmax layer when its model is opened: its probabilities sum to 1, it is causal, its output is used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.layer_lists import blocks, numbered
from workbench.kernels import Request

_TOLERANCE = 1e-4


@torch.no_grad()
def is_normalised(call: AttentionCall) -> bool:
    """True if every row's probabilities sum to 1 minus its learned sink's share; for no padding."""
    _, statistics = call.statistics(Request())
    share: Tensor | float = 0.0
    if call.sinks is not None:
        share = torch.exp(call.sinks.float()[:, None] - statistics.lse)
    # Finiteness of the weights is checked by loading.pretrained.
    return not bool((statistics.mass + share - 1).abs().max() > _TOLERANCE)


def is_causal(call: AttentionCall) -> bool:
    """True if the first token does not see the last."""
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=call.q.device)
    return not bool(call.mask.function(zero, zero, zero, zero + call.mask.n_keys - 1).any())


def marker(call: AttentionCall) -> Float[Tensor, "b q n_heads d_v"]:
    """An output of NaN, which stays visible through every later operation, weights of zero included."""
    n_sequences, n_heads, n_queries, _ = call.q.shape
    return call.v.new_full((n_sequences, n_queries, n_heads, call.v.shape[-1]), torch.nan)


@contextmanager
def noting_arrivals(model: PreTrainedModel) -> Generator[set[int]]:
    """Yield a set that fills with the layers whose output has a marker, which is removed for the next layer."""
    arrived: set[int] = set()
    handles = [module.register_forward_hook(_remove_marker(layer, arrived)) for layer, module in _modules(model)]
    try:
        yield arrived
    finally:
        for handle in handles:
            handle.remove()


def _modules(model: PreTrainedModel) -> Iterator[tuple[int, nn.Module]]:
    yield from blocks(model)
    for module, layer in numbered(model).items():
        yield layer, module


def _remove_marker(layer: int, arrived: set[int]) -> Callable[..., Any]:
    def remove(_: nn.Module, __: Any, output: Any) -> Any:
        outputs = output if isinstance(output, list | tuple) else (output,)
        if not any(isinstance(x, Tensor) and bool(x.isnan().any()) for x in outputs):
            return None
        arrived.add(layer)
        clean = [x.nan_to_num() if isinstance(x, Tensor) and x.is_floating_point() else x for x in outputs]
        return clean[0] if isinstance(output, Tensor) else type(output)(clean)

    return remove
