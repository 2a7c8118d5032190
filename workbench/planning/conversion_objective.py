"""The windowing game: what the model loses on a probe when some key/value heads see only sinks and a window.

Or have linear attention: the rankings that compare outputs or losses are of one as of the other, and where they speak
of windowed heads, linear ones are meant.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel
from workbench.hooks.interventions.gates import converted, windowed_heads
from workbench.hooks.interventions.targets import check_linearisable
from workbench.hooks.interventions.windows import Forms, Window, check_window
from workbench.planning.answer_loss import Objective, batches, pieces
from workbench.probes import Probe


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a model does on a probe: nats per answer, and the share of answers that are right."""

    nats: float
    accuracy: float


class Game:
    """A model, a probe and a window; the players are the key/value heads of its softmax layers.

    `window`: in tokens, or the forms of linear attention that heads get, without sinks; the players then are the heads
    that have a form. `seed` is for what is drawn at random. A game is about the model as it is when the game begins:
    its outcomes are remembered, since curves ask for the same ones again.

    Raises:
        WorkbenchError: if the probe has no answers, the objective is unknown, the window is no window, or a head cannot
            have linear attention.
    """

    def __init__(
        self,
        m: HookedModel,
        probe: Probe,
        window: int | Forms,
        *,
        sink: int = 0,
        objective: Objective = "loss",
        seed: int = 0,
    ):
        self.m, self.probe, self.seed = m, probe, seed
        self.to: Window | Forms = check_window(window, sink) if isinstance(window, int) else _checked(m, window, sink)
        self.heads: tuple[KVHead, ...] = (
            windowed_heads(m.layers) if isinstance(self.to, Window) else tuple(sorted(self.to))
        )
        self.pieces = pieces(m, probe, objective)
        self._outcomes: dict[frozenset[KVHead], Outcome] = {}

    @property
    def limits(self) -> Window:
        """What a windowed head sees.

        Raises:
            WorkbenchError: if heads have linear attention instead.
        """
        if not isinstance(self.to, Window):
            raise WorkbenchError("the heads are given linear attention, and this is defined for a window alone")
        return self.to

    def nats(self, windowed: Collection[KVHead] = ()) -> Float[np.ndarray, " n_seq"]:
        """The objective with these heads windowed, for each sequence that has an answer."""
        with torch.no_grad(), converted(self.m, windowed, self.to):
            found = [piece.nats()[piece.counted].double().cpu() for piece in self.pieces]
        return torch.cat(found).numpy()

    def outcome(self, windowed: Collection[KVHead] = ()) -> Outcome:
        """Loss and accuracy on the probe's answers with these heads windowed."""
        key = frozenset(windowed)
        if key not in self._outcomes:
            with converted(self.m, windowed, self.to):
                found = [self.m.answers(p) for p in batches(self.probe)]
            nats = torch.cat([a.loss_nats for a in found]).double().mean()
            accuracy = torch.cat([a.is_right for a in found]).double().mean()
            self._outcomes[key] = Outcome(float(nats), float(accuracy))
        return self._outcomes[key]

    def without(self, kept: Collection[KVHead]) -> Float[np.ndarray, " n_seq"]:
        """The objective with every head windowed but these."""
        return self.nats([head for head in self.heads if head not in kept])


def _checked(m: HookedModel, forms: Forms, sink: int) -> Forms:
    if not forms or sink:
        raise WorkbenchError(f"{len(forms)} linear forms, sink {sink}: expected a form for a head or more, and no sink")
    for head in forms:
        check_linearisable(m.layers, head)
    return forms
