"""Where the row statistics of one layer are gathered while its tiles are being worked through."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.softmax.statistics import Request, RowStatistics
from workbench.kernels.tiles import Tile


class Found(NamedTuple):
    """Requested cells on a tile: their place in the request, and their sequence, row and column on the tile."""

    at: Int[Tensor, " n"]
    sequence: Int[Tensor, " n"]
    place: Int[Tensor, " n"]
    column: Int[Tensor, " n"]


class Wanted(NamedTuple):
    """The cells of a tile that are asked for, and the rows whose arg-max is (in column 0)."""

    cells: Found | None
    tops: Found | None


class Collector:
    """The row statistics of one layer while its tiles are being worked through."""

    def __init__(
        self,
        request: Request,
        n_sequences: int,
        n_heads: int,
        n_queries: int,
        rows: Int[Tensor, " q"],
        *,
        n_keys: int,
    ):
        def empty(wanted: bool = True, *more: int) -> Float[Tensor, "b h q *more"] | None:
            return torch.empty(n_sequences, n_heads, len(rows), *more, device=rows.device) if wanted else None

        self._request, self._rows, self._n_queries = request, rows, n_queries
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
        self.cells = self.top_key = self._cell_keys = self._top_keys = None
        if request.cells is not None:
            self._cell_keys = request.cells.sequence * n_queries + request.cells.row
            self.cells = torch.zeros(len(self._cell_keys), n_heads, device=rows.device)
        if request.top_rows is not None:
            self._top_keys = request.top_rows[:, 0] * n_queries + request.top_rows[:, 1]
            self.top_key = torch.zeros(len(self._top_keys), n_heads, dtype=torch.long, device=rows.device)

    def put(self, buffer: Tensor | None, tile: Tile, values: Float[Tensor, "b kv g q *more"]) -> None:
        """Store one statistic of a tile's rows."""
        assert buffer is not None
        buffer[tile.batch, tile.heads(values.shape[2]), tile.span] = values.flatten(1, 2)

    def wanted_on(self, tile: Tile) -> Wanted:
        """Which of the requested cells and arg-max keys lie on a tile: the same for all heads."""
        cells = tops = None
        if self._cell_keys is not None and self._request.cells is not None:
            lying = self._lying_on(tile, self._cell_keys)
            row, key = self._request.cells.row[lying], self._request.cells.key[lying]
            is_inside = (key >= tile.keys[0]) & (key < tile.keys[1])
            at = torch.arange(lying.start, lying.stop, device=key.device)
            sequence = self._request.cells.sequence[lying] - tile.batch.start
            found = (at, sequence, torch.searchsorted(tile.rows, row.contiguous()), key - tile.keys[0])
            cells = Found(*(found if bool(is_inside.all()) else (x[is_inside] for x in found)))
        if self._top_keys is not None and self._request.top_rows is not None:
            lying = self._lying_on(tile, self._top_keys)
            sequence, row = self._request.top_rows[lying].unbind(-1)
            at = torch.arange(lying.start, lying.stop, device=row.device)
            place = torch.searchsorted(tile.rows, row.contiguous())
            tops = Found(at, sequence - tile.batch.start, place, torch.zeros_like(at))
        return Wanted(cells, tops)

    def read(
        self,
        wanted: Wanted,
        tile: Tile,
        signed: Float[Tensor, "b kv g q k"],
        denominator: Float[Tensor, "b kv g q"],
    ) -> None:
        """Store the requested cells and arg-max keys that lie on this tile."""
        heads = tile.heads(signed.shape[2])
        signed, denominator = signed.flatten(1, 2), denominator.flatten(1, 2)
        if wanted.cells is not None and self.cells is not None and len(wanted.cells.at):
            at, sequence, place, column = wanted.cells
            n_heads, n_rows, n_keys = signed.shape[1:]
            head = torch.arange(n_heads, device=at.device)
            row = ((sequence * n_heads)[:, None] + head) * n_rows + place[:, None]
            values = signed.flatten()[row * n_keys + column[:, None]]
            self.cells[at, heads] = values / denominator.flatten()[row]
        if wanted.tops is not None and self.top_key is not None and len(wanted.tops.at):
            at, sequence, place, _ = wanted.tops
            self.top_key[at, heads] = signed[sequence, :, place].abs().argmax(-1) + tile.keys[0]

    def read_sums(
        self,
        tile: Tile,
        signed: Float[Tensor, "b kv g q k"],
        weights: Float[Tensor, "b kv g q k"],
        denominator: Float[Tensor, "b kv g q"],
    ) -> None:
        """Store what is summed over the keys or rows of this tile by numbers of the request's own."""
        columns = slice(*tile.keys)
        if self.squares is not None:
            self.put(self.squares, tile, torch.linalg.vecdot(weights, weights) / denominator**2)
        if self.features is not None and self._request.features is not None:
            features = self._request.features[tile.batch, columns].float()
            sums = einsum(signed, features, "b kv g q k, b k f -> b kv g q f")
            self.put(self.features, tile, sums / denominator[..., None])
        if self.columns is not None and self._request.row_weights is not None:
            counted = self._request.row_weights[tile.batch][:, tile.rows].float()
            share = rearrange(counted, "b q -> b 1 1 q") / denominator
            sums = einsum(weights, share, "b kv g q k, b kv g q -> b kv g k")
            self.columns[tile.batch, tile.heads(signed.shape[2]), columns] += sums.flatten(1, 2)

    def finish(self, first_value_norm: Float[Tensor, "b h 1"] | None = None) -> RowStatistics:
        """Everything that was stored."""
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
            beyond=self.beyond,
            squares=self.squares,
            features=self.features,
            columns=self.columns,
            value_norm=self.value_norm,
            output_norm=self.output_norm,
            first_value_norm=first_value_norm,
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
