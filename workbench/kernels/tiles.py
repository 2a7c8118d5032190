"""How the row-blocked path cuts a layer into tiles, and how it reads statistics off one tile of weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.statistics import Request, RowStatistics

# 4 MiB of scores stay in a core's L2/L3 cache between the passes over them: measured fastest from 2 to 8 MiB.
TILE_BYTES = 4 << 20
_MIN_ROWS, _MAX_ROWS = 16, 128


@dataclass(frozen=True, slots=True)
class Tile:
    """A block of consecutive requested rows of some sequences and some key/value heads.

    `rows` are the query indices themselves, `span` their place among the requested rows.
    """

    batch: slice
    kv_heads: slice
    span: slice
    rows: Int[Tensor, " q"]

    def heads(self, group: int) -> slice:
        """The query heads of this tile's key/value heads."""
        return slice(self.kv_heads.start * group, self.kv_heads.stop * group)


def batches(
    n_sequences: int, n_kv_heads: int, group: int, rows: Int[Tensor, " q"], n_keys: int, tile_bytes: int
) -> Iterator[tuple[slice, slice, list[Tile]]]:
    """Yield (sequences, key/value heads, their tiles) such that one tile of float32 scores fits `tile_bytes`.

    Several sequences share a tile only if the tile then holds all their rows, so that the cells of a tile are
    consecutive in a list sorted by (sequence, row).
    """
    n_rows = len(rows)
    row_bytes = 4 * group * n_keys
    if n_kv_heads * n_rows * row_bytes <= tile_bytes:
        step_b, step_kv, step_r = (
            max(1, tile_bytes // max(1, n_kv_heads * n_rows * row_bytes)),
            n_kv_heads,
            n_rows,
        )
    else:
        step_b = 1
        step_kv = n_kv_heads if n_kv_heads * 2 * _MIN_ROWS * row_bytes <= tile_bytes else 1
        step_r = max(_MIN_ROWS, min(_MAX_ROWS, tile_bytes // (step_kv * row_bytes)))
    for b in range(0, n_sequences, step_b):
        batch = slice(b, min(n_sequences, b + step_b))
        for h in range(0, n_kv_heads, step_kv):
            heads = slice(h, min(n_kv_heads, h + step_kv))
            spans = (slice(r, min(n_rows, r + step_r)) for r in range(0, n_rows, step_r))
            yield batch, heads, [Tile(batch, heads, span, rows[span]) for span in spans]


class Columns:
    """Extra columns beside v, so that one matrix product gives the output and every linear row statistic.

    Column order: v, ones (the denominator), key position relative to the block (mean distance), far indicator.
    Positions are relative to the block because float32 cancels at long range: i·Σp − Σp·j loses 1e-7·T tokens.
    """

    def __init__(
        self,
        v: Float[Tensor, "b kv k d"] | None,
        shape: tuple[int, int, int],
        request: Request,
        batch: slice,
        like: Tensor,
    ):
        n_sequences, n_kv_heads, n_keys = shape
        self._request = request
        self._first = None if request.first is None else request.first[batch].to(like.device)
        self.width_v = 0 if v is None else v.shape[-1]
        n_columns = self.width_v + 1 + request.distance + (request.far is not None)
        self.table = torch.empty(n_sequences, n_kv_heads, n_keys, n_columns, dtype=torch.float32, device=like.device)
        if v is not None:
            self.table[..., : self.width_v] = v
        self.table[..., self.width_v] = 1
        self._keys = torch.arange(n_keys, device=like.device)

    def aim(self, first_row: int, keys: tuple[int, int]) -> Float[Tensor, "b kv k c"]:
        """The columns of `keys`, set for a block whose first query stands at key position `first_row`."""
        part, j = self.table[:, :, slice(*keys)], self._keys[slice(*keys)]
        column = self.width_v + 1
        if self._request.distance:
            part[..., column] = (j - first_row).to(torch.float32)
            column += 1
        if self._request.far is not None:
            is_far = (j <= first_row - self._request.far.window) & self._after_sink(j)
            part[..., column] = rearrange(is_far, "b k -> b 1 k").to(torch.float32)
        return part

    def far_edge(
        self, weights: Float[Tensor, "b kv g q k"], positions: Int[Tensor, " q"], keys: tuple[int, int]
    ) -> Float[Tensor, "b kv g q"]:
        """Far mass on the columns that are far for the block's later rows only (unnormalised)."""
        assert self._request.far is not None
        window = self._request.far.window
        lo = max(keys[0], int(positions[0]) - window + 1)
        hi = min(keys[1], int(positions[-1]) - window + 1)
        if hi <= lo:
            return weights.new_zeros(weights.shape[:-1])
        j = self._keys[lo:hi]
        is_far = (positions[:, None] - j >= window) & self._after_sink(j)[:, None, :]
        edge = weights[..., lo - keys[0] : hi - keys[0]]
        return (edge * rearrange(is_far, "b q k -> b 1 1 q k")).sum(-1)

    def _after_sink(self, j: Int[Tensor, " k"]) -> Tensor:
        assert self._request.far is not None
        if self._first is None:
            return (j >= self._request.far.sink)[None]
        return j >= self._first[:, None] + self._request.far.sink


class Collector:
    """The row statistics of one layer while its tiles are being worked through."""

    def __init__(self, request: Request, n_sequences: int, n_heads: int, n_queries: int, rows: Int[Tensor, " q"]):
        def empty(wanted: bool = True) -> Float[Tensor, "b h q"] | None:
            return torch.empty(n_sequences, n_heads, len(rows), device=rows.device) if wanted else None

        self._request, self._rows, self._n_queries = request, rows, n_queries
        self.lse, self.mass = empty(), empty()
        self.entropy, self.mean_distance = empty(request.entropy), empty(request.distance)
        self.far_mass = empty(request.far is not None)
        self.cells = self.top_key = self._cell_keys = self._top_keys = None
        if request.cells is not None:
            self._cell_keys = request.cells.sequence * n_queries + request.cells.row
            self.cells = torch.zeros(len(self._cell_keys), n_heads, device=rows.device)
        if request.top_rows is not None:
            self._top_keys = request.top_rows[:, 0] * n_queries + request.top_rows[:, 1]
            self.top_key = torch.zeros(len(self._top_keys), n_heads, dtype=torch.long, device=rows.device)

    def put(self, buffer: Tensor | None, tile: Tile, values: Float[Tensor, "b kv g q"]) -> None:
        """Store one statistic of a tile's rows."""
        assert buffer is not None
        buffer[tile.batch, tile.heads(values.shape[2]), tile.span] = rearrange(values, "b kv g q -> b (kv g) q")

    def read_cells(
        self,
        tile: Tile,
        signed: Float[Tensor, "b kv g q k"],
        denominator: Float[Tensor, "b kv g q"],
        keys: tuple[int, int],
    ) -> None:
        """Store the requested cells and arg-max keys that lie on this tile."""
        if self._cell_keys is not None and self.cells is not None and self._request.cells is not None:
            wanted = self._lying_on(tile, self._cell_keys)
            cells = self._request.cells
            b, r = cells.sequence[wanted] - tile.batch.start, self._place(cells.row[wanted], tile)
            j = cells.key[wanted] - keys[0]
            seen = (j >= 0) & (j < keys[1] - keys[0])
            b, r, j = b[seen], r[seen], j[seen]
            values = signed[b, :, :, r, j] / denominator[b, :, :, r]
            at = torch.arange(wanted.start, wanted.stop, device=j.device)[seen]
            self.cells[at, tile.heads(signed.shape[2])] = rearrange(values, "n kv g -> n (kv g)")
        if self._top_keys is not None and self.top_key is not None and self._request.top_rows is not None:
            wanted = self._lying_on(tile, self._top_keys)
            sequence, row = self._request.top_rows[wanted].unbind(-1)
            rows = signed[sequence - tile.batch.start, :, :, self._place(row, tile)]
            best = rows.abs().argmax(-1) + keys[0]
            self.top_key[wanted, tile.heads(signed.shape[2])] = rearrange(best, "n kv g -> n (kv g)")

    def finish(self) -> RowStatistics:
        assert self.lse is not None
        assert self.mass is not None
        return RowStatistics(
            lse=self.lse,
            mass=self.mass,
            entropy=self.entropy,
            mean_distance=self.mean_distance,
            far_mass=self.far_mass,
            cells=self.cells,
            top_key=self.top_key,
        )

    def _lying_on(self, tile: Tile, sorted_keys: Int[Tensor, " n"]) -> slice:
        ends = torch.tensor(
            [
                tile.batch.start * self._n_queries + int(tile.rows[0]),
                (tile.batch.stop - 1) * self._n_queries + int(tile.rows[-1]) + 1,
            ],
            device=sorted_keys.device,
        )
        start, stop = torch.searchsorted(sorted_keys, ends).tolist()
        return slice(start, stop)

    def _place(self, row: Int[Tensor, " n"], tile: Tile) -> Int[Tensor, " n"]:
        return torch.searchsorted(tile.rows, row.contiguous())


def weighted_columns(
    weights: Float[Tensor, "b kv g q k"], columns: Float[Tensor, "b kv k c"]
) -> Float[Tensor, "b kv g q c"]:
    """Every linear row statistic of a tile, and the output where v is among the columns, as one matrix product."""
    product = rearrange(weights, "b kv g q k -> b kv (g q) k") @ columns
    return rearrange(product, "b kv (g q) c -> b kv g q c", g=weights.shape[2])


class Scratch:
    """Two reused buffers for tiles: a fresh allocation per tile costs as much as a pass over it."""

    def __init__(self, device: torch.device):
        self._buffers = [torch.empty(0, device=device), torch.empty(0, device=device)]

    def take(self, which: int, shape: tuple[int, ...]) -> Tensor:
        size = 1
        for n in shape:
            size *= n
        if self._buffers[which].numel() < size:
            self._buffers[which] = torch.empty(size, device=self._buffers[which].device)
        return self._buffers[which][:size].view(shape)

    def second(self, like: Tensor) -> Tensor:
        return self.take(1, tuple(like.shape))
