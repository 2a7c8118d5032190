"""Collect the row statistics of one layer while its tiles are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.softmax.softmax_tiles import row_maxima
from workbench.kernels.softmax.statistics_request import Request, RowStatistics
from workbench.kernels.tiles import Tile


class CellsOfSequence(NamedTuple):
    """Requested cells of one sequence on a tile.

    `number`: in the request. `row`: on the tile. `cell`: row · keys + column, on the tile.
    """

    sequence: int
    number: slice | Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    cell: Int[Tensor, " n"]


class TopRows(NamedTuple):
    """Rows on a tile whose arg-max is requested: their number in the request, their sequence and row on the tile."""

    number: slice
    sequence: Int[Tensor, " n"]
    row: Int[Tensor, " n"]


class TileReads(NamedTuple):
    """The requested cells on a tile, and the rows whose arg-max is requested: the same for all heads and layers."""

    cells: list[CellsOfSequence]
    top_rows: TopRows | None


class Collector:
    """The row statistics of one layer, filled tile by tile."""

    def __init__(self, request: Request, shape: tuple[int, int, int, int], rows: Int[Tensor, " q"]):
        """`shape`: sequences, heads, queries and keys of the layer; `rows`: the queries that are computed."""
        n_sequences, n_heads, n_queries, n_keys = shape

        def empty(is_requested: bool = True, *more: int) -> Float[Tensor, "b h q *more"] | None:
            return torch.empty(n_sequences, n_heads, len(rows), *more, device=rows.device) if is_requested else None

        self._request, self._n_queries = request, n_queries
        # The key position of the first query.
        self.offset = n_keys - n_queries
        self.lse, self.mass = empty(), empty()
        self.entropy, self.mean_distance = empty(request.entropy), empty(request.distance)
        self.far_mass = empty(request.far is not None)
        self.beyond = empty(bool(request.windows), len(request.windows))
        self.squares = empty(request.squares)
        n_features = 0 if request.features is None else request.features.shape[-1]
        self.features = empty(request.features is not None, n_features)
        self.value_norm, self.output_norm = empty(request.value_norms), empty(request.value_norms)
        self.columns = None
        if request.row_weights is not None:
            self.columns = torch.zeros(n_sequences, n_heads, n_keys, device=rows.device)
        # Cells and top rows as one sorted number each, sequence · queries + row, so that a tile's are a slice.
        self.cells = self.top_key = self._cell_order = self._top_order = None
        if request.cells is not None:
            self._cell_order = request.cells.sequence * n_queries + request.cells.row
            self.cells = torch.zeros(n_heads, len(self._cell_order), device=rows.device)
        if request.top_rows is not None:
            self._top_order = request.top_rows[:, 0] * n_queries + request.top_rows[:, 1]
            self.top_key = torch.zeros(len(self._top_order), n_heads, dtype=torch.long, device=rows.device)

    def put(self, buffer: Tensor | None, tile: Tile, values: Float[Tensor, "b kv g q *more"]) -> None:
        """Store one statistic of a tile's rows."""
        assert buffer is not None
        buffer[tile.batch, tile.heads(values.shape[2]), tile.span] = values.flatten(1, 2)

    def reads_on(self, tile: Tile) -> TileReads:
        """The requested cells and arg-max keys on a tile: the same for all heads."""
        top_rows = None
        if self._top_order is not None and self._request.top_rows is not None:
            some = self._slice_on(tile, self._top_order)
            sequence, row = self._request.top_rows[some].unbind(-1)
            if len(row):
                top_rows = TopRows(some, sequence - tile.batch.start, torch.searchsorted(tile.rows, row.contiguous()))
        return TileReads(self._cells_on(tile), top_rows)

    def _cells_on(self, tile: Tile) -> list[CellsOfSequence]:
        """The requested cells on a tile, sequence by sequence."""
        if self._cell_order is None or self._request.cells is None:
            return []
        some = self._slice_on(tile, self._cell_order)
        sequence, row, key = (
            x[some] for x in (self._request.cells.sequence, self._request.cells.row, self._request.cells.key)
        )
        row = torch.searchsorted(tile.rows, row.contiguous())
        column, is_inside = tile.columns_of(key)
        cell = row * tile.n_columns + column
        cells: list[CellsOfSequence] = []
        first = 0
        for b, n in zip(*(x.tolist() for x in torch.unique_consecutive(sequence, return_counts=True)), strict=True):
            span = slice(first, first + n)
            number: slice | Tensor = slice(some.start + first, some.start + first + n)
            of_sequence = CellsOfSequence(b - tile.batch.start, number, row[span], cell[span])
            inside = is_inside[span].nonzero()[:, 0]
            if len(inside) < n:
                number = inside + number.start
                of_sequence = CellsOfSequence(b - tile.batch.start, number, row[span][inside], cell[span][inside])
            cells.append(of_sequence)
            first += n
        return cells

    def read(
        self,
        reads: TileReads,
        tile: Tile,
        signed: Float[Tensor, "b kv g q k"],
        denominator: Float[Tensor, "b kv g q"],
    ) -> None:
        """Store the requested cells and arg-max keys that lie on this tile."""
        heads = tile.heads(signed.shape[2])
        signed, denominator = signed.flatten(1, 2), denominator.flatten(1, 2)
        if self.cells is not None:
            for sequence, number, row, cell in reads.cells:
                values = signed[sequence].flatten(1).index_select(1, cell)
                self.cells[heads, number] = values.div_(denominator[sequence].index_select(1, row))
        if reads.top_rows is not None and self.top_key is not None:
            number, sequence, row = reads.top_rows
            _, column = row_maxima(signed[sequence, :, row].abs_())
            self.top_key[number, heads] = tile.keys_of(column)

    def read_sums(
        self,
        tile: Tile,
        signed: Float[Tensor, "b kv g q k"],
        weights: Float[Tensor, "b kv g q k"],
        denominator: Float[Tensor, "b kv g q"],
    ) -> None:
        """Store the sums over the keys or rows of this tile: squares, features and columns."""
        columns = tile.key_index
        if self.squares is not None:
            self.put(self.squares, tile, torch.linalg.vecdot(weights, weights) / denominator**2)
        if self.features is not None and self._request.features is not None:
            features = self._request.features[tile.batch, columns].float()
            sums = einsum(signed, features, "b kv g q k, b k f -> b kv g q f")
            self.put(self.features, tile, sums / denominator[..., None])
        if self.columns is not None and self._request.row_weights is not None:
            row_weights = self._request.row_weights[tile.batch][:, tile.at].float()
            share = rearrange(row_weights, "b q -> b 1 1 q") / denominator
            sums = einsum(weights, share, "b kv g q k, b kv g q -> b kv g k")
            self.columns[tile.batch, tile.heads(signed.shape[2]), columns] += sums.flatten(1, 2)

    def finish(self, first_value_norm: Float[Tensor, "b h 1"] | None = None) -> RowStatistics:
        """The statistics, once every tile is stored."""
        assert self.lse is not None
        assert self.mass is not None
        return RowStatistics(
            lse=self.lse,
            mass=self.mass,
            entropy=self.entropy,
            mean_distance=self.mean_distance,
            far_mass=self.far_mass,
            cells=None if self.cells is None else self.cells.mT,
            top_key=self.top_key,
            beyond=self.beyond,
            squares=self.squares,
            features=self.features,
            columns=self.columns,
            value_norm=self.value_norm,
            output_norm=self.output_norm,
            first_value_norm=first_value_norm,
        )

    def _slice_on(self, tile: Tile, order: Int[Tensor, " n"]) -> slice:
        ends = torch.tensor(
            [
                tile.batch.start * self._n_queries + int(tile.rows[0]),
                (tile.batch.stop - 1) * self._n_queries + int(tile.rows[-1]) + 1,
            ],
            device=order.device,
        )
        start, stop = torch.searchsorted(order, ends).tolist()
        return slice(start, stop)
