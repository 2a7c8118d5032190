"""Gates between full and windowed attention: o = a · o_full + (1 − a) · o_windowed for every key/value head.

In place of a window, heads may have linear attention, wherever "windowed" stands here.

With all gates 1 the model is itself, with all gates 0 every head is restricted, and in between the loss has a gradient
for every gate, whatever their number, from one backward pass. A layer's own mask is the ceiling: where a sliding layer
sees no more than the window, its gates change nothing. Memory is O(tokens) per layer.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from workbench.heads import KVHead, LayerInfo, WorkbenchError
from workbench.hooks.interventions.windows import Forms, Window, intervened_output
from workbench.hooks.model import HookedModel
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import blocks, handling
from workbench.hooks.taps.forwards import another_forward


def windowed_heads(layers: Sequence[LayerInfo]) -> tuple[KVHead, ...]:
    """Every key/value head that a window could be given to: those of softmax layers, in order."""
    return tuple(KVHead(i.index, h) for i in layers if i.mixer == "softmax" for h in range(i.n_kv_heads))


@contextmanager
def gated(
    m: HookedModel, gates: Float[Tensor, "#b n_kv"], to: Window | Forms, *, checkpointed: bool = False
) -> Generator[None]:
    """Inside the block, the model's softmax layers mix full and windowed (or linear) attention by these gates.

    Gradients reach the gates and nothing else: the model's parameters take none. Interventions in force on the model
    stay in force.

    Args:
        gates: one for each of `windowed_heads`, or of the heads that have a form, sorted; for every sequence of the
            batch or all of them.
        checkpointed: compute each layer again in the backward pass and keep only what goes between layers.

    Raises:
        WorkbenchError: if there are more or fewer gates than heads.
    """
    heads = windowed_heads(m.layers) if isinstance(to, Window) else tuple(sorted(to))
    if gates.shape[-1] != len(heads):
        raise WorkbenchError(f"{gates.shape[-1]} gates were given; expected one for each of {len(heads)} heads")
    place = {head: i for i, head in enumerate(heads)}
    everywhere = m.interventions.restricting(heads, to)

    def attend(call: AttentionCall) -> Tensor:
        full = intervened_output(call, m.interventions)
        n_kv_heads = call.k.shape[1]
        here = [place.get(KVHead(call.layer, head)) for head in range(n_kv_heads)]
        if all(at is None for at in here):
            return full
        # A head without a gate is full in both.
        mine = torch.stack([gates[:, at or 0] for at in here], -1)
        mine = repeat(mine, "b kv -> b (kv g)", g=call.q.shape[1] // n_kv_heads)
        windowed = intervened_output(call, everywhere)
        return windowed + rearrange(mine, "b h -> b 1 h 1").to(full.dtype) * (full - windowed)

    with ExitStack() as stack:
        stack.enter_context(handling(m.model, attend))
        stack.enter_context(_frozen(m.model))
        if checkpointed:
            stack.enter_context(_checkpointed(m.model))
        yield


@contextmanager
def _frozen(model: nn.Module) -> Generator[None]:
    """No gradient for the parameters."""
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
    """Each decoder layer keeps its input alone."""
    layers = [block for _, block in blocks(model)]
    if not layers:
        raise WorkbenchError(f"{type(model).__name__} has no list of its layers; pass checkpointed=False")
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(another_forward(layer, _recomputing(layer.forward)))
        yield


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    # The backward pass may run in another thread, which does not know who handles attention here.
    here = contextvars.copy_context()

    def run(*args: Any, **kwargs: Any) -> Any:
        return here.copy().run(forward, *args, **kwargs)

    def recompute(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return recompute
