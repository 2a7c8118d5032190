"""The decoder blocks of a model, layer by layer, and the modules that know their layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def numbered(model: PreTrainedModel) -> dict[nn.Module, int]:
    """Every module that is of one layer and says so, and the number of that layer.

    Its own `layer_idx`. Where that is absent or negative, as of attention whose weights several layers share (Zamba),
    the number of the block that the module is in; a module that is in several blocks has none.
    """
    own: dict[nn.Module, Any] = {m: m.layer_idx for m in model.modules() if hasattr(m, "layer_idx")}
    holders: dict[nn.Module, set[int]] = {}
    for layer, block in blocks(model):
        for module in block.modules():
            holders.setdefault(module, set()).add(layer)
    numbers: dict[nn.Module, int] = {}
    for module, index in own.items():
        if isinstance(index, int) and index >= 0:
            numbers[module] = index
        elif len(holders.get(module, ())) == 1 and (index is None or isinstance(index, int)):
            numbers[module] = next(iter(holders[module]))
    return numbers
