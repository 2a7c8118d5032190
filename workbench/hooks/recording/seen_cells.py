"""Cells of the attention matrix that a head sees, under the layer's own mask and the interventions in force.

A mask is evaluated on the columns of the cells' keys alone, so that a list of T cells of one key costs O(T).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.hooks.interventions.windows import Interventions, masks_of_heads
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.kernels import TileMask
from workbench.kernels.masks import CausalMask

# Rows that a mask is evaluated for at a time: one of selected keys reads as many numbers for each as are selected.
_ROWS = 512
# From cells (sequence, row of the call, key), none in the future of its row, to whether each head sees them.
Sees = Callable[[Int[Tensor, "n_cells 3"]], Bool[Tensor, "n_cells n_heads"]]


def sees_of(call: AttentionCall, interventions: Interventions) -> Sees | None:
    """The cells that each query head of a softmax layer sees; a head with a linear form sees those of its mask.

    None: every head sees its whole past, as those of linear layers do.
    """
    masks = masks_of_heads(call, interventions)
    if all(_shows_all(mask) for _, mask in masks):
        return None

    def sees(cells: Int[Tensor, "n_cells 3"]) -> Bool[Tensor, "n_cells n_heads"]:
        visible = torch.ones(len(cells), call.q.shape[1], dtype=torch.bool, device=cells.device)
        for heads, mask in masks:
            visible[:, list(heads)] = rearrange(_visible(mask, cells), "n -> n 1")
        return visible

    return sees


def _shows_all(mask: TileMask) -> bool:
    return isinstance(mask, CausalMask) and mask.window is None and mask.valid is None


def _visible(mask: TileMask, cells: Int[Tensor, "n_cells 3"]) -> Bool[Tensor, " n_cells"]:
    visible = torch.ones(len(cells), dtype=torch.bool, device=cells.device)
    if _shows_all(mask):
        return visible
    for key in torch.unique(cells[:, 2]).tolist():
        at = (cells[:, 2] == key).nonzero()[:, 0]
        sequence, row = cells[at, 0], cells[at, 1]
        rows, of_row = torch.unique(row, return_inverse=True)
        batch = slice(int(sequence.min()), int(sequence.max()) + 1)
        column = torch.ones(batch.stop - batch.start, len(rows), dtype=torch.bool, device=cells.device)
        for start in range(0, len(rows), _ROWS):
            for _, hidden in mask.hidden(batch, rows[start : start + _ROWS], (key, key + 1)):
                column[:, start : start + _ROWS] &= ~hidden[..., 0]
        visible[at] = column[sequence - batch.start, of_row]
    return visible
