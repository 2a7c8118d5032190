"""Passes of the user's own under interventions: those that would give other numbers without a word are refused.

A handler belongs to the pass that began under it, and goes with the pass's mask through gradient checkpointing, other
threads and later blocks. What has no such mask, and what a pass cannot return, is refused here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils import checkpoint
from transformers import PreTrainedModel

from workbench.heads import WorkbenchError
from workbench.hooks.taps.eager import is_without_interface


@contextmanager
def refusing_passes(model: PreTrainedModel, *, has_linear: Callable[[], bool]) -> Generator[None]:
    """Inside the block, refuse passes under which the interventions could not be in force, or not be seen to be.

    `has_linear`: whether heads of linear layers are changed now.
    """
    # Both read a layer by what is around its forward, which gradient checkpointing runs again without it.
    is_older = is_without_interface(model)
    refuse = _refusal(model, loses_recomputing=lambda: is_older or has_linear())
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                stack.callback(module.register_forward_pre_hook(refuse, with_kwargs=True).remove)
        yield


def _refusal(model: PreTrainedModel, *, loses_recomputing: Callable[[], bool]) -> Callable[..., None]:
    name, own = type(model).__name__, {id(module) for module in model.modules()}

    def refuse(module: nn.Module, _: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(module) not in own:  # a copy made inside the block, such as a bridge's twin, has copies of the hooks
            return
        if kwargs.get("output_attentions"):
            raise WorkbenchError(
                f"{name} returns no attention weights under interventions; leave output_attentions= out and read them "
                "with pattern() or record()"
            )
        if _is_quantized(kwargs.get("past_key_values")):
            raise WorkbenchError(
                "a quantized cache holds other keys and values than the model made, so that a pass through it is not "
                "that of the whole text; generate with another cache, or with use_cache=False"
            )
        if _is_inside_checkpoint():
            raise WorkbenchError(
                f"{name} runs inside torch.utils.checkpoint, which runs it again when the interventions may be over; "
                "checkpoint its layers instead: call gradient_checkpointing_enable()"
            )
        if loses_recomputing() and _recomputes(model):
            raise WorkbenchError(
                f"gradient checkpointing computes the layers of {name} again without the interventions on them, so "
                "that gradients would be those of another model; call gradient_checkpointing_disable()"
            )

    return refuse


def _is_quantized(cache: Any) -> bool:
    return any("Quantized" in type(part).__name__ for part in (cache, *getattr(cache, "layers", ())))


def _is_inside_checkpoint() -> bool:
    frame: Any = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename != checkpoint.__file__:
        frame = frame.f_back
    return frame is not None


def _recomputes(model: nn.Module) -> bool:
    return any(module.training and bool(getattr(module, "gradient_checkpointing", False)) for module in model.modules())
