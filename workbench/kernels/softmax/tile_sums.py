"""Row statistics that are sums over a tile of weights: distance, and the mass on keys far back.

Each costs one pass at the speed of memory. As more columns beside v they would cost more: a matrix product of 66
columns takes a fifth longer than one of 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.softmax.statistics_request import Request
from workbench.kernels.tiles import Tile


class Step(NamedTuple):
    """One window on a tile: columns before `whole` are far for every row, the next `edge` columns for some rows.

    The triangle's columns from `skipped` on mark these rows.
    """

    whole: int
    edge: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Ladder:
    """Which keys of a tile lie each window or more behind its rows; the same for all heads.

    `triangle`: 1 in row i's first (position i − first position) columns. Every window's ragged edge is a slice of it.
    """

    triangle: Float[Tensor, "q edge"]
    steps: list[Step]

    def masses(self, weights: Float[Tensor, "*b q k"], start: int = 0) -> list[Float[Tensor, "*b q"]]:
        """Unnormalised mass on the keys beyond each window; columns before `start` are left out."""
        masses: list[Tensor] = [weights[..., 0]] * len(self.steps)
        total, done = torch.zeros_like(weights[..., 0]), start
        for n in sorted(range(len(masses)), key=lambda n: self.steps[n].whole):
            whole, edge, skipped = self.steps[n]
            if whole > done:
                total = total + weights[..., done:whole].sum(-1)
                done = whole
            masses[n] = total
            late = max(0, start - whole)
            if edge > late:
                is_far = self.triangle[:, skipped + late : skipped + edge]
                masses[n] = total + (weights[..., whole + late : whole + edge] * is_far).sum(-1)
        return masses

    def mass(self, weights: Float[Tensor, "b kv g q k"], starts: Sequence[int]) -> Float[Tensor, "b kv g q"]:
        """The mass beyond a ladder of one window; each sequence leaves the columns before its `starts` out."""
        if len(set(starts)) == 1:
            return self.masses(weights, starts[0])[0]
        return torch.stack([self.masses(w, start)[0] for w, start in zip(weights, starts, strict=True)])


def ladder(positions: Int[Tensor, " q"], keys: tuple[int, int], windows: Sequence[int]) -> Ladder:
    """The ladder of a tile whose rows stand at ascending key positions."""
    first, last = int(positions[0]), int(positions[-1])
    steps: list[Step] = []
    for window in windows:
        begin, end = first - window + 1, last - window + 1
        lo, hi = min(max(begin, keys[0]), keys[1]), min(max(end, keys[0]), keys[1])
        steps.append(Step(lo - keys[0], hi - lo, lo - begin))
    if last - first == len(positions) - 1:
        return Ladder(_stairs(len(positions), positions.device), steps)
    return Ladder(_triangle(positions - first, last - first), steps)


def ladder_of(tile: Tile, positions: Int[Tensor, " q"], windows: Sequence[int]) -> Ladder:
    """As `ladder`, for the keys of a tile; where they are no run, every window has an edge of its own."""
    if tile.columns is None:
        return ladder(positions, tile.keys, windows)
    edges: list[Tensor] = []
    steps: list[Step] = []
    done = 0
    ends = positions[[0, -1]] + 1 - torch.tensor(windows, device=positions.device)[:, None]
    for window, (whole, stop) in zip(windows, torch.searchsorted(tile.columns, ends).tolist(), strict=True):
        edges.append(positions[:, None] - tile.columns[whole:stop] >= window)
        steps.append(Step(whole, stop - whole, done))
        done += stop - whole
    return Ladder(torch.cat(edges, -1).float(), steps)


@lru_cache(maxsize=8)
def _stairs(n: int, device: torch.device) -> Float[Tensor, "q edge"]:
    """The triangle of consecutive rows, which all tiles but the last of a layer share."""
    return _triangle(torch.arange(n, device=device), n - 1)


def _triangle(ahead: Int[Tensor, " q"], n_columns: int) -> Float[Tensor, "q edge"]:
    triangle = torch.empty(len(ahead), n_columns, device=ahead.device)
    return torch.lt(torch.arange(n_columns, device=ahead.device), ahead[:, None], out=triangle)


def beyond(
    windows: Ladder, weights: Float[Tensor, "b kv g q k"], starts: Sequence[int]
) -> Float[Tensor, "b kv g q n_windows"]:
    """Unnormalised mass beyond every window of a ladder; each sequence leaves the columns before its `starts` out."""
    if len(set(starts)) == 1:
        return torch.stack(windows.masses(weights, starts[0]), -1)
    rows = [torch.stack(windows.masses(w, start), -1) for w, start in zip(weights, starts, strict=True)]
    return torch.stack(rows)


def far_starts(request: Request, n_sequences: int) -> list[int]:
    """The first key of each sequence that counts as far."""
    sink = 0 if request.far is None else request.far.sink
    return [start + sink for start in first_keys(request, n_sequences)]


def first_keys(request: Request, n_sequences: int) -> list[int]:
    """The first valid key of each sequence."""
    return [0] * n_sequences if request.first is None else request.first.tolist()


def distance_sum(
    weights: Float[Tensor, "*b q k"], seen: Float[Tensor, "*b q"], positions: Int[Tensor, " q"], tile: Tile
) -> Float[Tensor, "*b q"]:
    """Σ_j w (i − j) in tokens, from the weights and their sums `seen`.

    Positions count from the first row, because float32 cancels at long range: i·Σw − Σw·j loses 1e-7·T tokens.
    """
    first = int(positions[0])
    ahead = (positions - first).to(seen.dtype)
    return ahead * seen - moment(weights, tile.keys_after(first))


def moment(weights: Float[Tensor, "*b q k"], relative: Float[Tensor, " k"]) -> Float[Tensor, "*b q"]:
    """Σ_j w (j − first) in tokens, from every key's j − first."""
    return torch.mv(weights.flatten(0, -2), relative).view(weights.shape[:-1])
