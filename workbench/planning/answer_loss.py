"""What a restriction costs: nats per answer of each sequence, differentiable in whatever is in force on the model."""

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

# Tokens of a batch, as in measuring; half of them, for the backward pass keeps activations.
_BATCH_TOKENS = 2048
Objective = Literal["loss", "kl"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some sequences of a probe.

    `nats` gives each sequence's mean over its answers under whatever is in force when it is called; sequences that are
    not `counted` have no answer.
    """

    n_tokens: int
    counted: Bool[Tensor, " b"]
    nats: Callable[[], Float[Tensor, " b"]]


def pieces(m: HookedModel, probe: Probe, objective: Objective) -> list[Piece]:
    """The probe in batches, with the objective as a function of what is in force on the model.

    `loss`: the negative log-likelihood of the answers. `kl`: of the model as it is now, from what it says under the
    restriction, KL(now ‖ then) on the answer rows; needs no right answers.

    Raises:
        WorkbenchError: if the probe has no answers, does not fit the model, or the objective is unknown.
    """
    if objective not in ("loss", "kl"):
        raise WorkbenchError(f"objective is {objective!r}; expected 'loss' or 'kl'")
    if probe.answer_rows is None or len(probe.answer_rows) == 0:
        raise WorkbenchError(f"probe {probe.name!r} has no answers; expected one with answer_rows")
    return [_piece(m, p, objective) for p in batches(probe)]


def batches(probe: Probe) -> list[Probe]:
    """The probe in parts of a few thousand tokens that have answers."""
    step = max(1, _BATCH_TOKENS // probe.tokens.shape[1])
    return [p for p in split(probe, step) if p.answer_rows is not None and len(p.answer_rows)]


def _piece(m: HookedModel, probe: Probe, objective: Objective) -> Piece:
    batch = batch_of(m.model, probe)
    assert batch.answers is not None
    sequence, row = batch.answers.unbind(-1)
    kept = torch.unique(row)
    place = torch.stack([sequence, torch.searchsorted(kept, row.contiguous())], -1)
    answers = batch.tokens[sequence, row + 1]

    def logits() -> Float[Tensor, "n_answers vocab"]:
        return logits_of(m.model, batch, kept, announce=lambda _: None)[place[:, 0], place[:, 1]].float()

    n_answers = torch.bincount(sequence, minlength=len(batch.tokens))

    def by_sequence(nats: Float[Tensor, " n_answers"]) -> Float[Tensor, " b"]:
        return nats.new_zeros(len(batch.tokens)).index_add(0, sequence, nats) / n_answers.clamp_min(1)

    def likelihood() -> Float[Tensor, " b"]:
        return by_sequence(cross_entropy(logits(), answers, reduction="none"))

    n_tokens, counted = batch.tokens.shape[1], n_answers > 0
    if objective == "loss":
        return Piece(n_tokens, counted, likelihood)
    with torch.no_grad(), m.in_force():
        now = logits().log_softmax(-1)

    def divergence() -> Float[Tensor, " b"]:
        return by_sequence((now.exp() * (now - logits().log_softmax(-1))).sum(-1))

    return Piece(n_tokens, counted, divergence)
