"""Where a head writes from, not where it looks: scores of cells weighted by the norm of what each key adds.

The weight of a cell is A[i, j] ‖W_O (g_i ⊙ v_j)‖ over its sum over the row, g the gate of the attention's output where
the model has one. A row that adds nothing counts as 0. A gate that is the same for a whole head cancels in a row,
unless it is shut.

Reference:
    Kobayashi et al. 2020, Attention is Not Only a Weight (arXiv 2004.10102), eq. 5.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording, RowReading, Sequences
from workbench.hooks.recording.cells import (
    CellRule,
    answer_token,
    counted_cells,
    duplicate_token,
    induction,
    previous_token,
    rows_of,
    sink_token,
    within_documents,
)


class _Cells:
    """The cells of a rule and their rows; those of the batch that came last are remembered."""

    def __init__(self, rule: CellRule):
        self._rule = rule
        self._last: tuple[Sequences, Tensor] | None = None

    def of(self, batch: Sequences) -> Int[Tensor, "n_cells 3"]:
        last = self._last
        if last is None or last[0] is not batch:
            cells = counted_cells(self._rule(batch), batch.tokens, source="a contribution's rule")
            last = self._last = (batch, within_documents(cells, batch))
        return last[1]

    def rows(self, batch: Sequences) -> Int[Tensor, "n_rows 2"]:
        return rows_of(self.of(batch))

    def read(self, share: Float[Tensor, "r keys"], rows: Int[Tensor, "r 2"], batch: Sequences) -> Float[Tensor, " 1"]:
        """The sum of the shares on the cells of these rows, which are of one sequence, in order."""
        cells = self.of(batch)
        inside = cells[(cells[:, 0] == rows[0, 0]) & torch.isin(cells[:, 1], rows[:, 1])]
        at, key = torch.searchsorted(rows[:, 1].contiguous(), inside[:, 1].contiguous()), inside[:, 2]
        is_seen = key < share.shape[1]
        return share[at[is_seen], key[is_seen]].sum().reshape(1)


def _need(stripe: str, rule: CellRule) -> RowReading:
    cells = _Cells(rule)
    return RowReading(f"contribution_{stripe}", cells.rows, cells.read, of="contribution")


def _sums(recording: Recording, stripe: str) -> PerSequence:
    reading = recording.readings[f"contribution_{stripe}"]
    if reading.values.shape[-1] == 0:
        return PerSequence(torch.full(reading.rows.shape, torch.nan), reading.rows)
    return PerSequence(reading.values[..., 0], reading.rows)


@detector(
    "contribution_retrieval",
    needs={_need("retrieval", answer_token)},
    direction="high",
    units="share",
    needs_answers=True,
    by_default=False,
)
def contribution_retrieval(recording: Recording) -> PerSequence:
    """Share of what a row's keys add through W_O, in norm, that comes from the cell that holds the answer token."""
    return _sums(recording, "retrieval")


@detector(
    "contribution_induction",
    needs={_need("induction", induction)},
    direction="high",
    units="share",
    by_default=False,
)
def contribution_induction(recording: Recording) -> PerSequence:
    """Share of what a row's keys add through W_O, in norm, that comes from tokens after its earlier occurrences."""
    return _sums(recording, "induction")


@detector(
    "contribution_duplicate_token",
    needs={_need("duplicate_token", duplicate_token)},
    direction="high",
    units="share",
    by_default=False,
)
def contribution_duplicate_token(recording: Recording) -> PerSequence:
    """Share of what a row's keys add through W_O, in norm, that comes from earlier occurrences of the same token."""
    return _sums(recording, "duplicate_token")


@detector(
    "contribution_previous_token",
    needs={_need("previous_token", previous_token)},
    direction="low",
    units="share",
    by_default=False,
)
def contribution_previous_token(recording: Recording) -> PerSequence:
    """Share of what a row's keys add through W_O, in norm, that comes from the token before."""
    return _sums(recording, "previous_token")


@detector(
    "contribution_sink",
    needs={_need("sink", sink_token)},
    direction="none",
    units="share",
    by_default=False,
)
def contribution_sink(recording: Recording) -> PerSequence:
    """Share of what a row's keys add through W_O, in norm, that comes from the first token."""
    return _sums(recording, "sink")
