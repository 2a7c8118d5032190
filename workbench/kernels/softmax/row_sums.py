"""The sums over keys that each row's statistics follow from, stored tile by tile and finished once for the layer.

A dozen small operations on the rows of every tile would cost as much as a pass over the tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.masks import CausalMask
from workbench.kernels.softmax.softmax_tiles import Softmax, SoftmaxLayer, entropy_of_rows, log_denominator
from workbench.kernels.softmax.statistics_collector import Collector, TileReads
from workbench.kernels.softmax.statistics_request import Request
from workbench.kernels.softmax.tile_sums import Ladder, far_starts, first_keys, ladder_of, moment
from workbench.kernels.tiles import Cut, Tile


@dataclass(frozen=True, slots=True)
class RowRun:
    """The tiles of some sequences and rows, and what they share, whatever the layer.

    `ahead`: how far each row stands behind the first one. `far_from`, `first`: the columns that each sequence's far
    mass and windows begin with.
    """

    tiles: list[Tile]
    first_position: int
    ahead: Float[Tensor, " q"]
    far: Ladder | None
    windows: Ladder | None
    far_from: list[int]
    first: list[int]
    reads: TileReads


class _Layout(NamedTuple):
    """What the runs of a request depend on besides it; `valid` by identity, as all layers of a pass share it.

    `parts`: into how many runs of sequences, key/value heads and rows the layer is cut.
    """

    n_keys: int
    offset: int
    window: int | None
    valid: int
    shape: tuple[int, int, int]
    n_queries: int
    parts: tuple[int, int, int]


def runs_of_rows(
    layer: SoftmaxLayer, request: Request, rows: Int[Tensor, " q"], cut: Cut, collector: Collector
) -> Iterable[RowRun]:
    """The runs of a layer's rows; for a causal mask found once for all layers that the request goes to.

    Those of another mask are made one at a time: each may hold as many cells as its tile, which all together would be
    T × T.
    """
    mask = layer.mask
    if not isinstance(mask, CausalMask):
        return _runs_of_rows(layer, request, rows, cut, collector)
    parts = (len(cut.batches), len(cut.kv_heads), len(cut.spans))
    layout = _Layout(mask.n_keys, mask.offset, mask.window, id(mask.valid), layer.shape, layer.q.shape[2], parts)
    if layout not in request.runs:
        # The mask is there too, so that its `valid` lives and its identity is no other's.
        request.runs[layout] = (mask, list(_runs_of_rows(layer, request, rows, cut, collector)))
    return request.runs[layout][1]


def _runs_of_rows(
    layer: SoftmaxLayer, request: Request, rows: Int[Tensor, " q"], cut: Cut, collector: Collector
) -> Iterator[RowRun]:
    n_sequences, offset = len(layer.q), collector.offset
    far_from, firsts = far_starts(request, n_sequences), first_keys(request, n_sequences)
    for tiles in cut.tiles(rows, layer.mask):
        tile, batch, positions = tiles[0], tiles[0].batch, tiles[0].rows + offset
        yield RowRun(
            tiles,
            int(positions[0]),
            (positions - positions[0]).float(),
            None if request.far is None else ladder_of(tile, positions, [request.far.window]),
            ladder_of(tile, positions, request.windows) if request.windows else None,
            [tile.columns_before(start) for start in far_from[batch]],
            [tile.columns_before(first) for first in firsts[batch]],
            collector.reads_on(tile),
        )


class RowSums:
    """Sums over keys of one layer's rows."""

    def __init__(self, request: Request, shape: tuple[int, int, int], n_rows: int, device: torch.device):
        """`shape`: as of the layer."""

        def empty(is_requested: bool = True) -> Float[Tensor, "b kv g q"] | None:
            return torch.empty(*shape, n_rows, device=device) if is_requested else None

        self._top, self._seen, self._total = (torch.empty(*shape, n_rows, device=device) for _ in range(3))
        self._shifted, self._moment, self._far = (
            empty(request.entropy),
            empty(request.distance),
            empty(request.far is not None),
        )
        self._ahead = torch.zeros(n_rows, device=device)

    def add(self, run: RowRun, tile: Tile, softmax: Softmax) -> None:
        """Store the sums of a tile; overwrites the tile's shifted scores, if they are there."""
        at = (tile.batch, tile.kv_heads, slice(None), tile.span)
        weights = softmax.weights
        self._top[at], self._seen[at], self._total[at] = softmax.top, softmax.seen, softmax.total
        if self._shifted is not None:
            self._shifted[at] = softmax.weighted_shifts()
        if self._moment is not None:
            self._moment[at] = moment(weights, tile.keys_after(run.first_position))
            self._ahead[tile.span] = run.ahead
        if self._far is not None and run.far is not None:
            self._far[at] = run.far.mass(weights, run.far_from)

    def finish(self, layer: SoftmaxLayer, collector: Collector) -> None:
        """The statistics that follow from the sums, into the collector."""
        top, seen, total = self._top, self._seen, self._total
        sink = layer.sink_scores(slice(None))

        def by_head(x: Float[Tensor, "b kv g q"]) -> Float[Tensor, "b h q"]:
            return x.flatten(1, 2)

        collector.lse, collector.mass = by_head(log_denominator(top, total)), by_head(seen / total)
        if self._shifted is not None:
            collector.entropy = by_head(entropy_of_rows(self._shifted, top, total, sink))
        if self._moment is not None:
            collector.mean_distance = by_head((self._ahead * seen - self._moment) / total)
        if self._far is not None:
            collector.far_mass = by_head(self._far / total)
