"""Hooks on the linear layers of a model: read them while they run, and change what their heads hand on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workbench.heads import WorkbenchError
from workbench.hooks.taps.layer_lists import blocks
from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer
from workbench.hooks.taps.linear.registry import MIXERS, Adapter

LinearReader = Callable[[LinearCall], None]
# What the families call what goes into a layer.
_HIDDEN_STATES = ("hidden_states", "input_states", "hidden")
# The outputs of all heads "b t h d_v", before norm, gate and projection → the outputs to go on with.
OutputChange = Callable[[Tensor], Tensor]
# (layer, the outputs of its heads, where they are valid, the position of the first) → the outputs to go on with.
HeadChange = Callable[
    [int, Float[Tensor, "b t h d_v"], Bool[Tensor, "b t"] | None, int],
    Float[Tensor, "b t h d_v"],
]


def linear_layers(model: PreTrainedModel) -> dict[int, LinearLayer]:
    """The linear layers of a model by layer number."""
    return {adapted.layer.index: adapted.layer for adapted in _adapted_modules(model)}


@contextmanager
def reading_linear(model: PreTrainedModel, valid: Bool[Tensor, "b t"], reader: LinearReader) -> Generator[None]:
    """Call `reader` for every linear layer of each forward pass of this thread; the layers themselves run unchanged.

    `valid`: False on the padding of the batch that is run.
    """
    handles: list[RemovableHandle] = []
    for adapted in _adapted_modules(model):
        outputs: dict[str, Tensor] = {}
        tapped = [(name, x) for name, x in adapted.module.named_modules() if name in adapted.adapter.taps]
        handles += [x.register_forward_hook(_keep(outputs, name)) for name, x in tapped]
        if adapted.adapter.keywords:
            keep = _keep_keywords(outputs, adapted.adapter.keywords)
            handles.append(adapted.module.register_forward_pre_hook(keep, with_kwargs=True))
        before_projection = _hand_over(adapted, outputs, valid=valid, reader=reader)
        handles.append(adapted.projection.register_forward_pre_hook(before_projection))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def head_outputs(model: PreTrainedModel, layer: int, change: OutputChange) -> Generator[None]:
    """Inside the block, the outputs of a linear layer's heads, before norm, gate and projection, pass through `change`.

    Of nested blocks on one layer the outer one's change comes first.

    Raises:
        WorkbenchError: if the layer is not linear.
    """
    adapted = _adapted_module(model, layer)
    n_heads, shape = adapted.layer.n_heads, [0, 0]

    def note_shape(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden: Tensor = args[0] if args else next(kwargs[name] for name in _HIDDEN_STATES if name in kwargs)
        shape[:] = hidden.shape[:2]

    def pass_through(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        out: Tensor = args[0]
        changed = change(_by_head(out, shape[0], n_heads))
        return (changed.reshape(out.shape), *args[1:])

    with ExitStack() as stack:
        stack.enter_context(_with_a_norm(adapted.module))
        handles = [
            adapted.module.register_forward_pre_hook(note_shape, with_kwargs=True),
            adapted.module.get_submodule(adapted.adapter.norm).register_forward_pre_hook(pass_through),
        ]
        for handle in handles:
            stack.callback(handle.remove)
        yield


@contextmanager
def changing_linear(model: PreTrainedModel, layers: Iterable[int], change: HeadChange) -> Generator[None]:
    """Inside the block, what the heads of these linear layers hand to the output projection passes through `change`.

    Norm and gate come before. A norm over all heads of a layer is thus over the unchanged ones: a changed head does not
    change its neighbours.
    """
    indices, masks = set(layers), dict[int, Tensor | None]()  # of the pass of each thread
    with ExitStack() as stack:
        if indices:
            handle = model.register_forward_pre_hook(_keep_mask(masks), with_kwargs=True)
            stack.callback(handle.remove)
        for adapted in _adapted_modules(model):
            if adapted.layer.index in indices:
                hook = _pass_through(adapted.layer.index, adapted.layer.n_heads, masks, change)
                stack.callback(adapted.projection.register_forward_pre_hook(hook).remove)
        yield


@dataclass(frozen=True, slots=True)
class _Adapted:
    """The module of a linear layer, its adapter, and the layer, whose number is known."""

    module: nn.Module
    adapter: Adapter
    layer: LinearLayer

    @property
    def projection(self) -> nn.Module:
        return self.module.get_submodule(self.adapter.projection)


def _adapted_modules(model: PreTrainedModel) -> list[_Adapted]:
    """The modules of the linear layers, each with its adapter."""
    adapters = MIXERS.all()
    mixers = [(m, adapters[name]) for m in model.modules() if (name := type(m).__name__) in adapters]
    described = [_Adapted(m, adapter, adapter.describe(m)) for m, adapter in mixers]
    if all(adapted.layer.index >= 0 for adapted in described):
        return described
    holders = {m: i for i, block in blocks(model) for m in block.modules()}
    return [replace(x, layer=replace(x.layer, index=holders[x.module])) for x in described]


def _adapted_module(model: PreTrainedModel, layer: int) -> _Adapted:
    for adapted in _adapted_modules(model):
        if adapted.layer.index == layer:
            return adapted
    raise WorkbenchError(
        f"layer {layer} of {type(model).__name__} is no linear layer; its linear layers are "
        f"{sorted(linear_layers(model)) or 'none'}"
    )


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    thread = threading.get_ident()

    def keep(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        if threading.get_ident() == thread:
            outputs[name] = output.detach()

    return keep


def _keep_keywords(
    outputs: dict[str, Tensor], names: tuple[str, ...]
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    thread = threading.get_ident()

    def keep(_: nn.Module, __: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            for name in names:
                value = keywords[name]
                outputs[name] = (torch.stack(value) if isinstance(value, tuple) else value).detach()

    return keep


def _hand_over(
    adapted: _Adapted,
    outputs: dict[str, Tensor],
    *,
    valid: Bool[Tensor, "b t"],
    reader: LinearReader,
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    thread = threading.get_ident()

    def hand_over(_: nn.Module, __: tuple[Any, ...]) -> None:
        if threading.get_ident() != thread:
            return
        with torch.no_grad():
            call = adapted.adapter.read(adapted.module, outputs, valid)
        outputs.clear()
        reader(replace(call, layer=adapted.layer.index))

    return hand_over


def _by_head(x: Tensor, n_sequences: int, n_heads: int) -> Float[Tensor, "b t h d_v"]:
    """The outputs of all heads as the families pass them to the norm: flat, by token, or by token and head."""
    if x.ndim == 2:
        return rearrange(x, "(b t h) d -> b t h d", b=n_sequences, h=n_heads)
    return x if x.ndim == 4 else rearrange(x, "b t (h d) -> b t h d", h=n_heads)


def _keep_mask(masks: dict[int, Tensor | None]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def keep(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks[threading.get_ident()] = kwargs.get("attention_mask")

    return keep


def _pass_through(
    layer: int, n_heads: int, masks: dict[int, Tensor | None], change: HeadChange
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def pass_through(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        out: Tensor = args[0]
        mask = masks.get(threading.get_ident())
        start = 0 if mask is None else mask.shape[1] - out.shape[1]  # earlier tokens are in the cache
        valid = None if mask is None else mask[:, start:].bool()
        changed = change(layer, rearrange(out, "b t (h d) -> b t h d", h=n_heads), valid, start)
        return (rearrange(changed, "b t h d -> b t (h d)"), *args[1:])

    return pass_through


class _Gate(nn.Module):
    """The gate alone, which Falcon-H1 without a norm applies in place of its gated norm."""

    def forward(self, x: Float[Tensor, "b t c"], gate: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        return x * silu(gate)


@contextmanager
def _with_a_norm(module: Any) -> Generator[None]:
    """Give Falcon-H1 without a norm a module in its place, to put a hook on; the computation is the same."""
    if getattr(module, "mamba_rms_norm", True):
        yield
        return
    before = module.norm
    module.norm, module.mamba_rms_norm = _Gate(), True
    try:
        yield
    finally:
        module.norm, module.mamba_rms_norm = before, False
