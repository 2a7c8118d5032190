"""The decoder blocks of a model, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel


def blocks(model: PreTrainedModel) -> Iterator[tuple[int, nn.Module]]:
    """Layer number and module of every member of the outermost lists that have one for each layer."""
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    waiting: list[nn.Module] = [model]
    while waiting:
        module = waiting.pop()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            yield from enumerate(module)
        else:
            waiting.extend(module.children())
