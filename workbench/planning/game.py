"""The windowing game: what the model loses on a probe when some key/value heads see only sinks and a window."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from jaxtyping import Float

from workbench.heads import KVHead
from workbench.hooks import HookedModel
from workbench.hooks.gates import windowed_heads
from workbench.hooks.interventions import Window, check_window
from workbench.planning.objectives import Objective, pieces
from workbench.probes import Probe


class Game:
    """A model, a probe and a window; the players are the key/value heads of its softmax layers.

    `seed` is for what is drawn at random.

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
        self.n_passes = 0

    def nats(self, windowed: Collection[KVHead] = ()) -> Float[np.ndarray, " n_seq"]:
        """The objective with these heads windowed, for each sequence that has an answer."""
        self.n_passes += 1
        with torch.no_grad(), self.m.restrict(windowed, self.limits.window, self.limits.sink):
            found = [piece.nats()[piece.counted].double().cpu() for piece in self.pieces]
        return torch.cat(found).numpy()

    def without(self, kept: Collection[KVHead]) -> Float[np.ndarray, " n_seq"]:
        """The objective with every head windowed but these."""
        return self.nats([head for head in self.heads if head not in kept])
