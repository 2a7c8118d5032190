"""The windowing game: what the model loses on a probe when some key/value heads see only sinks and a window."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from workbench.heads import KVHead
from workbench.hooks import HookedModel
from workbench.hooks.gates import windowed_heads
from workbench.hooks.interventions import Window, check_window
from workbench.planning.objectives import Objective, batches, pieces
from workbench.probes import Probe


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a model does on a probe: nats per answer, and the share of answers that are right."""

    nats: float
    accuracy: float


class Game:
    """A model, a probe and a window; the players are the key/value heads of its softmax layers.

    `seed` is for what is drawn at random. A game is about the model as it is when the game begins: its outcomes are
    remembered, since curves ask for the same ones again.

    Raises:
        WorkbenchError: if the probe has no answers, the objective is unknown, or the window is no window.
    """

    def __init__(
        self,
        m: HookedModel,
        probe: Probe,
        window: int,
        *,
        sink: int = 0,
        objective: Objective = "loss",
        seed: int = 0,
    ):
        self.m, self.probe, self.seed = m, probe, seed
        self.limits: Window = check_window(window, sink)
        self.heads: tuple[KVHead, ...] = windowed_heads(m.layers)
        self.pieces = pieces(m, probe, objective)
        self._outcomes: dict[frozenset[KVHead], Outcome] = {}

    def nats(self, windowed: Collection[KVHead] = ()) -> Float[np.ndarray, " n_seq"]:
        """The objective with these heads windowed, for each sequence that has an answer."""
        with torch.no_grad(), self.m.restrict(windowed, self.limits.window, self.limits.sink):
            found = [piece.nats()[piece.counted].double().cpu() for piece in self.pieces]
        return torch.cat(found).numpy()

    def outcome(self, windowed: Collection[KVHead] = ()) -> Outcome:
        """Loss and accuracy on the probe's answers with these heads windowed."""
        key = frozenset(windowed)
        if key not in self._outcomes:
            with self.m.restrict(windowed, self.limits.window, self.limits.sink):
                found = [self.m.answers(p) for p in batches(self.probe)]
            nats = torch.cat([a.loss_nats for a in found]).double().mean()
            accuracy = torch.cat([a.is_right for a in found]).double().mean()
            self._outcomes[key] = Outcome(float(nats), float(accuracy))
        return self._outcomes[key]

    def without(self, kept: Collection[KVHead]) -> Float[np.ndarray, " n_seq"]:
        """The objective with every head windowed but these."""
        return self.nats([head for head in self.heads if head not in kept])
