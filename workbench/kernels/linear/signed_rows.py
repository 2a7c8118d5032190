"""Statistics and crops of the signed rows that a linear layer implies, one block of rows at a time.

A linear layer's output is a row times v, with a row that is signed and not normalised. A `SignedRows` makes the rows
(by a decay, by a delta rule); the statistics are the same for all: of |A| / Σ|A| where a distribution is needed, of the
signed A / Σ|A| on cells. Memory is O(tile), float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Protocol, runtime_checkable

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.softmax.statistics_collector import Collector
from workbench.kernels.softmax.statistics_request import Request, RowStatistics
from workbench.kernels.softmax.tile_sums import beyond, far_starts, first_keys, ladder
from workbench.kernels.tiles import Cut, Scratch, Tile, within_memory

_CROP_ROWS = 128
# Rows in ascending order → the signed rows "b h q k" on keys 0 … last row, in the scratch's first buffer.
RowMaker = Callable[[Tensor, Scratch], Tensor]


@runtime_checkable
class SignedRows(Protocol):
    """A linear layer's implied rows, made on demand. Causal: row i has weights on keys 0 … i."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sequences, heads, tokens."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the rows are made."""
        ...

    def prepare(self, batch: slice, heads: slice) -> RowMaker:
        """The maker of rows of some sequences and heads."""
        ...


@runtime_checkable
class ChannelRows(SignedRows, Protocol):
    """Rows of heads whose channels have a pattern each; a head's row is the mean of those of its channels."""

    def handed_on(self, v: Float[Tensor, "b n_heads t c"]) -> Float[Tensor, "b n_heads t c"]:
        """What every channel hands on: its own pattern times its values."""
        ...


def signed_statistics(source: SignedRows, request: Request, *, tile_bytes: int | None = None) -> RowStatistics:
    """The statistics of a linear layer's implied rows, over Σ|A|; an empty row (Σ|A| = 0) has lse −inf.

    Tiles have `tile_bytes`, the fastest size where absent; where memory runs out they are halved.

    Raises:
        WorkbenchError: if tiles of one row do not fit the memory either.
    """
    assert request.is_of_rows, "arg-maxima of all rows and tags are statistics of a profile"
    assert not request.value_norms, "a linear layer is given by its rows, without values"
    n_sequences, n_heads, n_tokens = source.shape
    rows = torch.arange(n_tokens, device=source.device) if request.rows is None else request.rows.to(source.device)
    return within_memory(
        lambda cut: _statistics(source, request, rows, cut),
        (n_sequences, n_heads, 1),
        n_rows=len(rows),
        n_keys=n_tokens,
        tile_bytes=tile_bytes,
    )


def _statistics(source: SignedRows, request: Request, rows: Int[Tensor, " q"], cut: Cut) -> RowStatistics:
    n_sequences, n_heads, n_tokens = source.shape
    collector = Collector(request, (n_sequences, n_heads, n_tokens, n_tokens), rows)
    far_from, firsts = far_starts(request, n_sequences), first_keys(request, n_sequences)
    scratch = Scratch(rows.device, cut.largest)
    for batch, heads in product(cut.batches, cut.kv_heads):
        make_rows = source.prepare(batch, heads)
        for span in cut.spans:
            signed = make_rows(rows[span], scratch)[:, :, None]
            tile = Tile(batch, heads, span, rows[span], (0, signed.shape[-1]), [])
            weights = torch.abs(signed, out=scratch.second(signed))
            seen = weights.sum(-1)
            total = torch.where(seen > 0, seen, torch.inf)
            collector.put(collector.lse, tile, seen.log())
            if request.entropy:
                entropy = total.log() - torch.xlogy(weights, weights).sum(-1) / total
                collector.put(collector.entropy, tile, torch.where(seen > 0, entropy, 0))
            collector.put(collector.mass, tile, seen / total)
            if request.distance:
                collector.put(collector.mean_distance, tile, _total_distance(weights, tile.rows) / total)
            if request.far is not None:
                far = ladder(tile.rows, tile.keys, [request.far.window])
                collector.put(collector.far_mass, tile, far.mass(weights, far_from[batch]) / total)
            if request.windows:
                masses = beyond(ladder(tile.rows, tile.keys, request.windows), weights, firsts[batch])
                collector.put(collector.beyond, tile, masses / total[..., None])
            collector.read_sums(tile, signed, weights, total)
            collector.read(collector.reads_on(tile), tile, signed, total)
    return collector.finish()


def _total_distance(weights: Float[Tensor, "b h 1 q k"], rows: Int[Tensor, " q"]) -> Float[Tensor, "b h 1 q"]:
    """Σ_j w (i − j), in tokens."""
    # Positions relative to the tile, as one more column, would cost no pass, but heads that forget within a token or
    # two would lose the few digits of their short distance to the length of the tile.
    distance = (rows[:, None] - torch.arange(weights.shape[-1], device=rows.device)).to(weights.dtype)
    return einsum(weights, distance, "b h g q k, q k -> b h g q")


def signed_crop(
    source: SignedRows, sequence: int, head: int, *, queries: Int[Tensor, " rows"], keys: Int[Tensor, " columns"]
) -> Float[Tensor, "rows columns"]:
    """The signed, unnormalised weights of one head on one sequence, on chosen queries and keys."""
    crop = torch.zeros(len(queries), len(keys), device=source.device)
    make_rows = source.prepare(slice(sequence, sequence + 1), slice(head, head + 1))
    scratch = Scratch(source.device)
    for first in range(0, len(queries), _CROP_ROWS):
        rows, order = torch.sort(queries[first : first + _CROP_ROWS])
        signed = make_rows(rows, scratch)[0, 0]
        is_past = keys < signed.shape[-1]
        crop[first + order] = torch.where(is_past, signed[:, torch.where(is_past, keys, 0)], 0)
    return crop


def signed_pattern(source: SignedRows) -> Float[Tensor, "b h t t"]:
    """The whole pattern of every sequence and head. T × T: for a few tokens only."""
    n_sequences, n_heads, n_tokens = source.shape
    rows = torch.arange(n_tokens, device=source.device)
    return source.prepare(slice(0, n_sequences), slice(0, n_heads))(rows, Scratch(source.device))
