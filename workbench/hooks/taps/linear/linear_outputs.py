"""Change what the heads of linear layers hand to the output projection, after norm and gate, and no other head's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.hooks.taps.linear.linear_reading import adapted_modules

# (layer, the outputs of its heads, where they are valid, the position of the first) → what to go on with.
HeadChange = Callable[
    [int, Float[Tensor, "b t h d_v"], Bool[Tensor, "b t"] | None, int],
    Float[Tensor, "b t h d_v"],
]


@contextmanager
def changing_linear(model: PreTrainedModel, layers: Iterable[int], change: HeadChange) -> Generator[None]:
    """Inside the block, the outputs of the heads of these linear layers pass through `change`.

    A norm over all heads of a layer has been before, so that a changed head does not change its neighbours.
    """
    wanted, masks = set(layers), dict[str, Tensor | None]()
    with ExitStack() as stack:
        if wanted:
            handle = model.register_forward_pre_hook(_keep_mask(masks), with_kwargs=True)
            stack.callback(handle.remove)
        for module, adapter in adapted_modules(model):
            layer = adapter.describe(module)
            if layer.index in wanted:
                hook = _pass_through(layer.index, layer.n_heads, masks, change)
                handle = module.get_submodule(adapter.projection).register_forward_pre_hook(hook)
                stack.callback(handle.remove)
        yield


def _keep_mask(masks: dict[str, Tensor | None]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def keep(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks["valid"] = kwargs.get("attention_mask")

    return keep


def _pass_through(
    layer: int, n_heads: int, masks: dict[str, Tensor | None], change: HeadChange
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def pass_through(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        out: Tensor = args[0]
        mask = masks.get("valid")
        start = 0 if mask is None else mask.shape[1] - out.shape[1]  # what lies before is in the cache
        valid = None if mask is None else mask[:, start:].bool()
        changed = change(layer, rearrange(out, "b t (h d) -> b t h d", h=n_heads), valid, start)
        return (rearrange(changed, "b t h d -> b t (h d)"), *args[1:])

    return pass_through
