"""Layers whose indexer selects keys: how many, and a check that attention to them alone is what the model computes.

An indexer selects as many keys as a text is long, single ones or in blocks, up to a number that checkpoints set to
thousands. For the passes that check a model it is lowered, so that a text of three tokens reaches selection: the check
of a model that selects 2,048 keys costs no more than that of any other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.hooks.taps.attention_call import LazyMask
from workbench.loading.pretrained import FAILURES, is_out_of_memory

# By the attribute that says how many keys or blocks an indexer selects, what it and its like are in a check: two keys
# of three, or one block of two keys, the row's own.
_FEW: dict[str, dict[str, int]] = {
    "index_topk": {"index_topk": 2},
    "topk_blocks": {"topk_blocks": 1, "block_size": 2, "local_blocks": 1},
}


def n_selected(model: PreTrainedModel) -> int | None:
    """How many keys the model's indexers select for a row; None where it has none, or they differ."""
    numbers = {
        getattr(module, name) * (1 if name == "index_topk" else module.block_size)
        for module in _indexers(model)
        for name in _FEW
        if isinstance(getattr(module, name, None), int)
    }
    return numbers.pop() if len(numbers) == 1 else None


def selects_blocks(model: PreTrainedModel) -> bool:
    """Whether the model's indexers select blocks of keys, which begin where the first column does, padding or not."""
    return any(hasattr(module, "topk_blocks") for module in _indexers(model))


@contextmanager
def selecting_few(model: PreTrainedModel) -> Generator[None]:
    """Inside the block, indexers select two keys at most."""
    own: list[tuple[nn.Module, str, int]] = []
    try:
        for module in _indexers(model):
            for name, few in next(few for number, few in _FEW.items() if hasattr(module, number)).items():
                own.append((module, name, int(getattr(module, name))))
                setattr(module, name, few if name == "block_size" else min(own[-1][2], few))
        yield
    finally:
        for module, name, number in own:
            setattr(module, name, number)


@contextmanager
def checking_selection(model: PreTrainedModel) -> Generator[dict[int, bool]]:
    """Yield a dict that fills with the layers of models with indexers: whether the model's own eager attention agrees.

    Each attention module runs a second time on the very input of its first, so that nothing but the attention differs.
    """
    is_right: dict[int, bool] = {}
    handles: list[Any] = []
    try:
        if _indexers(model):
            for module in model.modules():
                layer = getattr(module, "layer_idx", None)
                if isinstance(layer, int) and hasattr(module, "config"):
                    hook = _compare(layer, is_right)
                    handles.append(module.register_forward_hook(hook, with_kwargs=True))
        yield is_right
    finally:
        for handle in handles:
            handle.remove()


def is_indexer(module: nn.Module) -> bool:
    """Whether a module selects keys for a layer, a number of them that it has."""
    return any(isinstance(getattr(module, name, None), int) for name in _FEW)


def _indexers(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if is_indexer(module)]


def _compare(layer: int, is_right: dict[int, bool]) -> Callable[..., None]:
    def compare(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, LazyMask):
            return
        out = _first(output)
        visible = mask[:, 0]
        assert isinstance(visible, Tensor)
        floor = torch.finfo(out.dtype).min
        added = torch.zeros(visible.shape, dtype=out.dtype, device=out.device).masked_fill(~visible, floor)
        config = module.config
        ours = config._attn_implementation_internal
        try:
            config._attn_implementation_internal = "eager"
            own = _first(module.forward(*args, **{**kwargs, "attention_mask": added[:, None]}))
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            is_right[layer] = False
            return
        finally:
            config._attn_implementation_internal = ours
        tolerance = 1e-4 if out.dtype in (torch.float32, torch.float64) else 5e-2
        is_right[layer] = bool((own - out).abs().max() <= tolerance * own.abs().max())

    return compare


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
