"""A selection of keys as kernels read it: the tiles of keys that each block of rows selects from, and bits of who does.

Keys that no row of a block selects are in none of its tiles, or are hidden by the bits. Bits take n_keys / (8 · block)
bytes per row, less than the selected keys' own indices where these are more than a 32nd of the keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from workbench.kernels.key_intervals import Intervals
from workbench.kernels.masks import SelectedMask, selected_tile

_WORD = 32
# Cells that are packed at a time, each an int32.
_CELLS = 1 << 24


@dataclass(frozen=True, slots=True)
class TileList:
    """Tiles of keys by number, for each block of rows the first `n_tiles` of `tiles`, ascending; the rest is arbitrary.

    `words`: for each row 32 blocks of keys to a word, the first in the lowest bit, 1 where it is selected.
    """

    tiles: Int[Tensor, "b row_blocks key_tiles"]
    n_tiles: Int[Tensor, "b row_blocks"]
    words: Int[Tensor, "b q words"]


def tile_list(mask: SelectedMask, seen: Intervals, n_keys: int, *, rows: int, columns: int) -> TileList:
    """The tiles of `columns` keys that blocks of `rows` rows select from; `seen` is the mask that `mask` selects of."""
    n_sequences, n_queries, _ = mask.selected.shape
    n_row_blocks, n_tiles = -(-n_queries // rows), -(-n_keys // columns)
    n_blocks = -(-n_tiles * columns // mask.block)
    device = mask.selected.device
    words = torch.empty(n_sequences, n_queries, -(-n_blocks // _WORD), dtype=torch.int32, device=device)
    is_read = torch.empty(n_sequences, n_row_blocks, n_tiles, dtype=torch.bool, device=device)
    step = max(1, _CELLS // (n_sequences * rows * n_blocks))
    for first in range(0, n_row_blocks, step):
        here = slice(first * rows, (first + step) * rows)
        chosen = selected_tile(mask.selected[:, here], (0, n_blocks))
        words[:, here] = _packed(chosen)
        by_rows = pad(chosen, (0, 0, 0, -chosen.shape[1] % rows)).unflatten(1, (-1, rows)).any(2)
        is_read[:, first : first + step] = _tiles_of(by_rows, mask.block, columns)[..., :n_tiles]
    is_read &= _reached(seen, n_tiles, rows, columns)
    order = is_read.int().argsort(dim=-1, descending=True, stable=True)
    return TileList(order.int(), is_read.sum(-1, dtype=torch.int32), words)


def _packed(chosen: Bool[Tensor, "b q n"]) -> Int[Tensor, "b q words"]:
    # 1 << 31 is the lowest int32; sums of distinct bits are exact.
    bits = torch.ones(_WORD, dtype=torch.int32, device=chosen.device) << torch.arange(
        _WORD, dtype=torch.int32, device=chosen.device
    )
    cells = pad(chosen, (0, -chosen.shape[-1] % _WORD)).unflatten(-1, (-1, _WORD))
    return (cells * bits).sum(-1, dtype=torch.int32)


def _tiles_of(chosen: Bool[Tensor, "b n blocks"], block: int, columns: int) -> Bool[Tensor, "b n tiles"]:
    """The tiles of keys that lie in any of these blocks of keys."""
    keys = chosen.repeat_interleave(block, -1)
    return pad(keys, (0, -keys.shape[-1] % columns)).unflatten(-1, (-1, columns)).any(-1)


def _reached(seen: Intervals, n_tiles: int, rows: int, columns: int) -> Bool[Tensor, "b row_blocks tiles"]:
    """The tiles that hold a key between the first and the last one that any row of a block sees."""
    lacking = -seen.low.shape[-1] % rows
    low = pad(seen.low, (0, lacking), value=torch.iinfo(torch.int32).max).unflatten(-1, (-1, rows)).amin(-1)
    high = pad(seen.high, (0, lacking)).unflatten(-1, (-1, rows)).amax(-1)
    first = torch.arange(n_tiles, device=seen.low.device) * columns
    return (first < high[..., None]) & (first + columns > low[..., None])
