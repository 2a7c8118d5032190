"""Loss of a probe's answers per sequence, in nats, differentiable under whatever interventions are on the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.hooks.recording.forward_pass import batch_of, logits_of
from workbench.probes import Probe, split

# Half of the tokens that a batch of detectors.measuring has: the backward pass keeps activations.
_BATCH_TOKENS = 2048
Objective = Literal["loss", "kl"]


@dataclass(frozen=True, slots=True)
class LossBatch:
    """Some sequences of a probe, and their objective.

    `nats` computes each sequence's mean over its answers under the interventions in force at the call. Sequences that
    are not `counted` have no answer.
    """

    n_tokens: int
    counted: Bool[Tensor, " b"]
    nats: Callable[[], Float[Tensor, " b"]]


def loss_batches(m: HookedModel, probe: Probe, objective: Objective) -> list[LossBatch]:
    """The probe in batches, each with its objective as a function of the interventions on the model.

    `loss`: the negative log-likelihood of the answers. `kl`: KL(now ‖ then) on the answer rows, from the model as it is
    at this call to the model under the interventions; needs no right answers.

    Raises:
        WorkbenchError: if the probe has no answers, does not fit the model, or the objective is unknown.
    """
    if objective not in ("loss", "kl"):
        raise WorkbenchError(f"objective is {objective!r}; expected 'loss' or 'kl'")
    if probe.answer_rows is None or len(probe.answer_rows) == 0:
        raise WorkbenchError(f"probe {probe.name!r} has no answers; expected one with answer_rows")
    return [_loss_batch(m, sequences, objective) for sequences in answer_batches(probe)]


def answer_batches(probe: Probe) -> list[Probe]:
    """The probe in batches of about 2,048 tokens, without batches that have no answer."""
    n_sequences = max(1, _BATCH_TOKENS // probe.tokens.shape[1])
    return [p for p in split(probe, n_sequences) if p.answer_rows is not None and len(p.answer_rows)]


def _loss_batch(m: HookedModel, probe: Probe, objective: Objective) -> LossBatch:
    batch = batch_of(m.model, probe)
    assert batch.answers is not None
    sequence, row = batch.answers.unbind(-1)
    rows = torch.unique(row)
    column = torch.searchsorted(rows, row.contiguous())
    answers = batch.tokens[sequence, row + 1]

    def logits() -> Float[Tensor, "n_answers vocab"]:
        return logits_of(m.model, batch, rows, announce=lambda _: None)[sequence, column].float()

    n_answers = torch.bincount(sequence, minlength=len(batch.tokens))

    def by_sequence(nats: Float[Tensor, " n_answers"]) -> Float[Tensor, " b"]:
        return nats.new_zeros(len(batch.tokens)).index_add(0, sequence, nats) / n_answers.clamp_min(1)

    def likelihood() -> Float[Tensor, " b"]:
        return by_sequence(cross_entropy(logits(), answers, reduction="none"))

    n_tokens, counted = batch.tokens.shape[1], n_answers > 0
    if objective == "loss":
        return LossBatch(n_tokens, counted, likelihood)
    with torch.no_grad(), m.in_force():
        now = logits().log_softmax(-1)

    def divergence() -> Float[Tensor, " b"]:
        return by_sequence((now.exp() * (now - logits().log_softmax(-1))).sum(-1))

    return LossBatch(n_tokens, counted, divergence)
