"""Activations that are no numbers: the first layer of a pass that hands on NaN or infinity, named in an error.

float16 ends at 65504, and models trained in bfloat16 exceed it. Everything behind such an activation is NaN, and a key
that is infinite may even look like a key without weight. So every pass of the recorder is watched: the queries, keys,
values and output of each softmax layer, the output of each block, and the logits, on tokens that are no padding.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.heads import WorkbenchError
from workbench.hooks.taps.layer_lists import blocks

_watch: ContextVar[Watch | None] = ContextVar("workbench_finite_watch", default=None)
# Models that were opened although their weights are not finite.
_ALLOWED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class NonFiniteValues(WorkbenchError):
    """Activations or weights hold NaN or infinity, so that scores of them would be no numbers."""


class Watch:
    """What was seen of one pass: for each tensor its place and dtype, and whether it is not finite, on its device."""

    def __init__(self, model: PreTrainedModel, valid: Bool[Tensor, "b q"]):
        self._model, self._valid = model, valid
        self._places: list[tuple[str, torch.dtype]] = []
        self._flags: list[Tensor] = []
        self._is_over = False

    def note(self, place: str, x: Float[Tensor, "..."], valid: Bool[Tensor, "b t"] | None = None) -> None:
        """Note a tensor whose first two axes are sequence and token; `valid`: those that are no padding."""
        if self._is_over or _is_surely_finite(x):  # over: a layer that is computed again for a backward pass
            return
        is_bad = ~reduce(torch.isfinite(x.detach()), "b t ... -> b t", "all")
        valid = self._valid if valid is None else valid
        if valid.shape == is_bad.shape:
            is_bad = is_bad & valid
        self._places.append((place, x.dtype))
        self._flags.append(is_bad.any())

    def check(self) -> None:
        """Refuse the pass if a tensor was not finite; once per pass, as it waits for the device.

        Raises:
            NonFiniteValues: naming the first place and its dtype, and what to do.
        """
        self._is_over = True
        if not self._flags or self._model in _ALLOWED:
            return
        device = self._flags[0].device
        is_bad = torch.stack([flag.to(device) for flag in self._flags])
        if bool(is_bad.any()):
            place, dtype = self._places[int(is_bad.int().argmax())]
            # Some families add up their layers in float32.
            dtype = self._model.dtype if self._model.dtype == torch.float16 else dtype
            raise NonFiniteValues(
                f"the activations of {type(self._model).__name__} are NaN or infinite in {_name(dtype)}, first in "
                f"{place}; {_advice(self._model, dtype)}"
            )


def _is_surely_finite(x: Float[Tensor, "..."]) -> bool:
    """Whether a tensor on the CPU holds no NaN and no infinity anywhere, padding included.

    The extremes take one pass; a mask of all numbers takes six. Elsewhere than on the CPU their values would have to be
    waited for.
    """
    if x.device.type != "cpu" or x.numel() == 0 or x.element_size() < 2:
        return False
    lowest, highest = torch.aminmax(x.detach())  # NaN is both
    return math.isfinite(float(lowest)) and math.isfinite(float(highest))


def allow_nonfinite_passes(model: nn.Module) -> None:
    """From now on, passes of this model may hold NaN; its owner was told that its weights do."""
    _ALLOWED.add(model)


@contextmanager
def watching(model: PreTrainedModel, valid: Bool[Tensor, "b q"]) -> Generator[Watch]:
    """Watch the passes inside the block, and refuse those that are not finite, also where they end early.

    `valid`: False on the padding of the queries that run.
    """
    watch = Watch(model, valid)
    token = _watch.set(watch)
    try:
        with ExitStack() as stack:
            for layer, block in blocks(model):
                stack.callback(block.register_forward_hook(_note_output(watch, layer)).remove)
            yield watch
    except Exception:
        watch.check()  # what else went wrong may have gone wrong for this
        raise
    finally:
        _watch.reset(token)
    watch.check()


def note_attention(
    layer: int,
    inputs: tuple[Float[Tensor, "b _ _ _"], ...],
    output: Float[Tensor, "b q h d"] | None,
    valid: Bool[Tensor, "b k"] | None,
) -> None:
    """Note queries, keys and values of a softmax layer, or its output; `valid`: the keys that are no padding."""
    watch = _watch.get()
    if watch is None:
        return
    for x in inputs:
        is_valid = None if valid is None else valid[:, -x.shape[2] :].to(x.device)
        watch.note(f"the attention of layer {layer}", rearrange(x, "b h t d -> b t h d"), is_valid)
    if output is not None:
        watch.note(f"the attention of layer {layer}", output)


def refuse_nonfinite_weights(model: PreTrainedModel) -> None:
    """Refuse a model whose weights hold NaN or infinity, unless that was allowed.

    Raises:
        NonFiniteValues: naming the weights.
    """
    if model not in _ALLOWED and (names := _nonfinite_weights(model)):
        raise NonFiniteValues(f"{_of_weights(names)}; {_instead(next(model.parameters()).dtype)}")


def _note_output(watch: Watch, layer: int) -> Callable[..., None]:
    def note(_: nn.Module, __: Any, output: Any) -> None:
        if _watch.get() is not watch:  # a pass of another thread
            return
        hidden = output[0] if isinstance(output, tuple | list) else output
        if isinstance(hidden, Tensor) and hidden.ndim >= 2 and hidden.is_floating_point():
            watch.note(f"layer {layer}", hidden)

    return note


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _advice(model: PreTrainedModel, dtype: torch.dtype) -> str:
    if names := _nonfinite_weights(model):
        return f"{_of_weights(names)}: {_instead(dtype)}"
    if dtype == torch.float16:
        return f"float16 ends at 65504: {_instead(dtype)}"
    name, largest = max(((n, float(p.detach().abs().max())) for n, p in model.named_parameters()), key=lambda x: x[1])
    return (
        f"{_name(dtype)} reaches {torch.finfo(dtype).max:.1e}, so that no other dtype is the remedy: look for a fault "
        f"in the weights or the inputs (the largest weight is {largest:.3g}, in {name})"
    )


def _instead(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return (
            "open the model in bfloat16 or float32, with dtype=torch.bfloat16 or --dtype bfloat16, or load a model in "
            "memory in that dtype"
        )
    return "expected finite weights: leave this checkpoint out, or repair it"


def _nonfinite_weights(model: PreTrainedModel) -> list[str]:
    return [n for n, p in model.named_parameters() if not bool(torch.isfinite(p.detach()).all())]


def _of_weights(names: list[str]) -> str:
    more = f" and {len(names) - 1} more weights hold" if len(names) > 1 else " holds"
    return f"{names[0]}{more} NaN or infinity"
