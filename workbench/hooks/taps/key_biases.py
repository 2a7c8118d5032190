"""Dynamic mask attention (Doge): a number for each key, added to its scores, and the keys with the largest ones alone.

The layer makes both of its values, once for every key/value head, and writes them into a mask of queries × keys. Here
they stay what they are: the number of a key is one more channel of it, which every query takes whole, and the keys that
a row sees are a selection like those of indexers. The attention is the same.

Reference:
    Shi et al. 2025, Trainable Dynamic Mask Sparse Attention, arXiv 2508.02124; as transformers computes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.hooks.taps.attention_call import LazyMask
from workbench.hooks.taps.indexer_masks import another_method
from workbench.kernels.masks import visible_tile

# The method by which an attention module makes its mask, and the attribute with how many keys a row sees.
_BUILD, KEPT = "prepare_dynamic_mask", "keep_window_size"
# Rows whose keys are selected at a time.
_ROWS = 256


@dataclass(frozen=True, slots=True)
class KeyBiases:
    """What such a layer hands its attention in place of a mask: a mask with a selection, and the numbers of the keys.

    It goes as it is through the code that repeats a mask for the query heads of a group.
    """

    mask: LazyMask
    bias: Float[Tensor, "b n_kv_heads k"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        n_sequences, n_kv_heads, n_keys = self.bias.shape
        return n_sequences, n_kv_heads, self.mask.n_queries, n_keys

    def __getitem__(self, _: Any) -> KeyBiases:
        return self

    def expand(self, *_: int) -> KeyBiases:
        return self

    def reshape(self, *_: int) -> KeyBiases:
        return self


def with_bias_channel(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    bias: Float[Tensor, "b n_kv_heads k"],
    scale: float,
) -> tuple[Float[Tensor, "b n_heads q d2"], Float[Tensor, "b n_kv_heads k d2"]]:
    """Queries and keys with one channel more, whose product times `scale` is the bias of the key."""
    taken = torch.full((*q.shape[:-1], 1), 1 / scale, dtype=q.dtype, device=q.device)
    return torch.cat([q, taken], -1), torch.cat([k, rearrange(bias, "b h k -> b h k 1").to(k.dtype)], -1)


@contextmanager
def reading_key_biases(model: PreTrainedModel) -> Generator[None]:
    """Inside the block, such layers attend under `KeyBiases` where transformers hands them a LazyMask."""
    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(module, _BUILD) and hasattr(module, KEPT):
                stack.enter_context(another_method(module, _BUILD, _Building(getattr(module, _BUILD))))
        yield


class _Building:
    """The layer's way from the numbers of its keys to its mask."""

    def __init__(self, own: Callable[..., Any]):
        self._own = own

    def __call__(
        self,
        hidden_states: Tensor,
        dt_states: Float[Tensor, "b n_kv_heads k"],
        keep_window_size: int = 2048,
        attention_mask: Any = None,
    ) -> Any:
        if not isinstance(attention_mask, LazyMask):
            return self._own(
                hidden_states=hidden_states,
                dt_states=dt_states,
                keep_window_size=keep_window_size,
                attention_mask=attention_mask,
            )
        indices = _largest(dt_states, attention_mask, keep_window_size)
        return KeyBiases(attention_mask.selecting(indices), dt_states)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._own, memo)  # a copy made inside the block, such as a bridge's twin, is the model's


@torch.no_grad()
def _largest(bias: Float[Tensor, "b n_kv_heads k"], mask: LazyMask, n_kept: int) -> Int[Tensor, "b n_kv_heads q n"]:
    """The visible keys of each row with the largest bias, `n_kept` at most; all keys where there are no more."""
    n_sequences, n_kv_heads, n_keys = bias.shape
    if n_keys <= n_kept:
        every = torch.arange(n_keys, dtype=torch.int32, device=bias.device)
        return every.expand(n_sequences, n_kv_heads, mask.n_queries, n_keys)
    chosen = torch.empty(n_sequences, n_kv_heads, mask.n_queries, n_kept, dtype=torch.int32, device=bias.device)
    simplest, hidden = mask.simplest(), torch.finfo(bias.dtype).min
    for rows in torch.arange(mask.n_queries, device=bias.device).split(_ROWS):
        visible = rearrange(visible_tile(simplest, slice(0, n_sequences), rows, n_keys), "b q k -> b 1 q k")
        of_rows = repeat(bias, "b h k -> b h q k", q=len(rows)).masked_fill(~visible, hidden)
        chosen[:, :, rows] = of_rows.topk(n_kept, dim=-1, sorted=False).indices.int()
    return chosen
