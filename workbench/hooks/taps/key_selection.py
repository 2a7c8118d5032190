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
from workbench.hooks.taps.indexer_masks import masks_itself
from workbench.hooks.taps.key_biases import KEPT
from workbench.loading.pretrained import FAILURES, is_out_of_memory

# The attributes that say how many keys or blocks an indexer selects, each beside what it is in a check.
_NUMBERS = ("index_topk", "topk_blocks", "token_budget", KEPT)


def n_selected(model: PreTrainedModel) -> int | None:
    """How many keys the model's indexers select for a row at most; None where it has none, or they differ.

    A row with no more tokens before it sees them all; from any other, something is left out.
    """
    numbers = {_most(module) for module in _indexers(model)}
    return numbers.pop() if len(numbers) == 1 else None


def tokens_to_select(model: PreTrainedModel) -> int:
    """How long a text must be for indexers that select few to leave out a key, and not one of the text's last."""
    return max((_fewest(module)[1] for module in _indexers(model)), default=3)


def selects_blocks(model: PreTrainedModel) -> bool:
    """Whether the model's indexers select blocks of keys, which begin where the first column does, padding or not."""
    return any(hasattr(module, "topk_blocks") for module in _indexers(model))


def _most(indexer: Any) -> int:
    """The keys that an indexer selects for a row at most; with pools, the row's own unfinished one among them."""
    if hasattr(indexer, "topk_blocks"):
        return int(indexer.topk_blocks * indexer.block_size)
    if hasattr(indexer, "token_budget"):
        return int(indexer.token_budget + indexer.compress_ratio - 1)
    if hasattr(indexer, KEPT):
        return int(getattr(indexer, KEPT))
    return int(indexer.index_topk + getattr(indexer, "index_kpool", 1) - 1)


def _fewest(indexer: Any) -> tuple[dict[str, int], int]:
    """An indexer's attributes in a check, and how long a text it takes: of three keys two, or of two blocks one."""
    if hasattr(indexer, "topk_blocks"):
        return {"topk_blocks": 1, "block_size": 2, "local_blocks": 1}, 3
    if hasattr(indexer, "token_budget"):
        return {"token_budget": 2, "compress_ratio": 2, "block_topk": 1}, 5
    if hasattr(indexer, KEPT):
        return {KEPT: min(2, int(getattr(indexer, KEPT)))}, 3
    if (pool := int(getattr(indexer, "index_kpool", 1))) > 1:  # its weights have the size of a pool
        return {"index_topk": pool}, 2 * pool + 1
    return {"index_topk": min(2, int(indexer.index_topk))}, 3


@contextmanager
def selecting_few(model: PreTrainedModel) -> Generator[None]:
    """Inside the block, indexers select two keys at most, or one block or pool of keys."""
    own: list[tuple[nn.Module, str, int]] = []
    try:
        for module in _indexers(model):
            for name, few in _fewest(module)[0].items():
                own.append((module, name, int(getattr(module, name))))
                setattr(module, name, few)
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
    return any(isinstance(getattr(module, name, None), int) for name in _NUMBERS)


def _indexers(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if is_indexer(module)]


def _compare(layer: int, is_right: dict[int, bool]) -> Callable[..., None]:
    def compare(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        mask, out = kwargs.get("attention_mask"), _first(output)
        if isinstance(mask, LazyMask):
            kwargs = {**kwargs, "attention_mask": _added(mask, out)}
        elif not masks_itself(module):
            return
        config = module.config
        ours = config._attn_implementation_internal
        try:
            config._attn_implementation_internal = "eager"
            own = _first(module.forward(*args, **kwargs))
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


def _added(mask: LazyMask, out: Tensor) -> Tensor:
    """A mask as eager attention adds it to scores of the type of `out`."""
    visible = mask[:, 0]
    assert isinstance(visible, Tensor)
    zeros = torch.zeros(visible.shape, dtype=out.dtype, device=out.device)
    return zeros.masked_fill(~visible, torch.finfo(out.dtype).min)[:, None]


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
