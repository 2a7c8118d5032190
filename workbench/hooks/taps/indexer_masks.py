"""Layers whose indexers hand the attention a mask instead of indices: what they select, read off the model's own code.

Qwen4-Exp: the indexer asks its mask which tokens each row sees, and hands back the selected ones as cells; the
attention sees those that both show. GLM-5-Next: the attention makes its mask of the indices alone, because its indexer
has looked after the future and the padding. Either way the attention gets the mask of every other layer, with the
selection in it; nothing is selected a second time.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.heads import WorkbenchError
from workbench.hooks.taps.attention_call import LazyMask

# The method by which an attention module makes its mask of the indices, and the one by which its indexer looks after
# the future and the padding.
_BUILD, _VISIBLE = "build_attention_mask_from_topk", "get_visible_tokens"
# Rows whose cells are turned into indices at a time.
_ROWS = 256

# From (queries, keys, padding mask of the keys or none, sequences, device) to the mask that a layer is recorded with.
MakeMask = Callable[..., LazyMask]


def masks_itself(module: nn.Module) -> bool:
    """Whether an attention module makes its mask of the indices alone, and reads none of transformers'."""
    return hasattr(module, _BUILD) and hasattr(module, "layer_idx")


def has_own_masks(model: PreTrainedModel) -> bool:
    """Whether a layer makes its own mask, which knows padding, and no documents packed into a sequence."""
    return any(masks_itself(module) for module in model.modules())


@contextmanager
def reading_indexer_masks(model: PreTrainedModel, implementation: str, make_mask: MakeMask) -> Generator[None]:
    """Inside the block, such layers attend under a LazyMask; afterwards they are as they were.

    Args:
        implementation: the attention implementation under which they do; under any other they keep their own masks.
        make_mask: makes a mask as transformers asks for one.
    """

    def recomputes() -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(getattr(module, "indexer", None), "token_budget"):
                handle = module.register_forward_pre_hook(_ask_for_cells, with_kwargs=True)
                stack.callback(handle.remove)
        seen = _Seen()
        for module in model.modules():
            if hasattr(module, _VISIBLE):
                stack.enter_context(another_method(module, _VISIBLE, _Noting(getattr(module, _VISIBLE), seen)))
            if masks_itself(module):
                build = _Building(
                    getattr(module, _BUILD),
                    seen,
                    implementation=implementation,
                    make_mask=make_mask,
                    recomputes=recomputes,
                )
                stack.enter_context(another_method(module, _BUILD, build))
        yield


@dataclass(frozen=True, slots=True)
class CellMask(LazyMask):
    """A mask that an indexer may ask which keys a row sees, and combine with the cells that it selects.

    `cells`: the whole mask, as an indexer that goes through it row by row reads it.
    """

    cells: Bool[Tensor, "b q k"] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """That of a mask which is True where a row sees a key."""
        return torch.bool

    @property
    def shape(self) -> tuple[int, ...]:
        assert self.cells is not None
        return len(self.cells), 1, *self.cells.shape[1:]

    def __getitem__(self, index: Any) -> LazyMask | Bool[Tensor, " k"] | Bool[Tensor, "b q k"]:
        """`mask[b, 0, i]`: which keys row i of a sequence sees; else as of any LazyMask."""
        if isinstance(index, tuple) and len(index) == 3 and all(isinstance(i, int) for i in index) and index[1] == 0:
            assert self.cells is not None
            return self.cells[index[0], index[2]]
        return LazyMask.__getitem__(self, index)

    def __and__(self, selected: Bool[Tensor, "b 1 q k"]) -> LazyMask:
        """This mask on the keys that are selected too."""
        plain = LazyMask(**{f.name: getattr(self, f.name) for f in fields(LazyMask)})
        return plain.selecting(indices_of(selected[:, 0])[:, None])


def indices_of(cells: Bool[Tensor, "b q k"]) -> Int[Tensor, "b q n"]:
    """The indices of the keys of each row, in order, filled up with −1."""
    n_of_rows = cells.sum(-1)
    indices = torch.full((*n_of_rows.shape, max(1, int(n_of_rows.max()))), -1, dtype=torch.int32, device=cells.device)
    for start in range(0, cells.shape[1], _ROWS):
        sequence, row, key = cells[:, start : start + _ROWS].nonzero().unbind(-1)
        of_block = n_of_rows[:, start : start + _ROWS].flatten()
        first = (of_block.cumsum(0) - of_block).repeat_interleave(of_block)
        indices[sequence, row + start, torch.arange(len(key), device=key.device) - first] = key.int()
    return indices


def _ask_for_cells(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    mask = kwargs.get("attention_mask")
    if type(mask) is not LazyMask:
        return None
    cells = mask[:, 0]
    assert isinstance(cells, Tensor)
    mask = CellMask(**{f.name: getattr(mask, f.name) for f in fields(LazyMask)}, cells=cells)
    return args, {**kwargs, "attention_mask": mask}


class _Seen(threading.local):
    """What the indexer that ran last in this thread took for keys: False on padding."""

    valid: Bool[Tensor, "b k"] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Seen:
        return _Seen()


class _Noting:
    """An indexer's look at the visible tokens, with a note of the valid ones."""

    def __init__(self, own: Callable[..., Any], seen: _Seen):
        self._own, self._seen = own, seen

    def __call__(self, valid_keys: Bool[Tensor, "b k"], q_length: int, current_length: int | Tensor) -> Any:
        if valid_keys.shape[-1] != int(current_length):
            raise WorkbenchError(
                f"a static cache holds {valid_keys.shape[-1]} keys of which {int(current_length)} are there, and a "
                "layer that selects keys makes its mask of both; generate with the default cache (leave "
                "cache_implementation= out), or with use_cache=False"
            )
        self._seen.valid = valid_keys
        return self._own(valid_keys=valid_keys, q_length=q_length, current_length=current_length)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._own, memo)  # a copy made inside the block, such as a bridge's twin, notes nothing


class _Building:
    """An attention module's way from indices to its mask, a LazyMask with the selection in it."""

    def __init__(
        self,
        own: Callable[..., Any],
        seen: _Seen,
        *,
        implementation: str,
        make_mask: MakeMask,
        recomputes: Callable[[], bool],
    ):
        self._own, self._seen = own, seen
        self._implementation, self._make_mask, self._recomputes = implementation, make_mask, recomputes

    def __call__(self, topk_indices: Int[Tensor, "b q n"], query_states: Tensor, kv_length: int) -> Any:
        module: Any = getattr(self._own, "__self__", None)
        if module.config._attn_implementation != self._implementation:
            return self._own(topk_indices=topk_indices, query_states=query_states, kv_length=kv_length)
        if module.training and self._recomputes():
            raise WorkbenchError(
                f"{type(module).__name__} makes its attention mask anew where gradient checkpointing computes it a "
                "second time, which cannot be followed; switch gradient checkpointing off for this model"
            )
        n_queries, valid = query_states.shape[2], self._seen.valid
        if valid is None or valid.shape[-1] != kv_length:
            raise WorkbenchError(
                f"{type(module).__name__} makes an attention mask of {kv_length} keys, and which of them are padding "
                "its indexer did not say; expected an indexer that looks at its visible tokens. Leave this model out"
            )
        mask = self._make_mask(
            q_length=n_queries,
            kv_length=kv_length,
            q_offset=kv_length - n_queries,
            attention_mask=valid,
            batch_size=len(topk_indices),
            device=topk_indices.device,
        )
        return mask.selecting(topk_indices[:, None])

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._own, memo)


@contextmanager
def another_method(module: nn.Module, name: str, method: Callable[..., Any]) -> Generator[None]:
    """Inside the block, `method` is what a module has under this name."""
    before = module.__dict__.get(name)
    module.__dict__[name] = method
    try:
        yield
    finally:
        del module.__dict__[name]
        if before is not None:
            module.__dict__[name] = before
