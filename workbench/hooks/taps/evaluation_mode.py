"""The mode of a model while its attention is read or changed: readings evaluate, the user's passes keep their mode."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


class WithoutAttentionDropout(UserWarning):
    """A pass in training mode leaves out the dropout of attention probabilities; all other dropout is in force."""


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Inside the block, all modules are in evaluation mode; afterwards each is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    if not any(is_training for _, is_training in modes):
        yield
        return
    try:
        if any(is_training for _, is_training in modes):
            model.eval()
        yield
    finally:
        for module, is_training in modes:
            if module.training is not is_training:  # setting an attribute of a module is slow
                module.training = is_training


def warn_of_dropout(layer: str, probability: float) -> None:
    """Warn that the dropout of a layer's attention probabilities is left out: they are never there as a matrix."""
    warnings.warn(
        f"{layer} trains without its dropout of attention probabilities ({probability:g}) under interventions; all "
        "other dropout is in force. To train alike without interventions, set the model's attention dropout to 0",
        WithoutAttentionDropout,
        stacklevel=2,
    )
