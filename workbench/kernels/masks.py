"""Masks that are evaluated block by block, so that no T × T mask is ever built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

# Columns that a selection hides at a time: whoever applies them converts the cells to other types.
_RUN = 4096
# The largest share of a run's blocks that is worth to be read alone: copying their keys and values costs as much as an
# eighth of the products with them.
_WORTH = 0.875


class Hidden(NamedTuple):
    """A run of key columns starting at `first` in which some cells are hidden; `cells` is True where hidden."""

    first: int
    cells: Bool[Tensor, "#b q k"]


class SeenKeys(NamedTuple):
    """The keys of a tile: those that any of its rows may see, or more.

    `keys`: the run that they lie in. `columns`: the keys themselves, ascending; None: every key of the run. `hidden`:
    runs of columns with hidden cells, `first` being a column.
    """

    keys: tuple[int, int]
    columns: Int[Tensor, " k"] | None
    hidden: list[Hidden]


@runtime_checkable
class TileMask(Protocol):
    """A mask as kernels use it. Rows are query indices, sorted ascending; key indices count from 0."""

    def key_range(self, rows: Int[Tensor, " q"]) -> tuple[int, int]:
        """Smallest and one past the largest key that any of these rows may see."""
        ...

    def hidden(self, batch: slice, rows: Int[Tensor, " q"], keys: tuple[int, int]) -> list[Hidden]:
        """Runs of columns of `keys` with hidden cells; they may overlap, and outside of them nothing is hidden."""
        ...


@dataclass(frozen=True, slots=True)
class CausalMask:
    """Causal attention over `n_keys` keys, optionally within the last `window` of them (own position included).

    Query row r stands at key position r + `offset` (a prefix of `offset` keys comes before the first query).
    `valid` is False on padding keys.
    """

    n_keys: int
    offset: int = 0
    window: int | None = None
    valid: Bool[Tensor, "b k"] | None = None

    def key_range(self, rows: Int[Tensor, " q"]) -> tuple[int, int]:
        first, last = int(rows[0]) + self.offset, int(rows[-1]) + self.offset
        lo = 0 if self.window is None else max(0, first - self.window + 1)
        return lo, min(self.n_keys, last + 1)

    def hidden(self, batch: slice, rows: Int[Tensor, " q"], keys: tuple[int, int]) -> list[Hidden]:
        position = rows + self.offset
        runs: list[Hidden] = []
        future = max(keys[0], int(position[0]) + 1)
        if future < keys[1]:
            k = torch.arange(future, keys[1], device=rows.device)
            runs.append(Hidden(future, (k > position[:, None])[None]))
        if self.window is not None and (past := min(keys[1], int(position[-1]) - self.window + 1)) > keys[0]:
            k = torch.arange(keys[0], past, device=rows.device)
            runs.append(Hidden(keys[0], (position[:, None] - k >= self.window)[None]))
        if self.valid is not None:
            runs += hidden_runs(~self.valid[batch, None, keys[0] : keys[1]], keys[0])
        return runs


@dataclass(frozen=True, slots=True)
class SelectedMask:
    """A mask of which each row sees only the keys that were selected for it.

    `selected`: the indices of runs of `block` keys, in any order; those of keys that `base` hides, and those that are
    no key, select nothing.
    """

    base: TileMask
    selected: Int[Tensor, "b q n"]
    block: int = 1

    def key_range(self, rows: Int[Tensor, " q"]) -> tuple[int, int]:
        return self.base.key_range(rows)

    def hidden(self, batch: slice, rows: Int[Tensor, " q"], keys: tuple[int, int]) -> list[Hidden]:
        runs = self.base.hidden(batch, rows, keys)
        if keys[1] > keys[0]:
            cells = ~selected_tile(self.selected[batch, rows], keys, block=self.block)
            runs += _split(cells, keys[0])
        return runs

    def seen_keys(self, batch: slice, rows: Int[Tensor, " q"]) -> SeenKeys:
        """The keys in the blocks that any of these rows selects, without those between them where they are many."""
        keys = self.base.key_range(rows)
        first, n_blocks = keys[0] // self.block, -(-keys[1] // self.block) - keys[0] // self.block
        chosen = _places(self.selected[batch, rows], first, n_blocks)
        is_chosen = torch.zeros(n_blocks + 1, dtype=torch.bool, device=rows.device)
        blocks = is_chosen.index_fill_(0, chosen.flatten(), True)[:n_blocks].nonzero()[:, 0]
        if not 0 < len(blocks) <= _WORTH * n_blocks:
            return _whole_run(keys, self.hidden(batch, rows, keys))
        n_chosen = len(blocks)
        place = torch.full((n_blocks + 1,), n_chosen, device=rows.device)  # of each block among the chosen ones
        place[blocks] = torch.arange(n_chosen, device=rows.device)
        cells = _marked(place[chosen], n_chosen)
        columns = (blocks + first).repeat_interleave(self.block)
        if self.block > 1:
            columns = columns * self.block + torch.arange(self.block, device=rows.device).repeat(n_chosen)
            columns = columns[(columns >= keys[0]) & (columns < keys[1])]
            cells = cells[..., place[columns // self.block - first]]
        hidden = _on_columns(self.base.hidden(batch, rows, keys), columns)
        return SeenKeys(keys, columns, hidden + _split(~cells, 0))


def selected_tile(selected: Int[Tensor, "b q n"], keys: tuple[int, int], *, block: int = 1) -> Bool[Tensor, "b q k"]:
    """Which keys of a run are in one of the selected blocks of each row."""
    first, last = keys[0] // block, -(-keys[1] // block)
    tile = _marked(_places(selected, first, last - first), last - first)
    if block == 1:
        return tile
    start = keys[0] - first * block
    return tile.repeat_interleave(block, -1)[..., start : start + keys[1] - keys[0]]


def seen_keys(mask: TileMask, batch: slice, rows: Int[Tensor, " q"]) -> SeenKeys:
    """The keys of a tile, without those that a selection leaves out for all of its rows where they are many."""
    if isinstance(mask, SelectedMask):
        return mask.seen_keys(batch, rows)
    keys = mask.key_range(rows)
    return _whole_run(keys, mask.hidden(batch, rows, keys))


def run_of_keys(mask: TileMask, batch: slice, rows: Int[Tensor, " q"]) -> SeenKeys:
    """The whole run of keys of a tile, whatever is selected."""
    keys = mask.key_range(rows)
    return _whole_run(keys, mask.hidden(batch, rows, keys))


def _whole_run(keys: tuple[int, int], hidden: list[Hidden]) -> SeenKeys:
    return SeenKeys(keys, None, [Hidden(first - keys[0], cells) for first, cells in hidden])


def _places(selected: Int[Tensor, "b q n"], first: int, n_blocks: int) -> Int[Tensor, "b q n"]:
    """The numbers of blocks in a run of them that begins with block `first`; `n_blocks` for those outside."""
    place = selected - first
    return place.masked_fill_((place < 0) | (place >= n_blocks), n_blocks).long()


def _marked(places: Int[Tensor, "b q n"], n_blocks: int) -> Bool[Tensor, "b q n_blocks"]:
    """True at these places; there is one more, for what lies outside."""
    tile = torch.zeros(*places.shape[:2], n_blocks + 1, dtype=torch.bool, device=places.device)
    return tile.scatter_(-1, places, True)[..., :n_blocks]


def _split(cells: Bool[Tensor, "b q k"], first: int) -> list[Hidden]:
    return [Hidden(first + i * _RUN, run) for i, run in enumerate(cells.split(_RUN, -1))]


def _on_columns(hidden: list[Hidden], columns: Int[Tensor, " k"]) -> list[Hidden]:
    """Hidden cells of a run of keys as those of some of its keys."""
    runs: list[Hidden] = []
    for first, cells in hidden:
        ends = torch.tensor([first, first + cells.shape[-1]], device=columns.device)
        start, stop = torch.searchsorted(columns, ends).tolist()
        if start < stop:
            runs.append(Hidden(start, cells[..., columns[start:stop] - first]))
    return runs


def hidden_runs(hidden: Bool[Tensor, "#b q k"], first_key: int) -> list[Hidden]:
    """Cut a tile into its runs of columns that hide anything: usually one triangle at each edge of the band."""
    touched = hidden.flatten(0, 1).any(0).nonzero().flatten()
    if touched.numel() == 0:
        return []
    breaks = (touched.diff() > 1).nonzero().flatten() + 1
    return [
        Hidden(first_key + int(run[0]), hidden[..., int(run[0]) : int(run[-1]) + 1].clone())
        for run in touched.tensor_split(breaks.cpu())
    ]


def visible_tile(mask: TileMask, batch: slice, rows: Int[Tensor, " q"], n_keys: int) -> Bool[Tensor, "b q k"]:
    """The mask of some rows as one dense tile over all keys, for references and crops only."""
    n_sequences = batch.stop - batch.start
    visible = torch.zeros(n_sequences, len(rows), n_keys, dtype=torch.bool, device=rows.device)
    lo, hi = mask.key_range(rows)
    visible[..., lo:hi] = True
    for first, cells in mask.hidden(batch, rows, (lo, hi)):
        visible[..., first : first + cells.shape[-1]] &= ~cells
    return visible


def visible_run(mask: TileMask, batch: slice, rows: Int[Tensor, " q"], keys: tuple[int, int]) -> Bool[Tensor, "b q k"]:
    """The mask of some rows on a run of keys as one dense tile."""
    visible = torch.ones(batch.stop - batch.start, len(rows), keys[1] - keys[0], dtype=torch.bool, device=rows.device)
    for first, cells in mask.hidden(batch, rows, keys) if keys[1] > keys[0] else ():
        visible[..., first - keys[0] : first - keys[0] + cells.shape[-1]] &= ~cells
    return visible


def per_head(cells: Shaped[Tensor, "#b q k"]) -> Shaped[Tensor, "#b 1 1 q k"]:
    """Add the axes of key/value head and group, for masking a tile of scores."""
    return cells[:, None, None]
