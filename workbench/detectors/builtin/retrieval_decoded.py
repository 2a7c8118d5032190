"""Retrieval heads as their authors score them (Wu et al., HeadKV): on the model's own decoded replies.

Only models that can answer have these scores, and every token counts that the model reads off the needle, in any
order. `retrieval` and `retrieval_top1` force the answer, so that every checkpoint has a score. The scores here run only
where they are named.

Reference:
    Wu et al. 2024, Retrieval Head Mechanistically Explains Long-Context Factuality. A token that occurs twice in
    the reply counts twice, so that a score can exceed 1.
    Fu et al. 2024, HeadKV. Its files hold ten times this number.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.detectors.decoded_probes import Decoding
from workbench.detectors.registry import detector
from workbench.hooks import CellSum, PerSequence, Recording, RowReading, Sequences


def needle_cells(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """(row, every key of its needle) for each answer row."""
    if batch.answers is None or batch.needles is None:
        return torch.zeros(0, 3, dtype=torch.long, device=batch.tokens.device)
    start, stop = batch.needles.unbind(-1)
    n = stop - start
    rows = batch.answers.repeat_interleave(n, dim=0)
    offset = torch.arange(len(rows), device=rows.device) - (n.cumsum(0) - n).repeat_interleave(n)
    return torch.cat([rows, (start.repeat_interleave(n) + offset)[:, None]], 1)


NEEDLE = CellSum("answer_needle_mass", needle_cells)


def _wu(recording: Recording) -> PerSequence:
    needle = recording[NEEDLE.name]
    length = recording.cells[NEEDLE.name][:, None, None] / needle.rows.clamp(min=1)
    hits = recording["answer_top1"].total
    return PerSequence(torch.where(needle.rows > 0, hits / length * needle.rows, torch.nan), needle.rows)


@detector("retrieval_wu", needs={"answer_top1", NEEDLE}, decoding=Decoding("recall", "overlap"))
def retrieval_wu(recording: Recording) -> PerSequence:
    """Copied tokens per needle token: decode steps whose arg-max key is in the needle and holds the decoded token."""
    return _wu(recording)


@detector("retrieval_wu_offsets", needs={"answer_top1", NEEDLE}, decoding=Decoding("recall", "offsets"))
def retrieval_wu_offsets(recording: Recording) -> PerSequence:
    """`retrieval_wu` with the probe's own needle, not the first window whose tokens overlap with it."""
    return _wu(recording)


def answer_rows(batch: Sequences) -> Int[Tensor, "n_rows 2"]:
    """The rows that predict a decoded token, of sequences with known needles."""
    if batch.answers is None or batch.needles is None:
        return torch.zeros(0, 2, dtype=torch.long, device=batch.tokens.device)
    return batch.answers


def most_attended_in_needle(
    pattern: Float[Tensor, "r keys"], rows: Int[Tensor, "r 2"], batch: Sequences
) -> Float[Tensor, " 1"]:
    """Attention on needle keys among the |needle| most attended, summed over the first |needle| rows, / |needle|²."""
    assert batch.answers is not None
    assert batch.needles is not None
    of_sequence = batch.answers[:, 0] == rows[0, 0]
    start, stop = batch.needles[of_sequence][0].tolist()
    is_early = rows[:, 1] < int(batch.answers[of_sequence][0, 1]) + stop - start
    mass, key = pattern[is_early].abs().topk(stop - start, dim=-1)
    in_needle = (key >= start) & (key < stop)
    return (mass * in_needle).sum().reshape(1) / (stop - start) ** 2


@detector(
    "retrieval_headkv",
    needs={RowReading("headkv", answer_rows, most_attended_in_needle)},
    decoding=Decoding("f1", "offsets"),
)
def retrieval_headkv(recording: Recording) -> PerSequence:
    """Attention on needle keys among a row's |needle| most attended, per needle token, over |needle| decode steps."""
    reading = recording.readings["headkv"]
    if reading.values.shape[-1] == 0:
        return PerSequence(torch.full(reading.rows.shape, torch.nan), reading.rows)
    return PerSequence(reading.values[..., 0] * reading.rows, reading.rows)
