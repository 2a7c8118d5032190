"""Where the row statistics of one layer are gathered while its tiles are being worked through."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.statistics import Request, RowStatistics
from workbench.kernels.tiles import Tile


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
    ) -> None:
        """Store the requested cells and arg-max keys that lie on this tile."""
        if self._cell_keys is not None and self.cells is not None and self._request.cells is not None:
            wanted = self._lying_on(tile, self._cell_keys)
            cells = self._request.cells
            b, r = cells.sequence[wanted] - tile.batch.start, self._place(cells.row[wanted], tile)
            j = cells.key[wanted] - tile.keys[0]
            seen = (j >= 0) & (j < tile.keys[1] - tile.keys[0])
            b, r, j = b[seen], r[seen], j[seen]
            values = signed[b, :, :, r, j] / denominator[b, :, :, r]
            at = torch.arange(wanted.start, wanted.stop, device=j.device)[seen]
            self.cells[at, tile.heads(signed.shape[2])] = rearrange(values, "n kv g -> n (kv g)")
        if self._top_keys is not None and self.top_key is not None and self._request.top_rows is not None:
            wanted = self._lying_on(tile, self._top_keys)
            sequence, row = self._request.top_rows[wanted].unbind(-1)
            rows = signed[sequence - tile.batch.start, :, :, self._place(row, tile)]
            best = rows.abs().argmax(-1) + tile.keys[0]
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
