"""One softmax layer during its attention: its queries, keys and values as the model made them, and its own mask.

The mask is a function of positions, which is evaluated tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import causal_mask_function

from workbench.heads import WorkbenchError
from workbench.hooks.taps.explicit_masks import FEW_ROWS, Scores, rows_output
from workbench.hooks.taps.standard_masks import sliding_window_of
from workbench.kernels import (
    CausalMask,
    Hidden,
    Request,
    RowStatistics,
    SelectedMask,
    SoftmaxLayer,
    TileMask,
    attention_crop,
    attention_crops,
    attention_statistics,
    hidden_runs,
)
from workbench.kernels.masks import selected_tile, visible_tile
from workbench.kernels.softmax.differentiable_attention import differentiable_attention

# Rows of a mask that a model's indexer reads, made at a time.
_DENSE_ROWS = 256


class MaskTaken(WorkbenchError, AttributeError):
    """A model's own code took the mask for a tensor, to compute with it."""


# What still shows the attention of a model that is refused and has probabilities of its own.
OWN_PROBABILITIES = (
    "its own probabilities are what it returns with attn_implementation='eager' and output_attentions=True"
)


@dataclass(frozen=True, slots=True)
class LazyMask:
    """A model's own mask as a function of (sequence, head, query, key) positions, evaluated for one tile at a time.

    `window`: the local size that the model gives for the layer, a sliding window or a chunk, in tokens.
    `documents`: numbers of packed documents, which do not see each other whatever `function` returns. `earlier`: the
    number of valid keys before these, which a sliding layer's cache has dropped; None: `key_offset` of them.
    `selected`: of each row and each group of heads, or all heads together, the indices of the blocks of `block` keys
    that an indexer selected, the only ones that it sees; see `selecting`. `leaves_out`: whether some key is in none.
    `n_sequences`, `device`: as the model says them.
    `handler`: of the pass that the mask was made for, which computes the layers again in its backward pass too;
    `standing`: without one, those of the interventions that were in force, by the id of the attention module.
    """

    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    n_queries: int
    n_keys: int
    query_offset: int
    key_offset: int
    window: int | None
    valid: Bool[Tensor, "b k"] | None
    documents: Int[Tensor, "b k"] | None = None
    earlier: Int[Tensor, " b"] | None = None
    selected: Int[Tensor, "b g q n"] | None = None
    block: int = 1
    leaves_out: bool = False
    n_sequences: int | None = None
    device: torch.device | str | None = None
    handler: Callable[[Any], Tensor] | None = None
    standing: Mapping[int, Callable[[Any], Tensor]] = field(default_factory=dict)

    @classmethod
    def __torch_function__(cls, func: Any, *_: Any) -> Any:
        """Refuse to be taken for a tensor, by the model's own attention after the block ended.

        Raises:
            MaskTaken: always.
        """
        raise MaskTaken(
            f"a pass that began under the workbench reached {getattr(func, '__name__', func)} of the model's own "
            "attention, as the backward pass of gradient checkpointing does after the `with` block has ended (call "
            "backward() inside the block), and a pass that still ran when another thread ended a recording or a block "
            "(run it before or after)"
        )

    def __getattr__(self, name: str) -> Any:
        """Refuse to be read as a tensor, by a model that computes a mask of its own from this one.

        Raises:
            MaskTaken: always.
        """
        raise MaskTaken(f"the model reads {name} of its attention mask, which is made only where it is needed")

    def contiguous(self) -> LazyMask:
        """Refuse the caches whose masks transformers makes before the pass.

        Raises:
            WorkbenchError: always.
        """
        raise WorkbenchError(
            "a static cache takes a mask made before the pass, which interventions cannot follow; generate with the "
            "default cache (leave cache_implementation= out), or with use_cache=False"
        )

    def key_range(self, rows: Int[Tensor, " q"]) -> tuple[int, int]:
        ahead = self.query_offset - self.key_offset
        lo = 0 if self.window is None else max(0, int(rows[0]) + ahead - self.window + 1)
        return lo, min(self.n_keys, int(rows[-1]) + ahead + 1)

    def hidden(self, batch: slice, rows: Int[Tensor, " q"], keys: tuple[int, int]) -> list[Hidden]:
        device = rows.device
        k = torch.arange(*keys, device=device) + self.key_offset
        visible = self.function(
            rearrange(torch.arange(batch.start, batch.stop, device=device), "b -> b 1 1 1"),
            torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device),
            rearrange(rows + self.query_offset, "q -> 1 1 q 1"),
            rearrange(k, "k -> 1 1 1 k"),
        )
        hidden = ~rearrange(visible, "b 1 q k -> b q k")
        if self.valid is not None:
            hidden = hidden | ~self.valid[batch, None, keys[0] : keys[1]]
        if self.documents is not None:
            of_rows = self.documents[batch][:, rows + self.query_offset - self.key_offset]
            hidden = hidden | (of_rows[:, :, None] != self.documents[batch, None, keys[0] : keys[1]])
        if self.selected is not None and self.leaves_out:
            assert self.selected.shape[1] == 1, "heads that select for themselves have no mask together: of_group"
            hidden = hidden | ~selected_tile(self.selected[batch, 0, rows], keys, block=self.block)
        return hidden_runs(hidden, keys[0])

    def __getitem__(self, index: Any) -> LazyMask | Bool[Tensor, "b q k"]:
        """The two cuts that models make before they attend.

        `mask[:, :, a:b, :]`: the mask of a run of query rows, as families that share keys across layers slice it.
        `mask[:, 0]`: which keys each row sees, True where it does, as a tensor, for an indexer that selects among them;
        it makes as many scores of its own, in float32.

        Raises:
            MaskTaken: for any other cut.
        """
        if isinstance(index, tuple) and index[:2] == (slice(None), 0) and all(i == slice(None) for i in index[2:]):
            return self._dense()
        if not (isinstance(index, tuple) and len(index) == 4 and isinstance(index[2], slice)):
            raise MaskTaken(
                f"the model cuts its attention mask as {index!r}; only rows can be cut, [:, :, a:b, :], or the one "
                "head taken, [:, 0]"
            )
        start, stop, _ = index[2].indices(self.n_queries)
        selected = None if self.selected is None else self.selected[:, :, start:stop]
        return replace(self, n_queries=stop - start, query_offset=self.query_offset + start, selected=selected)

    def _dense(self) -> Bool[Tensor, "b q k"]:
        device = self.device if self.valid is None else self.valid.device
        n_sequences = self.n_sequences or (1 if self.valid is None else len(self.valid))
        visible = torch.empty(n_sequences, self.n_queries, self.n_keys, dtype=torch.bool, device=device)
        mask, rows = self.simplest(), torch.arange(self.n_queries, device=device)
        for block in rows.split(_DENSE_ROWS):
            visible[:, block] = visible_tile(mask, slice(0, n_sequences), block, self.n_keys)
        return visible

    def selecting(self, indices: Int[Tensor, "b g q n"], *, block: int = 1) -> LazyMask:
        """This mask on the keys alone that an indexer selected for each row, by their indices among the keys.

        Where it selected every key, as in texts shorter than what it selects, the mask hides nothing more.

        Args:
            indices: of blocks of `block` keys; for all heads, or for each of g groups of as many heads.
        """
        leaves_out = indices.shape[-1] * block < self.n_keys or not all(
            bool(selected_tile(of_group, (0, self.n_keys), block=block).all()) for of_group in indices.unbind(1)
        )
        return replace(self, selected=indices, block=block, leaves_out=leaves_out)

    @property
    def n_groups(self) -> int:
        """How many groups of heads select keys for themselves; 1 where all see the same ones."""
        return 1 if self.selected is None or not self.leaves_out else self.selected.shape[1]

    def of_group(self, group: int) -> LazyMask:
        """The mask of one group of heads."""
        return (
            self if self.n_groups == 1 or self.selected is None else replace(self, selected=self.selected[:, [group]])
        )

    def unselected(self) -> LazyMask:
        """The mask of every key that a selection was made from."""
        return replace(self, selected=None, leaves_out=False)

    @property
    def is_plain_causal(self) -> bool:
        """True if every query sees its whole past and nothing is padding."""
        return self._is_causal and self.valid is None and not self.leaves_out

    @property
    def _is_causal(self) -> bool:
        return self.function is causal_mask_function and self.window is None and self.documents is None

    def simplest(self) -> TileMask:
        """The same mask without a function call per tile, if it is causal or a sliding window; else the mask itself."""
        if self.selected is not None and self.leaves_out:
            if self.n_groups > 1:
                return self
            return SelectedMask(self.unselected().simplest(), self.selected[:, 0], self.block)
        window = sliding_window_of(self.function)
        is_sliding = window is not None and self.window == window and self.documents is None
        if not (self._is_causal or is_sliding):
            return self
        ahead = self.query_offset - self.key_offset
        return CausalMask(self.n_keys, offset=ahead, window=window, valid=self.valid)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One softmax layer during its attention.

    `layer`: the model's own layer number. `positions`: of the tokens in their documents, where the model passes them.
    `held`: the cache layer that handed out the keys, if it wants to be known; see `cached_keys`.
    `n_bias_channels`: the last channels of q and k, which are no part of them but make a number that is added
    to the scores of a key.
    """

    layer: int
    q: Float[Tensor, "b n_heads q d"]
    k: Float[Tensor, "b n_kv_heads k d"]
    v: Float[Tensor, "b n_kv_heads k d_v"]
    mask: LazyMask
    scale: float
    softcap: float | None
    sinks: Float[Tensor, " n_heads"] | None
    positions: Int[Tensor, "#b q"] | None = None
    held: Any = None
    n_bias_channels: int = 0

    def of_documents(self, documents: Int[Tensor, "b k"], positions: Int[Tensor, "b k"]) -> AttentionCall:
        """The call of packed documents that do not see each other; some families ignore positions."""
        return replace(self, mask=replace(self.mask, documents=documents), positions=positions)

    def first_keys(self) -> Int[Tensor, "b k"]:
        """For every key, the first key of its document: after the padding, or where a packed document begins.

        Negative where a cache has dropped the beginning.
        """
        n_sequences, n_keys = len(self.q), self.k.shape[2]
        if self.mask.key_offset:
            return rearrange(self._first_of_cache(), "b -> b 1").expand(-1, n_keys)
        if self.mask.valid is not None:
            return self.mask.valid.to(self.q.device).int().argmax(-1, keepdim=True).expand(-1, n_keys)
        zeros = torch.zeros(n_sequences, n_keys, dtype=torch.long, device=self.q.device)
        if self.positions is None or self.positions.shape[-1] != n_keys:
            return zeros
        is_start = self.positions.diff(dim=-1, prepend=self.positions[:, :1] - 1) != 1
        column = torch.arange(n_keys, device=self.q.device)
        return zeros + torch.where(is_start, column, 0).cummax(-1).values

    def _first_of_cache(self) -> Int[Tensor, " b"]:
        mask, device = self.mask, self.q.device
        earlier = torch.full((len(self.q),), mask.key_offset, device=device)
        earlier = earlier if mask.earlier is None else mask.earlier.to(device)
        first = torch.zeros_like(earlier) if mask.valid is None else mask.valid.to(device).int().argmax(-1)
        return torch.where(earlier > 0, -earlier, first)

    def of_groups(self) -> list[AttentionCall]:
        """The calls of the groups of heads that select keys for themselves, in order."""
        n_groups = self.mask.n_groups
        heads, kv_heads = self.q.shape[1] // n_groups, self.k.shape[1] // n_groups
        return [
            replace(
                self,
                q=self.q[:, g * heads : (g + 1) * heads],
                k=self.k[:, g * kv_heads : (g + 1) * kv_heads],
                v=self.v[:, g * kv_heads : (g + 1) * kv_heads],
                sinks=None if self.sinks is None else self.sinks[g * heads : (g + 1) * heads],
                mask=self.mask.of_group(g),
            )
            for g in range(n_groups)
        ]

    def output(self, mask: TileMask | None = None) -> Float[Tensor, "b q n_heads d_v"]:
        """The layer's attention output under its own mask or another, by the cheapest exact way, without statistics.

        Gradients flow if the inputs require them.
        """
        if mask is None and self.mask.n_groups > 1:
            return torch.cat([call.output() for call in self.of_groups()], 2)
        is_stock = self.softcap is None and self.sinks is None and self.q.shape[2] == self.k.shape[2]
        if mask is None and is_stock and self.mask.is_plain_causal:
            out = scaled_dot_product_attention(
                self.q, self.k, self.v, is_causal=True, scale=self.scale, enable_gqa=True
            )
            return rearrange(out, "b h q d -> b q h d")
        tensors = (self.q, self.k, self.v, self.sinks)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
            return differentiable_attention(self.softmax_layer(mask), self.v)
        n_rows, n_keys = self.q.shape[2], self.k.shape[2]
        if mask is None and n_rows < n_keys and n_rows <= FEW_ROWS:  # the newest tokens, behind a cache
            return self._few_rows()
        return self.statistics(Request(), mask)[0]

    def _few_rows(self) -> Float[Tensor, "b q n_heads d_v"]:
        n_rows, n_keys = self.q.shape[2], self.k.shape[2]
        visible = None
        if n_rows > 1 or not self.mask.is_plain_causal:
            rows = torch.arange(n_rows, device=self.q.device)
            visible = visible_tile(self.mask.simplest(), slice(0, len(self.q)), rows, n_keys)
        return rows_output(self.q, self.k, self.v, visible, Scores(self.scale, self.softcap, self.sinks))

    def softmax_layer(self, mask: TileMask | None = None) -> SoftmaxLayer:
        """The layer as the kernels take it, under its own mask or another."""
        mask = self.mask.simplest() if mask is None else mask
        return SoftmaxLayer(self.q, self.k, mask, self.scale, self.softcap, self.sinks)

    def statistics(
        self, request: Request, mask: TileMask | None = None
    ) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
        """The output and the statistics of the layer's rows, under its own mask or another.

        `workbench.kernels.dispatch.choose_route` chooses the backend.
        """
        if mask is None and self.mask.n_groups > 1:
            outputs, by_group = zip(*(call.statistics(request) for call in self.of_groups()), strict=True)
            return torch.cat(outputs, 2), joined_heads(by_group)
        return attention_statistics(self.softmax_layer(mask), self.v, request)

    def crop(self, mask: TileMask, queries: Int[Tensor, " q"], keys: Int[Tensor, " k"]) -> Float[Tensor, "q k"]:
        """The probabilities of the first head on the first sequence, on chosen queries and keys."""
        sinks = None if self.sinks is None else self.sinks[:1]
        layer = SoftmaxLayer(self.q[:1, :1], self.k[:1, :1], mask, self.scale, self.softcap, sinks)
        return attention_crop(layer, queries=queries, keys=keys)

    def crops(
        self, mask: TileMask, queries: Int[Tensor, " q"], keys: Int[Tensor, " k"]
    ) -> Float[Tensor, "n_heads q k"]:
        """The probabilities of every head on the first sequence; of calls of this very kind alone."""
        layer = SoftmaxLayer(self.q[:1], self.k[:1], mask, self.scale, self.softcap, self.sinks)
        return attention_crops(layer, queries=queries, keys=keys)


# The axis of heads in the statistics of rows, where it is not the second.
_AXES = {"cells": -1, "top_key": -1}


def joined_heads(by_group: Sequence[RowStatistics]) -> RowStatistics:
    """The statistics of groups of heads as those of all heads, in the order of the groups."""
    joined: dict[str, Any] = {}
    for name in (f.name for f in fields(RowStatistics)):
        values = [getattr(statistics, name) for statistics in by_group]
        joined[name] = None if values[0] is None else torch.cat(values, _AXES.get(name, 1))
    return RowStatistics(**joined)


# Receives a softmax layer, may read it, and returns its output.
Handler = Callable[[AttentionCall], Tensor]
