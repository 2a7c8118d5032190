"""Statistics and crops of the signed rows that a linear layer implies, read off one block of rows at a time.

A linear layer's output is a row times v, with a row that is signed and not normalised. What makes the rows (a decay, a
delta rule) is a `SignedRows`; what is read off them is the same for all: |A| / Σ|A| where a distribution is needed, the
signed A / Σ|A| on cells. Memory is O(tile), float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.statistics import Request, RowStatistics
from workbench.kernels.tiles import TILE_BYTES, Collector, Columns, Scratch, batches, weighted_columns

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
        """Get ready for the rows of some sequences and heads."""
        ...


def signed_statistics(source: SignedRows, request: Request, *, tile_bytes: int = TILE_BYTES) -> RowStatistics:
    """The statistics of a linear layer's implied rows, over Σ|A|; an empty row (Σ|A| = 0) has lse −inf."""
    n_sequences, n_heads, n_tokens = source.shape
    device = source.device
    rows = torch.arange(n_tokens, device=device) if request.rows is None else request.rows.to(device)
    collector = Collector(request, n_sequences, n_heads, n_tokens, rows)
    scratch = Scratch(device)
    for batch, heads, tiles in batches(n_sequences, n_heads, 1, rows, n_tokens, tile_bytes):
        make_rows = source.prepare(batch, heads)
        shape = (batch.stop - batch.start, heads.stop - heads.start, n_tokens)
        columns = Columns(None, shape, replace(request, distance=False), batch, rows)
        for tile in tiles:
            signed = rearrange(make_rows(tile.rows, scratch), "b h q k -> b h 1 q k")
            keys = (0, signed.shape[-1])
            weights = torch.abs(signed, out=scratch.second(signed))
            sums = weighted_columns(weights, columns.aim(int(tile.rows[0]), keys))
            seen = sums[..., 0]
            total = torch.where(seen > 0, seen, torch.inf)
            collector.put(collector.lse, tile, seen.log())
            if request.entropy:
                entropy = total.log() - torch.xlogy(weights, weights).sum(-1) / total
                collector.put(collector.entropy, tile, torch.where(seen > 0, entropy, 0))
            collector.put(collector.mass, tile, seen / total)
            if request.distance:
                collector.put(collector.mean_distance, tile, _total_distance(weights, tile.rows) / total)
            if request.far is not None:
                far = sums[..., 1] + columns.far_edge(weights, tile.rows, keys)
                collector.put(collector.far_mass, tile, far / total)
            collector.read_cells(tile, signed, total, keys)
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
        rows, place = torch.sort(queries[first : first + _CROP_ROWS])
        signed = make_rows(rows, scratch)[0, 0]
        is_past = keys < signed.shape[-1]
        crop[first + place] = torch.where(is_past, signed[:, torch.where(is_past, keys, 0)], 0)
    return crop


def signed_pattern(source: SignedRows) -> Float[Tensor, "b h t t"]:
    """The whole pattern of every sequence and head. T × T: for a few tokens only."""
    n_sequences, n_heads, n_tokens = source.shape
    every = torch.arange(n_tokens, device=source.device)
    return source.prepare(slice(0, n_sequences), slice(0, n_heads))(every, Scratch(source.device))
