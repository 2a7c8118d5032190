"""The objective of a model on a probe as a function of which key/value heads are converted.

A converted head has a window or linear attention. In the terms of cooperative game theory the heads are players, and
rankings share out the loss among them, hence `Game`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.hooks.head_inputs import by_kv_head
from workbench.hooks.interventions.gates import converted, windowed_heads
from workbench.hooks.interventions.targets import check_linearisable
from workbench.hooks.interventions.windows import Forms, Window, check_window
from workbench.hooks.recording.needs import Answers
from workbench.planning.answer_loss import Objective, answer_batches, loss_batches
from workbench.probes.token_inputs import ProbeLike, read_probe
from workbench.store.finished_pieces import Pieces


@dataclass(frozen=True, slots=True)
class Outcome:
    """Loss in nats per answer, and the share of answers that are right.

    `sums`: nats of all answers of each sequence that has one.
    """

    nats: float
    accuracy: float
    sums: tuple[float, ...] = ()


def mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean of several outcomes on the same sequences."""
    if len(outcomes) == 1:
        return outcomes[0]
    nats, accuracy = (float(np.mean([getattr(x, name) for x in outcomes])) for name in ("nats", "accuracy"))
    return Outcome(nats, accuracy, tuple(np.mean([x.sums for x in outcomes], axis=0).tolist()))


class Game:
    """A model, a probe and a conversion; the players are the key/value heads of the model's softmax layers.

    `window`: in tokens; or linear attention by head, without sinks, and then only these heads are players. `seed`: of
    what is drawn at random. `pieces`: what earlier games of the same model measured. The model must stay as it is when
    the game is made: outcomes are remembered, since curves need the same ones again.

    Raises:
        WorkbenchError: if the probe has no answers, the objective is unknown, the window is no window, or a head cannot
            have linear attention.
    """

    def __init__(  # noqa: PLR0913  (public keywords)
        self,
        m: HookedModel | nn.Module,
        probe: ProbeLike,
        window: int | Forms,
        *,
        sink: int = 0,
        objective: Objective = "loss",
        seed: int = 0,
        pieces: Pieces | None = None,
    ):
        m = open_model(m)
        probe = read_probe(m, probe)
        self.m, self.probe, self.seed = m, probe, seed
        self.to: Window | Forms = (
            check_window(window, sink) if isinstance(window, Integral) else _checked_forms(m, window, sink)
        )
        self.heads: tuple[KVHead, ...] = (
            windowed_heads(m.layers) if isinstance(self.to, Window) else tuple(sorted(self.to))
        )
        self.batches = loss_batches(m, probe, objective)
        self.objective: Objective = objective
        self.pieces = Pieces() if pieces is None else pieces

    @property
    def limits(self) -> Window:
        """The window and sinks that a converted head sees.

        Raises:
            WorkbenchError: if heads have linear attention instead.
        """
        if not isinstance(self.to, Window):
            raise WorkbenchError("the heads are given linear attention, and this is defined for a window alone")
        return self.to

    @property
    def label(self) -> str:
        """The name of the game among finished pieces: its probe, its conversions and its objective."""
        return f"{self.probe.name} {self.probe.digest} {_digest(self._conversions(self.heads), self.objective)}"

    def _conversions(self, heads: Collection[KVHead]) -> str:
        to = self.to
        return str([(tuple(head), to if isinstance(to, Window) else to[head]) for head in sorted(heads)])

    def nats(self, heads: Collection[KVHead] = ()) -> Float[np.ndarray, " n_seq"]:
        """The objective with these heads converted, for each sequence that has an answer."""
        with torch.no_grad(), converted(self.m, heads, self.to):
            by_batch = [batch.nats()[batch.counted].double().cpu() for batch in self.batches]
        return torch.cat(by_batch).numpy()

    def without(self, full: Collection[KVHead]) -> Float[np.ndarray, " n_seq"]:
        """The objective with every head converted but these."""
        return self.nats([head for head in self.heads if head not in full])

    def outcome(self, heads: Collection[KVHead] = ()) -> Outcome:
        """Loss and accuracy on the probe's answers with these heads converted."""
        name = f"outcome with {_digest(self._conversions(heads))} on {self.label}"
        nats, accuracy, sums = self.pieces.get(name, lambda: self._outcome(heads))
        return Outcome(nats, accuracy, tuple(sums))

    def _outcome(self, heads: Collection[KVHead]) -> tuple[float, float, list[float]]:
        with converted(self.m, heads, self.to):
            answers = [self.m.answers(p) for p in answer_batches(self.probe)]
        nats = torch.cat([a.loss_nats for a in answers]).double()
        accuracy = torch.cat([a.is_right for a in answers]).double().mean()
        sums = torch.cat([_by_sequence(a) for a in answers])
        return float(nats.mean()), float(accuracy), sums.tolist()


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=12).hexdigest()


def _by_sequence(answers: Answers) -> Float[Tensor, " n_seq"]:
    """Nats of all answers of each sequence that has one."""
    _, sequence = torch.unique(answers.at[:, 0], return_inverse=True)
    return torch.zeros(int(sequence.max()) + 1, dtype=torch.float64).index_add_(0, sequence, answers.loss_nats.double())


def _checked_forms(m: HookedModel, forms: Any, sink: int) -> Forms:
    forms = by_kv_head(m.layers, forms)
    if not forms or sink:
        raise WorkbenchError(f"{len(forms)} linear forms, sink {sink}: expected a form for a head or more, and no sink")
    for head in forms:
        check_linearisable(m.layers, head)
    return forms
