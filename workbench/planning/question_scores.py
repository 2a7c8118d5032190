"""Scores of the questions of probes, and intervals of their means over texts or questions.

A question is a run of neighbouring answer rows of one class: the digits of one value, a copied piece of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from workbench.detectors.bootstrap import percentile_interval, resampled_means
from workbench.emergence.thresholds import MIN_SEQUENCES
from workbench.hooks import HookedModel
from workbench.probes import Probe, joined, split

# Tokens of a batch, as for scores: activations stay in hundreds of MB, whatever the length.
_BATCH_TOKENS = 4096
# Called with the tokens of a forward pass that is done.
OnTokens = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Of each answer row of a probe whether it is right (1 or 0), and its loss in nats."""

    right: Float[np.ndarray, " n_rows"]
    nats: Float[np.ndarray, " n_rows"]


@dataclass(frozen=True, slots=True)
class QuestionScores:
    """Of each question the share of its answer tokens that is right and the mean loss on them, in nats.

    `text`: the sequence it stands in. `classes`: its class, -1 where the probe has none.
    """

    right: Float[np.ndarray, " n"]
    nats: Float[np.ndarray, " n"]
    text: Int[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]

    def of_class(self, number: int) -> QuestionScores:
        """The questions of one class."""
        chosen = self.classes == number
        return QuestionScores(self.right[chosen], self.nats[chosen], self.text[chosen], self.classes[chosen])


def question_scores(
    m: HookedModel, probes: Sequence[Probe], *, on_tokens: OnTokens | None = None
) -> list[QuestionScores]:
    """The questions of each probe, answered under the interventions in force.

    Raises:
        WorkbenchError: if a probe has no answers, or does not fit the model.
    """
    return [by_question(p, rows) for p, rows in zip(probes, answered(m, probes, on_tokens=on_tokens), strict=True)]


def answered(m: HookedModel, probes: Sequence[Probe], *, on_tokens: OnTokens | None = None) -> list[AnsweredRows]:
    """The answers of each probe under the interventions in force, in the order of its `answer_rows`.

    Probes of one length without padding share their forward passes: sequences of a batch do not see each other.

    Raises:
        WorkbenchError: if a probe has no answers, or does not fit the model.
    """
    rows: dict[int, AnsweredRows] = {}
    for numbers in _sharing(probes):
        together = [probes[i] for i in numbers]
        right, nats = _answers(m, joined(together) if len(together) > 1 else together[0], on_tokens)
        ends = np.cumsum([_n_answers(p) for p in together])[:-1]
        for i, *of_probe in zip(numbers, np.split(right, ends), np.split(nats, ends), strict=True):
            rows[i] = AnsweredRows(*of_probe)
    return [rows[i] for i in range(len(probes))]


def n_passes(probes: Sequence[Probe]) -> int:
    """How many forward passes `question_scores` makes of these probes."""
    together = [joined([probes[i] for i in numbers]) for numbers in _sharing(probes)]
    return sum(len(_batches(p)) for p in together)


def mean_interval(values: Float[np.ndarray, " n"], text: Int[np.ndarray, " n"], *, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of questions.

    From 5 texts on whole texts are drawn, with all their questions; else questions. NaN for fewer than 5 of those.
    """
    _, member = np.unique(text, return_inverse=True)
    n_texts = int(member.max(initial=-1)) + 1
    if n_texts >= MIN_SEQUENCES:
        sums, counts = (np.bincount(member, weights=x) for x in (values, np.ones(len(values))))
        means = resampled_means(np.stack([sums, counts], -1), seed=seed)
        resampled = means[:, :1] / means[:, 1:]
    elif len(values) >= MIN_SEQUENCES:
        resampled = resampled_means(values[:, None], seed=seed)
    else:
        return float("nan"), float("nan")
    low, high = percentile_interval(resampled)
    return float(low[0]), float(high[0])


def _sharing(probes: Sequence[Probe]) -> list[list[int]]:
    """Numbers of probes that are run together; one with a mask is run alone."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, p in enumerate(probes):
        groups.setdefault((p.tokens.shape[1], -1 if p.attention_mask is None else i), []).append(i)
    return list(groups.values())


def _batches(probe: Probe) -> list[Probe]:
    return [p for p in split(probe, max(1, _BATCH_TOKENS // probe.tokens.shape[1])) if _n_answers(p)]


def _n_answers(probe: Probe) -> int:
    return 0 if probe.answer_rows is None else len(probe.answer_rows)


def _answers(
    m: HookedModel, probe: Probe, on_tokens: OnTokens | None
) -> tuple[Float[np.ndarray, " n_rows"], Float[np.ndarray, " n_rows"]]:
    """Whether each answer is right, and its loss."""
    answers = []
    for batch in _batches(probe):
        answers.append(m.answers(batch))
        if on_tokens is not None:
            on_tokens(batch.tokens.numel())
    right, nats = (torch.cat([getattr(a, name) for a in answers]).double() for name in ("is_right", "loss_nats"))
    return right.numpy(), nats.numpy()


def by_question(probe: Probe, rows: AnsweredRows) -> QuestionScores:
    """The answers of a probe, by question."""
    assert probe.answer_rows is not None
    text, row = probe.answer_rows.numpy().T
    classes = np.full(len(row), -1) if probe.classes is None else probe.classes.numpy()
    is_first = np.ones(len(row), dtype=bool)
    is_first[1:] = (np.diff(text) != 0) | (np.diff(row) != 1) | (np.diff(classes) != 0)
    question, n_rows = np.cumsum(is_first) - 1, np.bincount(np.cumsum(is_first) - 1)
    return QuestionScores(
        right=np.bincount(question, weights=rows.right) / n_rows,
        nats=np.bincount(question, weights=rows.nats) / n_rows,
        text=text[is_first],
        classes=classes[is_first],
    )
