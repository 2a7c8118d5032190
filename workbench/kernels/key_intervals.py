"""Masks as two integers per query row: row i sees the keys low[i] <= j < high[i].

Causal, sliding, chunked, packed, prefixed and padded attention are such masks, so one kernel with one pair of
comparisons serves them all. Neither end falls from one row to the next: kernels find the rows of a key block by
bisection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels.masks import CausalMask, Hidden


@dataclass(frozen=True, slots=True)
class Intervals:
    """The keys that each query row sees; a `TileMask`. `position`: the row's own key index, where distances start.

    `starts_at_zero`: every row sees from key 0 on, which saves kernels a loop.
    """

    position: Int[Tensor, " q"]
    low: Int[Tensor, "#b q"]
    high: Int[Tensor, "#b q"]
    starts_at_zero: bool = False

    def key_range(self, rows: Integer[Tensor, " rows"]) -> tuple[int, int]:
        """Smallest and one past the largest key that any of these rows sees; some one key where they see none."""
        low, high = int(self.low.index_select(1, rows).min()), int(self.high.index_select(1, rows).max())
        low = max(0, min(low, high - 1))
        return low, max(low + 1, high)

    def hidden(self, batch: slice, rows: Integer[Tensor, " rows"], keys: tuple[int, int]) -> list[Hidden]:
        """The ragged ends of the rows' keys."""
        low, high = (x[batch if len(x) > 1 else slice(None), rows] for x in (self.low, self.high))
        stop, start = max(keys[0], int(low.max())), min(keys[1], int(high.min()))
        runs: list[Hidden] = []
        if stop > keys[0]:
            j = torch.arange(keys[0], min(stop, keys[1]), device=low.device)
            runs.append(Hidden(keys[0], j < low[..., None]))
        if start < keys[1]:
            first = max(start, keys[0])
            j = torch.arange(first, keys[1], device=low.device)
            runs.append(Hidden(first, j >= high[..., None]))
        return runs

    def rows(self, picked: Integer[Tensor, " rows"]) -> Intervals:
        """The intervals of some rows, sorted."""
        return Intervals(self.position[picked], self.low[:, picked], self.high[:, picked], self.starts_at_zero)

    def visible(self, n_keys: int) -> Bool[Tensor, "#b q k"]:
        """The mask as a dense tile, for definitions and tests."""
        j = torch.arange(n_keys, device=self.low.device)
        return (j >= self.low[..., None]) & (j < self.high[..., None])


def intervals(  # noqa: PLR0913  # the parts of a mask
    n_queries: int,
    n_keys: int,
    *,
    causal: bool = True,
    window: int | None = None,
    documents: Integer[Tensor, "#b k"] | None = None,
    cu_seqlens: Integer[Tensor, " n"] | None = None,
    device: torch.device | str = "cpu",
) -> Intervals:
    """The rows of a layer whose last query stands at the last key; a longer k is a prefix before the first query.

    Args:
        window: rows see the last `window` keys only, own position included.
        documents: an id per key, in runs; no row sees another document.
        cu_seqlens: the documents as bounds, [0, ..., n_keys], for one packed sequence.

    Raises:
        WorkbenchError: if there are more queries than keys, an id returns after another, or bounds miss keys.
    """
    if n_queries > n_keys:
        raise WorkbenchError(f"{n_queries} queries over {n_keys} keys; expected at least as many keys as queries")
    if documents is not None and cu_seqlens is not None:
        raise WorkbenchError("both documents and cu_seqlens were given; expected one of them")
    position = torch.arange(n_keys - n_queries, n_keys, device=device)
    low, high = torch.zeros_like(position)[None], torch.full_like(position, n_keys)[None]
    if cu_seqlens is not None:
        documents = documents_of(cu_seqlens, n_keys)[None].to(device)
    if documents is not None:
        starts, stops = _runs(documents.to(device))
        low, high = starts[:, position], stops[:, position]
    if causal:
        high = torch.minimum(high, position + 1)
    if window is not None:
        low = torch.maximum(low, position - window + 1)
    return _as_int32(position, low, high, starts_at_zero=documents is None and window is None)


def intervals_of(mask: CausalMask, n_queries: int, device: torch.device | str = "cpu") -> Intervals:
    """A causal mask as intervals; padding may stand at either end of a sequence.

    Raises:
        WorkbenchError: if a sequence has padding between valid keys.
    """
    plain = intervals(n_queries, mask.n_keys, window=mask.window, device=device)
    position = plain.position.long() - (mask.n_keys - n_queries) + mask.offset
    low, high = torch.zeros_like(position)[None], position[None] + 1
    if mask.window is not None:
        low = torch.maximum(low, position - mask.window + 1)
    if mask.valid is not None:
        valid = mask.valid.to(device)
        n_valid = valid.sum(-1)
        first, last = _ends(valid)
        if has_inner_padding(valid):
            raise WorkbenchError(
                "a sequence has padding between valid keys; expected padding at its ends: use blockwise_statistics"
            )
        low = torch.maximum(low, first[:, None])
        high = torch.minimum(high, torch.where(n_valid > 0, last, 0)[:, None])
    return _as_int32(position, low, high, starts_at_zero=mask.valid is None and mask.window is None)


def has_inner_padding(valid: Bool[Tensor, "b k"]) -> bool:
    """True if some sequence has padding between valid keys: then its rows see more than one run of keys."""
    first, last = _ends(valid)
    n_valid = valid.sum(-1)
    return bool(((last - first != n_valid) & (n_valid > 0)).any())


def documents_of(cu_seqlens: Integer[Tensor, " n"], n_tokens: int) -> Int[Tensor, " t"]:
    """The number of each token's document, from the documents' bounds."""
    bounds = cu_seqlens.long().cpu()
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != n_tokens or bool((bounds.diff() < 0).any()):
        raise WorkbenchError(
            f"cu_seqlens {bounds.tolist()} do not cut {n_tokens} tokens; expected [0, ..., {n_tokens}], never falling"
        )
    return torch.repeat_interleave(torch.arange(len(bounds) - 1), bounds.diff())


def _ends(valid: Bool[Tensor, "b k"]) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """The first valid key of each sequence and one past its last; arbitrary where there is none."""
    return valid.int().argmax(-1), valid.shape[-1] - valid.flip(-1).int().argmax(-1)


def _runs(documents: Integer[Tensor, "b k"]) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b k"]]:
    """The first key of each key's document and one past its last."""
    n_keys = documents.shape[1]
    changes = documents[:, 1:] != documents[:, :-1]
    n_runs = 1 + changes.sum(-1)
    in_order = documents.sort(-1).values
    n_documents = 1 + (in_order[:, 1:] != in_order[:, :-1]).sum(-1)
    if bool((n_runs != n_documents).any()):
        raise WorkbenchError("a document's keys are not consecutive; expected each document id in one run")
    j = torch.arange(n_keys, device=documents.device)
    edge = torch.ones_like(documents[:, :1], dtype=torch.bool)
    starts = torch.where(torch.cat([edge, changes], -1), j, 0).cummax(-1).values
    ends = torch.where(torch.cat([changes, edge], -1), j + 1, n_keys)
    stops = ends.flip(-1).cummin(-1).values.flip(-1)
    return starts, stops


def _as_int32(position: Tensor, low: Tensor, high: Tensor, *, starts_at_zero: bool) -> Intervals:
    low, high = torch.broadcast_tensors(low, high)
    return Intervals(position.int(), low.int().contiguous(), high.int().contiguous(), starts_at_zero)
