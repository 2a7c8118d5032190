"""The objective of a model on a probe as a function of which key/value heads are converted.

A converted head has a window or linear attention. In the terms of cooperative game theory the heads are players, and
rankings share out the loss among them, hence `Game`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.hooks.head_inputs import by_kv_head
from workbench.hooks.interventions.gates import converted, converted_heads
from workbench.hooks.interventions.targets import check_form, check_kv_head, check_linearisable
from workbench.planning.answer_loss import Objective, answer_batches, loss_batches
from workbench.probes.token_inputs import ProbeLike, read_probe
from workbench.store.conversions import Conversions, Window, check_window, softmax_heads


@dataclass(frozen=True, slots=True)
class Outcome:
    """Loss in nats per answer, and the share of answers that are right."""

    nats: float
    accuracy: float


class Game:
    """A model, a probe and a conversion; the players are the key/value heads that the conversion is for.

    `window`: in tokens, for every head of a softmax layer whose own window is wider, with its `sink`; or a conversion
    for each head, `Window` or `LinearAttention`, and then only these heads are players. `seed`: of what is drawn at
    random. The model must stay as it is when the game is made: outcomes are remembered, since curves need the same ones
    again.

    Raises:
        WorkbenchError: if the probe has no answers, the objective is unknown, the window is no window or changes no
            head, or a head cannot have its conversion.
    """

    def __init__(
        self,
        m: HookedModel | nn.Module,
        probe: ProbeLike,
        window: int | Conversions,
        *,
        sink: int = 0,
        objective: Objective = "loss",
        seed: int = 0,
    ):
        m = open_model(m)
        probe = read_probe(m, probe)
        self.m, self.probe, self.seed = m, probe, seed
        self.to: Window | Conversions = (
            check_window(window, sink) if isinstance(window, Integral) else _checked(m, window, sink)
        )
        self.heads: tuple[KVHead, ...] = converted_heads(m.layers, self.to)
        if not self.heads:
            raise WorkbenchError(_no_heads(m, window))
        self.batches = loss_batches(m, probe, objective)
        self._outcomes: dict[frozenset[KVHead], Outcome] = {}

    @property
    def limits(self) -> Window:
        """The window and sinks that a windowed head sees.

        Raises:
            WorkbenchError: if all heads have linear attention, or windows differ.
        """
        windows = [self.to] if isinstance(self.to, Window) else [w for w in self.to.values() if isinstance(w, Window)]
        if not windows:
            raise WorkbenchError("the heads are given linear attention, and this is defined for a window alone")
        if len(set(windows)) > 1:
            raise WorkbenchError("the heads are given windows of their own, and this is defined for one window")
        return windows[0]

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
        key = frozenset(heads)
        if key not in self._outcomes:
            with converted(self.m, heads, self.to):
                answers = [self.m.answers(p) for p in answer_batches(self.probe)]
            nats = torch.cat([a.loss_nats for a in answers]).double().mean()
            accuracy = torch.cat([a.is_right for a in answers]).double().mean()
            self._outcomes[key] = Outcome(float(nats), float(accuracy))
        return self._outcomes[key]


def _checked(m: HookedModel, conversions: Any, sink: int) -> Conversions:
    conversions = by_kv_head(m.layers, conversions)
    if not conversions or sink:
        raise WorkbenchError(
            f"{len(conversions)} conversions, sink {sink}: expected a conversion for a head or more, and "
            "sinks in the windows"
        )
    for head, conversion in conversions.items():
        if isinstance(conversion, Window):
            check_kv_head(m.layers, head)
            check_window(conversion.window, conversion.sink)
        else:
            check_linearisable(m.layers, head)
            check_form(head, conversion)
    return conversions


def _no_heads(m: HookedModel, window: Any) -> str:
    if not softmax_heads(m.layers):
        return f"{m!r} has no softmax attention; there is no head to give a window to"
    return (
        f"no head of {m!r} sees further back than {window} tokens by itself, so that this window changes nothing; pass "
        "a smaller one"
    )
