"""What a patch changes in a probe's answers: losses, right ones, logit differences, with intervals over sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.hooks.model import HookedModel
from workbench.hooks.recording.answer_losses import losses_of
from workbench.hooks.recording.cells import Sequences
from workbench.hooks.recording.forward_pass import logits_of

# As those of scores.
_RESAMPLES, _MIN_SEQUENCES = 1000, 5


@dataclass(frozen=True, slots=True)
class ScoredAnswers:
    """Of each answer: its loss, whether it is right, and its logit less its foil's, NaN without one."""

    nats: Float[Tensor, " n_rows"]
    is_right: Float[Tensor, " n_rows"]
    difference: Float[Tensor, " n_rows"]


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """The number of answers, and of those with a foil, of each sequence of a batch."""

    answers: Int[np.ndarray, " b"]
    foils: Int[np.ndarray, " b"]

    @classmethod
    def of(cls, batch: Sequences, foils: Int[Tensor, " n_rows"]) -> AnswerCounts:
        assert batch.answers is not None
        sequence, n = batch.answers[:, 0].cpu(), len(batch.tokens)
        n_answers, n_foils = (torch.bincount(which, minlength=n) for which in (sequence, sequence[(foils >= 0).cpu()]))
        return cls(n_answers.numpy(), n_foils.numpy())


@dataclass(frozen=True, slots=True)
class AnswerSums:
    """The sum of a change over the answers of each sequence, and how many they are."""

    total: Float[np.ndarray, " n_seq"]
    count: Int[np.ndarray, " n_seq"]

    @classmethod
    def of(cls, change: Float[Tensor, " n_rows"], sequence: Int[np.ndarray, " n_rows"]) -> AnswerSums:
        """Of the answers whose change is known."""
        values = change.double().cpu().numpy()
        is_known = ~np.isnan(values)
        n = int(sequence.max()) + 1
        weights = np.where(is_known, values, 0)
        return cls(np.bincount(sequence, weights, n), np.bincount(sequence[is_known], minlength=n))

    def mean(self) -> float:
        return float(self.total.sum() / self.count.sum()) if self.count.sum() else math.nan

    def interval(self) -> tuple[float, float]:
        """The 95 % percentile interval of the mean over answers, sequences drawn anew."""
        total, count = self.total[self.count > 0], self.count[self.count > 0]
        if (n := len(count)) < _MIN_SEQUENCES:
            return math.nan, math.nan
        draws = np.random.default_rng([0, n]).integers(n, size=(_RESAMPLES, n))
        low, high = np.percentile(total[draws].sum(1) / count[draws].sum(1), (2.5, 97.5))
        return float(low), float(high)


def scored_answers(m: HookedModel, batch: Sequences, foils: Int[Tensor, " n_rows"]) -> ScoredAnswers:
    """The answers under the interventions in force."""
    assert batch.answers is not None
    sequence, row = batch.answers.unbind(-1)
    rows = torch.unique(row)
    column = torch.searchsorted(rows, row.contiguous())
    answer = batch.tokens[sequence, row + 1]
    nats, is_right = torch.empty(len(row)), torch.empty(len(row))
    with torch.no_grad(), m.in_force():
        logits = logits_of(m.model, batch, rows, announce=lambda _: None)
    difference = (logits[sequence, column, answer] - logits[sequence, column, foils.clamp_min(0)]).float()
    for b in range(len(batch.tokens)):
        is_here = sequence == b
        of_sequence = losses_of(logits[b], column[is_here], answer[is_here])
        nats[is_here.cpu()], is_right[is_here.cpu()] = (x.float().cpu() for x in of_sequence)
    return ScoredAnswers(nats, is_right, torch.where(foils >= 0, difference, math.nan).cpu())


def foils_of(batch: Sequences, source: Sequences) -> Int[Tensor, " n_rows"]:
    """Of each answer the token that the source has in its place, where that is another; −1 for none.

    Its place is where the answer can be looked up, the first if there are several, else where it stands itself.
    """
    assert batch.answers is not None
    sequence, row = batch.answers.unbind(-1)
    n_tokens, width = source.tokens.shape[1], batch.tokens.shape[1]
    if n_tokens < width or len(source.tokens) not in (1, len(batch.tokens)):
        return torch.full_like(row, -1)  # the patch itself is refused, with both shapes
    place = row + 1
    if batch.targets is not None and len(batch.targets):
        targets = batch.targets  # sorted by sequence, row and key
        code, of_target = sequence * width + row, targets[:, 0] * width + targets[:, 1]
        at = torch.searchsorted(of_target.contiguous(), code.contiguous()).clamp_max(len(targets) - 1)
        place = torch.where(of_target[at] == code, targets[at, 2], place)
    in_source = source.tokens[torch.zeros_like(sequence) if len(source.tokens) == 1 else sequence, place]
    return torch.where(in_source == batch.tokens[sequence, row + 1], -1, in_source)


def check_shapes(source: Sequences, n_sequences: int, n_tokens: int) -> None:
    of_source = source.tokens.shape
    if of_source[1] < n_tokens or of_source[0] not in (1, n_sequences):
        raise WorkbenchError(
            f"the patch was taken from {of_source[0]} × {of_source[1]} tokens and now {n_sequences} × {n_tokens} "
            "tokens run; expected as many tokens, in one sequence or as many"
        )
