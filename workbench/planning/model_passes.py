"""Forward passes of a model as they happen: counted in tokens, for a bar with the time to go."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

# A backward pass costs about two forward passes: measured, see docs/planning.md.
BACKWARD = 2


@dataclass(slots=True)
class Passes:
    """What a model has run: `forwards` and `backwards` by number, `tokens` of both.

    A token of a backward pass counts `BACKWARD` times as one of a forward pass.
    """

    forwards: int = 0
    backwards: int = 0
    tokens: int = 0


@contextmanager
def counting(model: nn.Module, show: Callable[[Passes], None]) -> Generator[Passes]:
    """Inside the block, count the model's passes and show them after each.

    A forward pass whose logits have a gradient counts with its backward pass.
    """
    passes = Passes()

    def count(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any], out: Any) -> None:
        inputs: Any = args[0] if args else options.get("input_ids", options.get("inputs_embeds"))
        logits: Float[Tensor, "b t vocab"] = out.logits
        has_backward = logits.requires_grad
        passes.forwards += 1
        passes.backwards += has_backward
        passes.tokens += inputs.shape[:2].numel() * (1 + BACKWARD * has_backward)
        show(passes)

    handle = model.register_forward_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
