"""Attention sinks: attention on the first token or tokens, and on a learned sink logit.

Reference:
    Gu et al. 2024, When Attention Sink Emerges in Language Models: α_k, and the share of samples where it exceeds ε.
    Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks: the first 4 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.detectors.registry import detector
from workbench.heads import WorkbenchError
from workbench.hooks import CellSum, PerSequence, Recording, Sequences

EPSILON = 0.3  # of Gu et al.
FIRST = 4  # tokens, of StreamingLLM


@detector("sink", needs={"sink_mass"}, version=2, direction="none")
def sink(recording: Recording) -> PerSequence:
    """Attention on the first token, mean of A[i, 0] over the rows that see it."""
    return recording["sink_mass"]


@detector("learned_sink", needs={"learned_sink_mass"}, direction="none")
def learned_sink(recording: Recording) -> PerSequence:
    """Share of the softmax that the learned sink logit takes, sigmoid(s − lse); no row in layers without one."""
    return recording["learned_sink_mass"]


@detector("sink_total", needs={"sink_mass", "learned_sink_mass_seeing_first"}, version=2, direction="none")
def sink_total(recording: Recording) -> PerSequence:
    """Attention on the first token and a learned sink's share together, over the rows that see the first token."""
    first, learned = recording["sink_mass"], recording["learned_sink_mass_seeing_first"]
    error = first.row_error
    if error is not None and learned.row_error is not None:
        error = error + learned.row_error.nan_to_num()  # both are of the same rows: at worst their errors are equal
    return PerSequence(first.total + learned.total.nan_to_num(), first.rows, error)


def first_cells(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """(i, j) for the first four tokens j ≤ i of each document."""
    b, i = batch.valid.nonzero(as_tuple=True)
    j = batch.first[b, i][:, None] + torch.arange(FIRST, device=i.device)
    cells = torch.stack(torch.broadcast_tensors(b[:, None], i[:, None], j), -1).flatten(0, 1)
    return cells[cells[:, 2] <= cells[:, 1]]


@detector("sink_streaming", needs={CellSum("first_mass", first_cells, seen_only=True)}, version=2, direction="none")
def sink_streaming(recording: Recording) -> PerSequence:
    """Attention on the first 4 tokens, Σ_{j < 4} A[i, j], over the rows that see one of them."""
    return recording["first_mass"]


def column_cells(batch: Sequences, *, k: int) -> Int[Tensor, "n_cells 3"]:
    """(i, k) for every row i ≥ k of each document."""
    b, i = (batch.valid & (batch.positions() >= k)).nonzero(as_tuple=True)
    return torch.stack([b, i, batch.first[b, i] + k], -1)


def gu_sink(name: str, *, k: int = 0, epsilon: float | int = EPSILON) -> Callable[[Recording], PerSequence]:
    """Register the metric of Gu et al. under `name`, for the token at position `k` and the threshold `epsilon`.

    The score of a sequence is 1 if α_k, the attention on that token averaged over the rows that see it, exceeds
    `epsilon`; sequences of k tokens or fewer have no row.

    Raises:
        WorkbenchError: if k < 0, epsilon is outside 0 … 1, or another function holds the name.
    """
    if k < 0 or not 0 <= epsilon <= 1:
        raise WorkbenchError(f"k is {k} and epsilon {epsilon}; expected a position and a share of attention")
    need = "sink_mass" if k == 0 else CellSum(f"column_{k}_mass", partial(column_cells, k=k), seen_only=True)

    def is_sink(recording: Recording) -> PerSequence:
        alpha = recording["sink_mass" if k == 0 else f"column_{k}_mass"]
        exceeds = (alpha.total > epsilon * alpha.rows).to(alpha.total.dtype)
        return PerSequence(torch.where(alpha.rows > 0, exceeds * alpha.rows, torch.nan), alpha.rows)

    is_sink.__doc__ = (
        f"1 where attention on token {k}, averaged over the rows that see it, exceeds {epsilon:g}, else 0."
    )
    is_sink.__qualname__ = f"gu_sink({name!r}, k={k}, epsilon={epsilon})"
    return detector(name, needs={need}, version=2, direction="none", units="share of samples")(is_sink)


sink_gu = gu_sink("sink_gu")
