"""Find a model's linear layers, read them while they run, and change what their heads hand on."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from workbench.heads import WorkbenchError
from workbench.hooks.taps.linear import gated_delta, kimi_delta, lightning, mamba2
from workbench.hooks.taps.linear.linear_layer import Adapter, LinearCall, LinearLayer

_ADAPTERS = {**lightning.ADAPTERS, **gated_delta.ADAPTERS, **kimi_delta.ADAPTERS, **mamba2.ADAPTERS}
LinearReader = Callable[[LinearCall], None]
# The outputs of all heads "b t h d_v", before norm, gate and projection → what to go on with.
OutputChange = Callable[[Tensor], Tensor]


def linear_layers(model: PreTrainedModel) -> dict[int, LinearLayer]:
    """The linear layers of a model by layer number."""
    return {layer.index: layer for m, adapter in adapted_modules(model) for layer in [adapter.describe(m)]}


@contextmanager
def reading_linear(model: PreTrainedModel, valid: Bool[Tensor, "b t"], reader: LinearReader) -> Generator[None]:
    """Call `reader` for every linear layer of each forward pass; the layers themselves run unchanged.

    `valid`: False on the padding of the batch that is run.
    """
    handles: list[RemovableHandle] = []
    for module, adapter in adapted_modules(model):
        outputs: dict[str, Tensor] = {}
        handles += [module.get_submodule(name).register_forward_hook(_keep(outputs, name)) for name in adapter.taps]
        before_projection = _hand_over(module, adapter, outputs, valid=valid, reader=reader)
        handles.append(module.get_submodule(adapter.projection).register_forward_pre_hook(before_projection))
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
    found = next(((m, a) for m, a in adapted_modules(model) if a.describe(m).index == layer), None)
    if found is None:
        raise WorkbenchError(
            f"layer {layer} of {type(model).__name__} is no linear layer; its linear layers are "
            f"{sorted(linear_layers(model)) or 'none'}"
        )
    module, adapter = found
    n_heads, shape = adapter.describe(module).n_heads, [0, 0]

    def note_shape(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        shape[:] = hidden.shape[:2]

    def pass_through(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given: Tensor = args[0]
        changed = change(_by_head(given, shape[0], n_heads))
        return (changed.reshape(given.shape), *args[1:])

    with ExitStack() as stack:
        stack.enter_context(_with_a_norm(module))
        handles = [
            module.register_forward_pre_hook(note_shape, with_kwargs=True),
            module.get_submodule(adapter.norm).register_forward_pre_hook(pass_through),
        ]
        for handle in handles:
            stack.callback(handle.remove)
        yield


def adapted_modules(model: PreTrainedModel) -> list[tuple[nn.Module, Adapter]]:
    """The linear layers' modules, each with how it is read."""
    return [(m, _ADAPTERS[type(m).__name__]) for m in model.modules() if type(m).__name__ in _ADAPTERS]


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def keep(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        outputs[name] = output.detach()

    return keep


def _hand_over(
    module: nn.Module,
    adapter: Adapter,
    outputs: dict[str, Tensor],
    *,
    valid: Bool[Tensor, "b t"],
    reader: LinearReader,
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hand_over(_: nn.Module, __: tuple[Any, ...]) -> None:
        with torch.no_grad():
            call = adapter.read(module, outputs, valid)
        outputs.clear()
        reader(call)

    return hand_over


def _by_head(x: Tensor, n_sequences: int, n_heads: int) -> Float[Tensor, "b t h d_v"]:
    """The outputs of all heads as the families hand them to the norm: flat, by token, or by token and head."""
    if x.ndim == 2:
        return rearrange(x, "(b t h) d -> b t h d", b=n_sequences, h=n_heads)
    return x if x.ndim == 4 else rearrange(x, "b t (h d) -> b t h d", h=n_heads)


class _Gate(nn.Module):
    """What Falcon-H1 without a norm does in its place."""

    def forward(self, x: Float[Tensor, "b t c"], gate: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        return x * silu(gate)


@contextmanager
def _with_a_norm(module: Any) -> Generator[None]:
    """Give Falcon-H1 without a norm a module to hook in its place; the computation is the same."""
    if getattr(module, "mamba_rms_norm", True):
        yield
        return
    before = module.norm
    module.norm, module.mamba_rms_norm = _Gate(), True
    try:
        yield
    finally:
        module.norm, module.mamba_rms_norm = before, False
