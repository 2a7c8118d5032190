"""Row statistics that are sums over a tile of weights: distance, and the mass on keys far back.

Each costs one pass at the speed of memory. As further columns beside v they would cost more: a matrix product of 66
columns takes a fifth longer than one of 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.kernels.statistics import Request


class Beyond(NamedTuple):
    """The keys of a tile that lie `window` tokens or more behind its rows.

    Columns before `whole` do so for every row; of the columns from there on, `cells` says for which.
    """

    whole: int
    cells: Bool[Tensor, "q edge"]


def beyond(positions: Int[Tensor, " q"], keys: tuple[int, int], window: int) -> Beyond:
    """Where the rows at some key positions, ascending, have their keys at distance >= `window`."""
    first, last = (min(max(int(p) - window + 1, keys[0]), keys[1]) for p in (positions[0], positions[-1]))
    edge = torch.arange(first, last, device=positions.device)
    return Beyond(first - keys[0], positions[:, None] - edge >= window)


def masses_beyond(
    weights: Float[Tensor, "*b q k"], far: Sequence[Beyond], start: int = 0
) -> list[Float[Tensor, "*b q"]]:
    """Unnormalised mass on the far keys, of each window; columns before `start` are left out."""
    masses: list[Tensor] = [weights[..., 0]] * len(far)
    total, done = torch.zeros_like(weights[..., 0]), start
    for n in sorted(range(len(far)), key=lambda n: far[n].whole):
        whole, cells = far[n]
        if whole > done:
            total = total + weights[..., done:whole].sum(-1)
            done = whole
        skipped = min(max(0, start - whole), cells.shape[-1])
        first, last = whole + skipped, whole + cells.shape[-1]
        masses[n] = total
        if last > first:
            masses[n] = total + (weights[..., first:last] * cells[:, skipped:]).sum(-1)
    return masses


def mass_beyond(weights: Float[Tensor, "b kv g q k"], far: Beyond, starts: Sequence[int]) -> Float[Tensor, "b kv g q"]:
    """Unnormalised mass on the far keys; each sequence leaves the columns before its `starts` out."""
    if len(set(starts)) == 1:
        return masses_beyond(weights, [far], starts[0])[0]
    return torch.stack([masses_beyond(w, [far], start)[0] for w, start in zip(weights, starts, strict=True)])


def far_starts(request: Request, n_sequences: int) -> list[int]:
    """The first key of each sequence that counts as far."""
    sink = 0 if request.far is None else request.far.sink
    return [sink] * n_sequences if request.first is None else (request.first + sink).tolist()


def distance_sum(
    weights: Float[Tensor, "*b q k"], seen: Float[Tensor, "*b q"], positions: Int[Tensor, " q"], keys: tuple[int, int]
) -> Float[Tensor, "*b q"]:
    """Σ_j w (i − j) in tokens, from the weights and their sums `seen`.

    Positions count from the first row, because float32 cancels at long range: i·Σw − Σw·j loses 1e-7·T tokens.
    """
    first = int(positions[0])
    relative = torch.arange(keys[0] - first, keys[1] - first, device=weights.device).to(weights.dtype)
    ahead = (positions - first).to(seen.dtype)
    return ahead * seen - torch.mv(weights.flatten(0, -2), relative).view(seen.shape)
