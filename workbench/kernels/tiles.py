"""Tiles of a layer for the row-blocked path, and smaller tiles where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels.masks import Hidden, SeenKeys, TileMask, run_of_keys, seen_keys

# Measured: small tiles stay in a core's caches between the passes over them, tiles of many rows read fewer keys.
_SMALL, _LARGE = 4 << 20, 16 << 20
# Rows of a matrix product that keep a core busy, at least and better.
_FEW_ROWS, _ENOUGH_ROWS = 64, 256
# A causal tile of more rows is much wider than its first rows need.
_MANY_ROWS = 128

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive requested rows of some sequences and some key/value heads, and the keys that any row sees.

    `rows` are the query indices themselves, `span` their range among the requested rows. `keys`, `columns`, `hidden`:
    as of `SeenKeys`.
    """

    batch: slice
    kv_heads: slice
    span: slice
    rows: Int[Tensor, " q"]
    keys: tuple[int, int]
    hidden: list[Hidden]
    columns: Int[Tensor, " k"] | None = None

    @property
    def key_index(self) -> slice | Int[Tensor, " k"]:
        """The keys as an index, that copies nothing where they are a run."""
        return slice(*self.keys) if self.columns is None else self.columns

    @property
    def n_columns(self) -> int:
        """How many keys there are."""
        return self.keys[1] - self.keys[0] if self.columns is None else len(self.columns)

    def columns_before(self, key: int) -> int:
        """How many columns come before a key."""
        if self.columns is None:
            return min(max(0, key - self.keys[0]), self.n_columns)
        return int(torch.searchsorted(self.columns, key))

    def columns_of(self, keys: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
        """The column of each key, and whether it has one."""
        if self.columns is None:
            return keys - self.keys[0], (keys >= self.keys[0]) & (keys < self.keys[1])
        column = torch.searchsorted(self.columns, keys.contiguous()).clamp_max_(self.n_columns - 1)
        return column, self.columns[column] == keys

    def keys_of(self, columns: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The key of each column."""
        return columns + self.keys[0] if self.columns is None else self.columns[columns]

    def keys_after(self, first: int) -> Float[Tensor, " k"]:
        """How many tokens each key stands behind key `first`; negative before it."""
        if self.columns is None:
            return torch.arange(self.keys[0] - first, self.keys[1] - first, device=self.rows.device, dtype=torch.float)
        return (self.columns - first).float()

    def keys_in(self, x: Float[Tensor, "b n_kv_heads k d"]) -> Float[Tensor, "b2 kv k2 d"]:
        """What this tile's key/value heads have at its keys, in float32."""
        of_heads = x[self.batch, self.kv_heads]
        if self.columns is None:
            return of_heads[:, :, slice(*self.keys)].float()
        return of_heads.index_select(2, self.columns).float()

    @property
    def at(self) -> slice | Int[Tensor, " q"]:
        """`rows` as an index that copies nothing where they are consecutive."""
        first, last = int(self.rows[0]), int(self.rows[-1])
        return slice(first, last + 1) if last - first + 1 == len(self.rows) else self.rows

    def heads(self, group: int) -> slice:
        """The query heads of this tile's key/value heads."""
        return slice(self.kv_heads.start * group, self.kv_heads.stop * group)


@dataclass(frozen=True, slots=True)
class Cut:
    """A layer's sequences, key/value heads and requested rows, each in runs; one run of each makes a tile.

    Several sequences share a run only if there is one run of rows, so that the cells of a tile are consecutive in a
    list sorted by (sequence, row). `largest`: numbers in the largest tile.
    """

    batches: list[slice]
    kv_heads: list[slice]
    spans: list[slice]
    largest: int

    def tiles(self, rows: Int[Tensor, " q"], mask: TileMask) -> Iterator[list[Tile]]:
        """For each run of sequences and rows, its tiles: one for each run of heads, with the same tile of the mask.

        A tile has no column for keys that a selection leaves out for all of its rows, where these are more than a few.
        """
        return self._tiles(rows, mask, seen_keys)

    def tiles_of_runs(self, rows: Int[Tensor, " q"], mask: TileMask) -> Iterator[list[Tile]]:
        """As `tiles`, with a column for every key of the run that the tile's rows see."""
        return self._tiles(rows, mask, run_of_keys)

    def _tiles(
        self, rows: Int[Tensor, " q"], mask: TileMask, seen: Callable[[TileMask, slice, Tensor], SeenKeys]
    ) -> Iterator[list[Tile]]:
        for batch in self.batches:
            for span in self.spans:
                keys, columns, hidden = seen(mask, batch, rows[span])
                yield [Tile(batch, heads, span, rows[span], keys, hidden, columns) for heads in self.kv_heads]


def cut(shape: tuple[int, int, int], *, n_rows: int, n_keys: int, tile_bytes: int) -> Cut:
    """Cut `shape`, (sequences, key/value heads, query heads of each), so that a float32 tile fits `tile_bytes`.

    A tile holds one row of one key/value head at least.
    """
    n_sequences, n_kv_heads, group = shape
    row_bytes = 4 * group * n_keys
    step_r = max(1, min(n_rows, _MANY_ROWS, tile_bytes // row_bytes))
    step_kv = max(1, min(n_kv_heads, tile_bytes // (step_r * row_bytes)))
    holds_sequence = step_r == n_rows and step_kv == n_kv_heads
    step_b = max(1, tile_bytes // (step_kv * step_r * row_bytes)) if holds_sequence else 1
    largest = min(n_sequences, step_b) * step_kv * group * step_r * n_keys
    return Cut(_runs(n_sequences, step_b), _runs(n_kv_heads, step_kv), _runs(n_rows, step_r), largest)


def within_memory(
    compute: Callable[[Cut], Result],
    shape: tuple[int, int, int],
    *,
    n_rows: int,
    n_keys: int,
    tile_bytes: int | None = None,
) -> Result:
    """The result of `compute` on a layer cut into tiles of `tile_bytes`, or half, a quarter … where memory runs out.

    The cut does not change the result. Without `tile_bytes` it is the fastest: a tile stays in cache, or else has just
    the rows that a matrix product needs.

    Raises:
        WorkbenchError: if memory runs out with tiles of a single row too.
    """
    n_sequences, n_kv_heads, group = shape
    smallest = 4 * group * n_keys
    size = _fastest(n_keys) if tile_bytes is None else tile_bytes
    while True:
        try:
            return compute(cut(shape, n_rows=n_rows, n_keys=n_keys, tile_bytes=size))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if size <= smallest:
                raise WorkbenchError(
                    f"memory ran out on {n_rows} rows over {n_keys} keys of {n_kv_heads * group} heads, {n_sequences} "
                    "sequences, taken one row at a time; pass shorter sequences, fewer of them at once, or rows= to "
                    f"look at a sample of the rows ({str(error).strip()})"
                ) from error
        # Outside of the handler: inside, the traceback still holds the failed attempt's tensors.
        size = max(smallest, size // 2)


def _fastest(n_keys: int) -> int:
    return max(min(max(_SMALL, 4 * _ENOUGH_ROWS * n_keys), _LARGE), 4 * _FEW_ROWS * n_keys)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _runs(n: int, step: int) -> list[slice]:
    return [slice(first, min(n, first + step)) for first in range(0, n, step)]


class Scratch:
    """Reused buffers, two for tiles and one for rows: a fresh allocation per tile costs as much as passes over it.

    `capacity`: numbers in the largest tile, where that is known; the buffers grow otherwise.
    """

    def __init__(self, device: torch.device, capacity: int = 0):
        self._buffers = [torch.empty(n, device=device) for n in (capacity, capacity, 0)]

    def grow(self, capacity: int) -> None:
        """Make room for tiles of this many numbers."""
        for which in (0, 1):
            self.take(which, (capacity,))

    def take(self, which: int, shape: tuple[int, ...]) -> Tensor:
        size = 1
        for n in shape:
            size *= n
        if self._buffers[which].numel() < size:
            self._buffers[which] = torch.empty(size, device=self._buffers[which].device)
        return self._buffers[which][:size].view(shape)

    def second(self, like: Tensor) -> Tensor:
        return self.take(1, tuple(like.shape))

    def rows(self, shape: tuple[int, ...]) -> Tensor:
        """A buffer for a few numbers per row."""
        return self.take(2, shape)
