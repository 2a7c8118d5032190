"""Keys and values on their way from a cache to the attention function, which learns from them whose they are."""

from __future__ import annotations

import weakref
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from workbench.heads import WorkbenchError

_NAME = "_workbench_cache_layer"


@runtime_checkable
class HandsOut(Protocol):
    """The cache layer of a layer that wants to be known to the attention function. `handed`: the pair it gave last."""

    layer: int
    handed: tuple[Tensor, Tensor] | None


def hand_out(layer: HandsOut, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The same pair, by which `layer_of_keys` finds the layer for as long as the layer and the pair are there."""
    setattr(keys, _NAME, weakref.ref(layer))
    layer.handed = (keys, values)
    return keys, values


def stand_in(new: Tensor, n_keys: int) -> Tensor:
    """A tensor of the shape of all keys that holds one number, which is none."""
    return new.new_full((1, 1, 1, 1), float("nan")).expand(*new.shape[:2], n_keys, new.shape[3])


def layer_of_keys(keys: Tensor, values: Tensor, layer: int) -> Any:
    """The cache layer that handed out this very pair for this layer; None where none did.

    Raises:
        WorkbenchError: for stand-ins that a model has changed.
    """
    held = _holder(keys)
    if held is not None and held.layer == layer and _is_pair(held.handed, keys, values):
        held.handed = None
        return held
    if any(x.numel() > 1 and not any(x.stride()) for x in (keys, values)):
        raise WorkbenchError(
            "the model changes the keys or values that its cache gives it, and the cache was cut to windows before; "
            "begin with a new cache, or generate with use_cache=False"
        )
    return None


def _holder(keys: Tensor) -> HandsOut | None:
    reference: Any = getattr(keys, _NAME, None)
    return None if reference is None else reference()


def _is_pair(handed: tuple[Tensor, Tensor] | None, keys: Tensor, values: Tensor) -> bool:
    return handed is not None and handed[0] is keys and handed[1] is values
