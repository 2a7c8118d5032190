"""Caches of the user's own passes under a plan: one that is new holds no more than converted heads need.

`generate` makes a `DynamicCache` for itself, or takes one that is passed to it. Where such a cache is empty, layers
with converted heads are replaced inside of it. A cache that is of another kind, or holds keys already, stays as it is:
what is generated is the same, and the memory is that of the whole context.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from workbench.hooks.interventions.cut_cache import CutLayer
from workbench.hooks.interventions.windows import Interventions
from workbench.hooks.taps.attention_interface import handler_of_pass
from workbench.hooks.taps.eager import is_without_interface


class WholeCacheWarning(UserWarning):
    """A cache holds the whole context although heads are converted: the tokens are right, and nothing is saved."""


@contextmanager
def cutting_fresh_caches(model: PreTrainedModel, interventions: Callable[[], Interventions]) -> Generator[None]:
    """Inside the block, new caches of the model's own passes hold what heads need under the interventions in force."""
    cut = _Cutting(model, interventions)
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                stack.callback(module.register_forward_pre_hook(cut, with_kwargs=True).remove)
        yield


class _Cutting:
    """Replaces the layers of a new cache when the first pass with it begins."""

    def __init__(self, model: PreTrainedModel, interventions: Callable[[], Interventions]):
        self._own = {id(module) for module in model.modules()}
        self._name, self._config = type(model).__name__, model.config.get_text_config(decoder=True)
        self._is_older = is_without_interface(model)
        self._interventions = interventions
        self._warned: set[str] = set()

    def __call__(self, module: nn.Module, _: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, Cache) or torch.is_grad_enabled() or handler_of_pass.get() is not None:
            return
        interventions = self._interventions()
        converted = sorted({head.layer for head in (*interventions.windows, *interventions.forms)})
        if id(module) not in self._own or not converted or cache.get_seq_length() > 0:
            return
        reason = self._reason(cache)
        if reason is not None:
            self._warn(reason)
            return
        if not cache.layers:
            cache.layers.extend(DynamicLayer() for _ in range(converted[-1] + 1))
        for layer in converted:
            self._place(cache, layer)

    def _reason(self, cache: Cache) -> str | None:
        """Why the whole cache stays as it is."""
        if self._is_older:
            return "this family's attention goes through no interface"
        if type(cache) is not DynamicCache or cache.offloading:
            return f"a {'cache that is offloaded' if cache.offloading else type(cache).__name__} cannot be cut"
        if any(cache.is_dummy) or getattr(self._config, "num_kv_shared_layers", 0):
            return "its layers share keys and values"
        return None

    def _place(self, cache: Cache, layer: int) -> None:
        whole: Any = cache.layers[layer] if layer < len(cache.layers) else None
        if isinstance(whole, CutLayer) or getattr(whole, "is_initialized", False) is True:
            return
        if type(whole) not in (DynamicLayer, DynamicSlidingWindowLayer) or self._is_chunked(layer):
            kind = "a chunked layer" if self._is_chunked(layer) else f"a {type(whole).__name__}"
            self._warn(f"layer {layer} has {kind}, which cannot be cut")
        elif not getattr(whole, "record_past", False):
            cache.layers[layer] = CutLayer(whole, layer, self._interventions, self._warn)

    def _is_chunked(self, layer: int) -> bool:
        types = getattr(self._config, "layer_types", None)
        return bool(types) and layer < len(types) and types[layer] == "chunked_attention"

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(
                f"the cache of {self._name} holds the whole context of every head, converted or not: {reason}",
                WholeCacheWarning,
                stacklevel=2,
            )


def cache_bytes(cache: Cache) -> int:
    """Bytes of memory of the keys, values and states that a cache holds, those of layers cut to windows too."""
    tensors = [x for layer in cache.layers for x in _tensors_of(layer)]
    return sum({x.data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def _tensors_of(layer: Any) -> list[Tensor]:
    if isinstance(layer, CutLayer):
        return layer.tensors()
    states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    held = [getattr(layer, "keys", None), getattr(layer, "values", None), *states]
    return [x for x in held if isinstance(x, Tensor)]
