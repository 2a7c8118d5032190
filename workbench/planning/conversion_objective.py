"""The objective of a model on a probe as a function of which key/value heads are converted.

A converted head has a window, linear or sparse attention. In the terms of cooperative game theory the heads are
players, and rankings share out the loss among them, hence `Game`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass
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
from workbench.hooks.interventions.targets import check_form, check_kv_head, check_linearisable, check_sparsifiable
from workbench.planning.answer_loss import Objective, answer_batches, loss_batches
from workbench.probes import Probe
from workbench.probes.token_inputs import ProbeLike, read_probe
from workbench.store.cache_sizes import bytes_under, saved_under
from workbench.store.conversions import Conversion, Conversions, SparseAttention, Window, check_window, softmax_heads
from workbench.store.finished_pieces import Pieces


@dataclass(frozen=True, slots=True)
class Outcome:
    """Loss in nats per answer, and the share of answers that are right.

    `sums`: nats of all answers of each sequence that has one.
    """

    nats: float
    accuracy: float
    sums: tuple[float, ...] = ()


def outcome_of(probe: Probe, right: Float[np.ndarray, " n_rows"], nats: Float[np.ndarray, " n_rows"]) -> Outcome:
    """The outcome of a probe from each of its answers, right (1) or not (0), and its loss."""
    assert probe.answer_rows is not None
    _, sequence = np.unique(probe.answer_rows[:, 0].numpy(), return_inverse=True)
    sums = np.bincount(sequence, weights=nats)
    return Outcome(float(nats.mean()), float(right.mean()), tuple(sums.tolist()))


def mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean of several outcomes on the same sequences."""
    if len(outcomes) == 1:
        return outcomes[0]
    nats, accuracy = (float(np.mean([getattr(x, name) for x in outcomes])) for name in ("nats", "accuracy"))
    return Outcome(nats, accuracy, tuple(np.mean([x.sums for x in outcomes], axis=0).tolist()))


class Game:
    """A model, a probe and a conversion; the players are the key/value heads that the conversion is for.

    `window`: in tokens, for every head of a softmax layer whose own window is wider, with its `sink`; or a conversion
    for each head, `Window`, `LinearAttention` or `SparseAttention`, and then only these heads are players. `seed`: of
    what is drawn at random. `pieces`: what earlier games of the same model measured. `ends`: what is known from
    elsewhere, the outcomes with no head and with every head converted. The model must stay as it is when the game is
    made: outcomes are remembered, since curves need the same ones again.

    Raises:
        WorkbenchError: if the probe has no answers, the objective is unknown, the window is no window or changes no
            head, or a head cannot have its conversion.
    """

    def __init__(  # noqa: PLR0913  (public keywords)
        self,
        m: HookedModel | nn.Module,
        probe: ProbeLike,
        window: int | Conversions,
        *,
        sink: int = 0,
        objective: Objective = "loss",
        seed: int = 0,
        pieces: Pieces | None = None,
        ends: tuple[Outcome, Outcome] | None = None,
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
        self.objective: Objective = objective
        self.pieces = Pieces() if pieces is None else pieces
        self.ends = ends
        # The window of what measures the far context, where heads have conversions of their own.
        self.far: Window | None = None

    def towards(self, conversions: Conversions) -> Game:
        """This game with other conversions; what measures the far context keeps this game's window."""
        game = Game(self.m, self.probe, conversions, objective=self.objective, seed=self.seed, pieces=self.pieces)
        game.far = self.limits
        return game

    @property
    def limits(self) -> Window:
        """The window and sinks that a windowed head sees.

        Raises:
            WorkbenchError: if all heads have linear or sparse attention, or windows differ.
        """
        if self.far is not None:
            return self.far
        windows = [self.to] if isinstance(self.to, Window) else [w for w in self.to.values() if isinstance(w, Window)]
        if not windows:
            raise WorkbenchError(
                "the heads are given linear or sparse attention, and this is defined for a window alone"
            )
        if len(set(windows)) > 1:
            raise WorkbenchError("the heads are given windows of their own, and this is defined for one window")
        return windows[0]

    def conversions(self, full: Collection[KVHead] = ()) -> dict[KVHead, Conversion]:
        """What every head becomes but these."""
        to = self.to
        return {head: to if isinstance(to, Window) else to[head] for head in self.heads if head not in full}

    def cache_bytes(self, full: Collection[KVHead], *, context: int) -> int:
        """Bytes of cache and states of the softmax layers after `context` tokens with every head converted but these.

        Keys and values are counted in 16-bit numbers, states in float32.
        """
        return bytes_under(self.m.layers, self.conversions(full), context=context)

    def cache_saved(self, full: Collection[KVHead], *, context: int) -> float:
        """The share of the cache of `context` tokens that is not needed with every head converted but these."""
        return saved_under(self.m.layers, self.conversions(full), context=context)

    @property
    def label(self) -> str:
        """The name of the game among finished pieces: its probe, its conversions and its objective."""
        return f"{self.probe.name} {self.probe.digest} {_digest(self._named(self.heads), self.objective)}"

    def _named(self, heads: Collection[KVHead]) -> str:
        conversions = self.conversions()
        return str([(tuple(head), conversions[head]) for head in sorted(heads)])

    def nats(self, heads: Collection[KVHead] = ()) -> Float[np.ndarray, " n_seq"]:
        """The objective with these heads converted, for each sequence that has an answer."""
        with torch.no_grad(), converted(self.m, heads, self.to):
            by_batch = [batch.nats()[batch.counted].double().cpu() for batch in self.batches]
        return torch.cat(by_batch).numpy()

    def without(self, full: Collection[KVHead]) -> Float[np.ndarray, " n_seq"]:
        """The objective with every head converted but these."""
        return self.nats([head for head in self.heads if head not in full])

    @property
    def n_measured(self) -> int:
        """How many outcomes are there already."""
        ends = () if self.ends is None else ((), self.heads)
        return self.pieces.count("outcome with ", self.label) + sum(self._piece(x) not in self.pieces for x in ends)

    def _piece(self, heads: Collection[KVHead]) -> str:
        return f"outcome with {_digest(self._named(heads))} on {self.label}"

    def outcome(self, heads: Collection[KVHead] = ()) -> Outcome:
        """Loss and accuracy on the probe's answers with these heads converted."""
        name = self._piece(heads)
        nats, accuracy, sums = self.pieces.get(name, lambda: astuple(self._outcome(heads)))
        return Outcome(nats, accuracy, tuple(sums))

    def _outcome(self, heads: Collection[KVHead]) -> Outcome:
        if self.ends is not None and len(set(heads)) in (0, len(self.heads)):
            return self.ends[bool(heads)]
        with converted(self.m, heads, self.to):
            answers = [self.m.answers(p) for p in answer_batches(self.probe)]
        right, nats = (torch.cat([getattr(a, name) for a in answers]).double() for name in ("is_right", "loss_nats"))
        return outcome_of(self.probe, right.numpy(), nats.numpy())


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=12).hexdigest()


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
        elif isinstance(conversion, SparseAttention):
            check_sparsifiable(m.layers, head)
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
