"""Conversion of chosen heads, each to a window, to linear or to sparse attention: of whole heads, or by gates.

A gate a mixes o = a · o_full + (1 − a) · o_converted for a key/value head. With all gates 1 the model is unchanged,
with all gates 0 every head is converted. In between, one backward pass gives the gradient of the loss for every gate.
A layer's own mask still holds: where a sliding layer sees no more than the window, its gates change nothing. Memory is
O(tokens) per layer.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from workbench.heads import KVHead, LayerInfo, WorkbenchError
from workbench.hooks.interventions.windows import intervened_output
from workbench.hooks.model import HookedModel
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.hooks.taps.layer_lists import blocks
from workbench.hooks.taps.replaced_forward import another_forward
from workbench.store.conversions import Conversions, LinearAttention, SparseAttention, Window, heads_beyond


def converted_heads(layers: Sequence[LayerInfo], to: Window | Conversions) -> tuple[KVHead, ...]:
    """The key/value heads that a conversion is for: those that see beyond the window, or those with one of their own.

    They are in order.
    """
    return heads_beyond(layers, to.window) if isinstance(to, Window) else tuple(sorted(to))


@contextmanager
def converted(m: HookedModel, heads: Collection[KVHead], to: Window | Conversions) -> Generator[HookedModel]:
    """Inside the block, these key/value heads have the window, or each its own window, linear or sparse attention.

    Raises:
        WorkbenchError: for heads the model does not have, or that cannot have their conversion.
    """
    conversions = {head: to if isinstance(to, Window) else to[head] for head in heads}
    windows: dict[Window, list[KVHead]] = {}
    for head, conversion in conversions.items():
        if isinstance(conversion, Window):
            windows.setdefault(conversion, []).append(head)
    with ExitStack() as stack:
        for own, restricted in windows.items():
            stack.enter_context(m.restrict(restricted, own.window, own.sink))
        stack.enter_context(m.linearize({h: c for h, c in conversions.items() if isinstance(c, LinearAttention)}))
        stack.enter_context(m.sparsify({h: c for h, c in conversions.items() if isinstance(c, SparseAttention)}))
        yield m


@contextmanager
def gated(
    m: HookedModel, gates: Float[Tensor, "#b n_kv"], to: Window | Conversions, *, checkpointed: bool = False
) -> Generator[None]:
    """Inside the block, the model's softmax layers mix full and converted attention by these gates.

    Gradients reach only the gates, not the model's parameters. Interventions in force on the model stay in force.

    Args:
        gates: one for each of `converted_heads`; for every sequence of the batch or one row for all.
        checkpointed: compute each layer again in the backward pass and keep only the activations between layers.

    Raises:
        WorkbenchError: if there are more or fewer gates than heads.
    """
    heads = converted_heads(m.layers, to)
    if gates.shape[-1] != len(heads):
        raise WorkbenchError(f"{gates.shape[-1]} gates were given; expected one for each of {len(heads)} heads")
    columns = {head: i for i, head in enumerate(heads)}
    all_converted = m.interventions.converting(heads, to)

    def attend(call: AttentionCall) -> Tensor:
        full = intervened_output(call, m.interventions)
        n_kv_heads = call.k.shape[1]
        layer_columns = [columns.get(KVHead(call.layer, head)) for head in range(n_kv_heads)]
        if all(column is None for column in layer_columns):
            return full
        # A head without a gate may take any: its full and its converted output are the same.
        layer_gates = torch.stack([gates[:, column or 0] for column in layer_columns], -1)
        layer_gates = repeat(layer_gates, "b kv -> b (kv g)", g=call.q.shape[1] // n_kv_heads)
        converted_out = intervened_output(call, all_converted)
        return converted_out + rearrange(layer_gates, "b h -> b 1 h 1").to(full.dtype) * (full - converted_out)

    with ExitStack() as stack:
        stack.enter_context(handling(m.model, attend))
        stack.enter_context(frozen(m.model))
        if checkpointed:
            stack.enter_context(_checkpointed(m.model))
        yield


@contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """Inside the block, parameters take no gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


@contextmanager
def _checkpointed(model: PreTrainedModel) -> Generator[None]:
    """Inside the block, each decoder layer keeps only its input for the backward pass."""
    layers = [block for _, block in blocks(model)]
    if not layers:
        raise WorkbenchError(f"{type(model).__name__} has no list of its layers; pass checkpointed=False")
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(another_forward(layer, _recomputing(layer.forward)))
        yield


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    # The backward pass may run in another thread, which lacks the context variable that holds the attention handler.
    context = contextvars.copy_context()

    def run(*args: Any, **kwargs: Any) -> Any:
        return context.copy().run(forward, *args, **kwargs)

    def recompute(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return recompute
