"""Local heads: attention on any of the last 8 tokens, as the mean over their distances."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.detectors.registry import detector
from workbench.hooks import CellSum, PerSequence, Recording, Sequences

BAND = 8  # tokens


def band_cells(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """(i, i − d) for d = 1 … 8, of the rows that have all of them."""
    b, i = (batch.valid & (batch.positions() >= BAND)).nonzero(as_tuple=True)
    back = torch.arange(1, BAND + 1, device=i.device)
    return torch.stack(torch.broadcast_tensors(b[:, None], i[:, None], i[:, None] - back), -1).flatten(0, 1)


@detector("local_band", needs={CellSum("band_mass", band_cells)}, direction="low", by_default=False)
def local_band(recording: Recording) -> PerSequence:
    """Attention on each of the last 8 tokens on average, mean over d = 1 … 8 of A[i, i−d], rows i ≥ 8."""
    mass = recording["band_mass"]
    error = None if mass.row_error is None else mass.row_error / BAND
    return PerSequence(mass.total / BAND, mass.rows, error)
