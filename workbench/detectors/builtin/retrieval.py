"""Retrieval heads, teacher-forced: attention of the row that predicts an answer on the answer's source.

Reference:
    Wu et al. 2024, Retrieval Head Mechanistically Explains Long-Context Factuality. Here the probe
    knows the source, and the answer is forced, so that checkpoints that cannot answer yet have a score.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.detectors.registry import detector
from workbench.hooks import CellSum, PerSequence, Recording, Sequences

_MOST_NEEDLES = 16


@detector("retrieval", needs={"answer_mass"}, needs_answers=True)
def retrieval(recording: Recording) -> PerSequence:
    """Attention of the row that predicts an answer token on the cell that holds that token."""
    return recording["answer_mass"]


@detector("retrieval_top1", needs={"answer_top1"}, needs_answers=True)
def retrieval_top1(recording: Recording) -> PerSequence:
    """1 where that cell is the row's arg-max, else 0."""
    return recording["answer_top1"]


def needle_number(batch: Sequences) -> Int[Tensor, " n_cells"]:
    """The number of each target cell's answer in its sequence; an answer is a run of successive rows."""
    assert batch.targets is not None
    sequence, row, _ = batch.targets.unbind(-1)
    is_new_sequence = torch.ones_like(row, dtype=torch.bool)
    is_new_sequence[1:] = sequence.diff() != 0
    starts = is_new_sequence.clone()
    starts[1:] |= row.diff() > 1
    number = starts.cumsum(0)
    first = torch.where(is_new_sequence, number, 0).cummax(0).values
    return number - first


def cells_of_needle(batch: Sequences, *, number: int) -> Int[Tensor, "n_cells 3"]:
    """The target cells of the `number`-th answer of each sequence."""
    if batch.targets is None:
        return torch.zeros(0, 3, dtype=torch.long, device=batch.tokens.device)
    return batch.targets[needle_number(batch) == number]


_OF_NEEDLE = tuple(
    CellSum(f"answer_{number}_mass", partial(cells_of_needle, number=number)) for number in range(_MOST_NEEDLES)
)


@detector("retrieval_spread", needs=_OF_NEEDLE, needs_answers=True, direction="none", by_default=False)
def retrieval_spread(recording: Recording) -> PerSequence:
    """Standard deviation of `retrieval` over the first 16 answers of a sequence, of sequences with two or more."""
    total = torch.stack([recording[need.name].total for need in _OF_NEEDLE])
    rows = torch.stack([recording[need.name].rows for need in _OF_NEEDLE])
    is_there = rows > 0
    n = is_there.sum(0)
    mean = torch.where(is_there, total / rows, 0)
    squares = torch.where(is_there, mean - mean.sum(0) / n, 0).square().sum(0)
    counted = torch.where(n > 1, rows.sum(0), 0)
    return PerSequence(torch.where(n > 1, (squares / (n - 1)).sqrt() * counted, torch.nan), counted)
