"""The launch shape of each kernel: a static table by architecture, head width, element type and statistics.

The combinations in `ARCHITECTURES`, `NARROWEST` and `WIDEST` pass the gate of `aot`: at most one register spilled in a
loop, pipelined loads, and tensor cores. Other heads, and other GPUs with room for the tiles, run too where Triton is
requested by name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """Rows and columns of a tile, warps per program, depth of the load pipeline."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int | bool]:
        """Launch options; fusion into multiply-adds is explicit, because its default changes between releases."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


_NARROW = (torch.bfloat16, torch.float16)
_UP_TO_256 = {**dict.fromkeys(_NARROW, 256), torch.float32: 128}
_UP_TO_128 = dict.fromkeys((*_NARROW, torch.float32), 128)
# Compute capabilities whose compiled kernels pass the gate, and the narrowest heads, in channels, that it compiles.
ARCHITECTURES = (80, 90, 100)
NARROWEST = 32
# The widest heads, in channels, whose compiled kernels pass the gate of `aot`, by operation and element type.
WIDEST: dict[str, dict[torch.dtype, int]] = {
    "attention_profile": _UP_TO_256,
    "attention_column_sums": _UP_TO_256,
    "linear_attention": _UP_TO_256,
    "linear_attention_step": _UP_TO_256,
    "gated_delta_rule": _UP_TO_128,
}

# Off the GPU kernels are interpreted: tiles so small that short inputs still cross their edges.
_INTERPRETED = Launch(32, 32, 4, 2)


def attention_config(arch: int, d: int, dtype: torch.dtype, *, n_statistics: int = 0) -> Launch:
    """Tile of the statistics kernel: `rows` queries against `columns` keys at a time."""
    if arch == 0:
        return _INTERPRETED
    if dtype == torch.float32:
        # Four warps spill up to 220 registers per tile; tiles of 32 keys up to 90 for 128 channels.
        return Launch(64, 32, 8, 2) if d <= 64 else Launch(32, 16, 8, 2)
    if d > 128:
        return Launch(64 if arch >= 90 else 32, 32, 8, 2)
    if arch < 90:  # four warps spill four registers per tile for heads of 80 channels with three statistics
        is_loaded = n_statistics > (2 if d > 64 else 3)
        return Launch(64, 32, 8 if is_loaded else 4, 3)
    if arch >= 100 and n_statistics > 4 and 64 < d < 128:  # the masks of padded channels take registers, too
        return Launch(64, 32, 8, 2)
    is_narrow = arch >= 100 and n_statistics > (3 if d <= 64 else 2)
    return Launch(128, 32 if is_narrow else 64, 8, 2 if is_narrow and n_statistics > 4 else 3)


def edge_config(arch: int, d: int, dtype: torch.dtype, *, n_statistics: int = 1) -> Launch:
    """Tile of the kernel that finishes the windows' edges: that of the kernel which counted all before them."""
    tile = attention_config(arch, d, dtype, n_statistics=n_statistics)
    return attention_config(arch, d, dtype, n_statistics=1)._replace(rows=tile.rows, columns=tile.columns)


def column_config(arch: int, d: int, dtype: torch.dtype) -> Launch:
    """Tile of the column-sum kernel: `rows` keys against `columns` queries at a time."""
    if arch == 0:
        return _INTERPRETED
    if dtype == torch.float32:
        return Launch(32, 32, 8, 2)
    if d > 128:
        return Launch(64, 32, 4, 2)
    return Launch(128, 64, 8, 3)


def linear_config(arch: int, d: int, dtype: torch.dtype, *, is_wide: bool = False) -> Launch:
    """Chunk of the linear kernels: `rows` tokens, and `columns` value channels per program."""
    if arch == 0:
        return Launch(32, 32, 4, 2)
    if dtype == torch.float32:  # each thread holds whole rows of both factors: chunks of 32 spill 1,800 registers
        return Launch(32, 32, 8, 2) if d <= 64 else Launch(16, 16, 8, 2)
    if d > 128 and (arch < 90 or is_wide):
        return Launch(32, 32, 8, 2)
    if is_wide and arch == 90 and d > 64:  # chunks of 64 spill up to ten registers in the loop
        return Launch(32, 64, 8, 2)
    return Launch(64, 64, 8, 2)


def step_config(arch: int) -> Launch:
    """Block of the recurrent step: all key channels against `columns` value channels."""
    return Launch(1, 32 if arch == 0 else 16, 4, 1)


def delta_config(arch: int, d: int, dtype: torch.dtype) -> Launch:
    """Chunk of the delta rule: `rows` tokens, and `columns` value channels per program."""
    if arch == 0:
        return Launch(32, 32, 4, 2)
    if dtype == torch.float32:  # a second stage spills up to 500 registers
        return Launch(32 if d <= 64 else 16, 16, 8, 1)
    return Launch(64, min(32, max(16, d)), 8, 2)  # 64 channels spill up to 5 registers in the loop
