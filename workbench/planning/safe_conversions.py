"""Choose a window, linear attention or neither for each head: the smallest state of those that are safe."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import nn

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.planning.conversion_objective import Game
from workbench.planning.linear_fit import fit_linear_attention
from workbench.planning.rankings.window_gates import integrate
from workbench.probes import Probe
from workbench.probes.token_inputs import ProbeLike, TokensLike, read_probe
from workbench.store.conversions import Features, LinearAttention

Choice = Literal["window", "linear", "full"]


@dataclass(frozen=True, slots=True)
class SafeForms:
    """Costs of a window and of linear attention, and the choice, for each head that sees its whole past.

    `windowed`, `linear`: integrated gates in nats per answer. `error`: share of the variance of its outputs that its
    form of linear attention leaves unexplained. `choices`: of the conversions that cost no more than `tolerance`, the
    one with fewer numbers to store, the keys and values of the window or the linear state; `full` where neither is
    safe. `lost_together`: measured nats per answer lost with all choices in force.
    """

    heads: tuple[KVHead, ...]
    window: int
    sink: int
    tolerance: float
    windowed: Float[np.ndarray, " n_kv"]
    linear: Float[np.ndarray, " n_kv"]
    error: Float[np.ndarray, " n_kv"]
    forms: dict[KVHead, LinearAttention]
    choices: tuple[Choice, ...]
    lost_together: float

    def table(self) -> pd.DataFrame:
        """A row per head: `layer, kv_head, window_nats, linear_nats, linear_error, choice`."""
        return pd.DataFrame(
            {
                "layer": [head.layer for head in self.heads],
                "kv_head": [head.kv_head for head in self.heads],
                "window_nats": self.windowed,
                "linear_nats": self.linear,
                "linear_error": self.error,
                "choice": self.choices,
            }
        )


def safe_forms(  # noqa: PLR0913  # public keywords
    m: HookedModel | nn.Module,
    probe: ProbeLike,
    window: int,
    *,
    sink: int = 0,
    tolerance: float = 0.01,
    text: TokensLike | Probe | None = None,
    features: Features = "elu",
    nodes: int = 8,
    progress: Callable[[str], None] | None = None,
) -> SafeForms:
    """Score every head that sees its whole past towards a window and towards linear attention, and choose.

    Takes two rankings and one pass to fit linear attention. Costs of heads add up, so the loss under all choices
    together is measured.

    Args:
        window, sink: what a windowed head sees, in tokens.
        tolerance: nats per answer that a head's choice may cost.
        text: what linear attention is fitted to; default the probe's own tokens.
        features: see `LinearAttention`.
        nodes: of each gate path.

    Raises:
        WorkbenchError: if no layer sees its whole past, the tolerance is negative, the window is impossible, or the
            probe has no answers.
    """
    if not tolerance >= 0:
        raise WorkbenchError(f"a tolerance of {tolerance} nats was given; expected 0 or more")

    m = open_model(m)
    probe = read_probe(m, probe)
    announce = progress or (lambda _: None)
    announce("linear forms")
    fit = fit_linear_attention(m, probe if text is None else text, features=features)
    heads = tuple(fit.forms)
    if not heads:
        raise WorkbenchError("no layer of the model sees its whole past, so that no head has anything to lose")
    announce("gates towards windows")
    to_window = Game(m, probe, window, sink=sink)
    window_gates = integrate(to_window, nodes=nodes)
    windowed = window_gates.scores[[window_gates.heads.index(head) for head in heads]]
    announce("gates towards linear attention")
    linear_gates = integrate(Game(m, probe, fit.forms), nodes=nodes)
    linear = linear_gates.scores[[linear_gates.heads.index(head) for head in heads]]
    sizes = {
        i.index: (2 * i.d_head * (window + sink), LinearAttention(features).state_size(i.d_head))
        for i in m.layers
        if i.kind == "full"
    }
    choices: tuple[Choice, ...] = tuple(
        _choice(w, x, sizes[head.layer], tolerance) for head, w, x in zip(heads, windowed, linear, strict=True)
    )
    conversions = SafeForms(
        heads=heads,
        window=window,
        sink=sink,
        tolerance=tolerance,
        windowed=windowed,
        linear=linear,
        error=np.array([fit.error[head] for head in heads]),
        forms=fit.forms,
        choices=choices,
        lost_together=float("nan"),
    )
    announce("all choices at once")
    with in_safe_forms(m, conversions):
        lost = float(to_window.nats().mean()) - window_gates.full
    return replace(conversions, lost_together=lost)


@contextmanager
def in_safe_forms(m: HookedModel, chosen: SafeForms) -> Generator[HookedModel]:
    """Inside the block, every head has the conversion chosen for it.

    Raises:
        WorkbenchError: for heads the model does not have.
    """
    by_choice: dict[str, list[KVHead]] = {"window": [], "linear": [], "full": []}
    for head, choice in zip(chosen.heads, chosen.choices, strict=True):
        by_choice[choice].append(head)
    with (
        m.restrict(by_choice["window"], chosen.window, chosen.sink),
        m.linearize({head: chosen.forms[head] for head in by_choice["linear"]}),
    ):
        yield m


def _choice(windowed: float, linear: float, sizes: tuple[int, int], tolerance: float) -> Choice:
    is_safe = windowed <= tolerance, linear <= tolerance
    if is_safe[0] and (sizes[0] <= sizes[1] or not is_safe[1]):
        return "window"
    return "linear" if is_safe[1] else "full"
