"""Window gates on a ladder of windows, and the smallest safe window of each head."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import nn

from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.planning.answer_loss import Objective
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.adaptive_nodes import AS_NEEDED, AdaptiveNodes
from workbench.planning.rankings.window_gates import integrate
from workbench.probes.token_inputs import ProbeLike


@dataclass(frozen=True, slots=True)
class WindowLadder:
    """The worth of every head's context beyond each window, in nats per answer.

    `windows`: in tokens, rising. `margin`: what each score may be off by, see `WindowGates.margin`. `smallest_safe`: of
    each head, the smallest window from which on no window costs more than `tolerance` nats, margin included; None where
    the largest still does. `completeness_error`: of the scores with each window, NaN where the window costs nothing.
    `lost_together`: the measured loss, in nats per answer, when every head has its smallest safe window and heads
    without one see everything.
    """

    heads: tuple[KVHead, ...]
    windows: tuple[int, ...]
    scores: Float[np.ndarray, "n_kv n_windows"]
    margin: Float[np.ndarray, "n_kv n_windows"]
    completeness_error: tuple[float, ...]
    tolerance: float
    smallest_safe: tuple[int | None, ...]
    lost_together: float

    def __repr__(self) -> str:
        windows, safe = ", ".join(map(str, self.windows)), sum(window is not None for window in self.smallest_safe)
        return (
            f"WindowLadder({len(self.heads)} heads, windows {windows}: {safe} have one within "
            f"{self.tolerance:g} nats, {self.lost_together:.3g} lost together; .table())"
        )

    def table(self) -> pd.DataFrame:
        """One row per head: layer, kv_head, a column of nats for each window, smallest_safe."""
        columns = {window: self.scores[:, i] for i, window in enumerate(self.windows)}
        heads = {name: [getattr(head, name) for head in self.heads] for name in ("layer", "kv_head")}
        return pd.DataFrame({**heads, **columns, "smallest_safe": pd.array(self.smallest_safe, dtype="Int64")})


def window_ladder(  # noqa: PLR0913  # public keywords
    m: HookedModel | nn.Module,
    probe: ProbeLike,
    windows: Sequence[int],
    *,
    sink: int = 0,
    tolerance: float = 0.01,
    nodes: int | AdaptiveNodes = AS_NEEDED,
    objective: Objective = "loss",
    progress: Callable[[str], None] | None = None,
) -> WindowLadder:
    """Score every key/value head with each window, and find the smallest that is safe for it.

    Takes one ranking for each window. A window as long as the probe costs nothing.

    Args:
        nodes: of the gates' path: as many as it needs, or this number.

    Raises:
        WorkbenchError: if a window is missing or impossible, the tolerance is negative, or the probe has no answers.
    """
    m, ladder = open_model(m), tuple(sorted(set(windows)))
    if not ladder:
        raise WorkbenchError("no window was given; expected some, such as [64, 128, 256]")
    if not tolerance >= 0:
        raise WorkbenchError(f"a tolerance of {tolerance} nats was given; expected 0 or more")
    by_head: list[dict[KVHead, tuple[float, float]]] = []
    errors: list[float] = []
    games = [Game(m, probe, window, sink=sink, objective=objective) for window in ladder]
    for window, game in zip(ladder, games, strict=True):
        if progress is not None:
            progress(f"window {window}")
        gates = integrate(game, nodes=nodes)
        pairs = zip(gates.scores.tolist(), gates.margin.tolist(), strict=True)
        by_head.append(dict(zip(game.heads, pairs, strict=True)))
        errors.append(gates.completeness_error)
    # The narrowest window changes most heads; a head that a wider one does not change loses nothing by it.
    heads = games[0].heads
    measured = np.array([[column.get(head, (0.0, 0.0)) for column in by_head] for head in heads])
    scores, margin = measured[..., 0], measured[..., 1]
    smallest_safe = tuple(_smallest(ladder, row <= tolerance) for row in scores + margin)
    full = games[0].nats().mean()
    safe_windows = {head: window for head, window in zip(heads, smallest_safe, strict=True) if window is not None}
    with windowed_each(m, safe_windows, sink):
        lost = float(games[0].nats().mean() - full)
    return WindowLadder(heads, ladder, scores, margin, tuple(errors), tolerance, smallest_safe, lost)


@contextmanager
def windowed_each(m: HookedModel, windows: Mapping[KVHead, int], sink: int = 0) -> Generator[HookedModel]:
    """Inside the block, each of these key/value heads has a window of its own, in tokens, after the first `sink` keys.

    Raises:
        WorkbenchError: for heads the model does not have, or in a linear layer, or an impossible window.
    """
    with ExitStack() as stack:
        for window in sorted(set(windows.values())):
            heads = [head for head, own in windows.items() if own == window]
            stack.enter_context(m.restrict(heads, window, sink))
        yield m


def _smallest(windows: Sequence[int], is_safe: np.ndarray) -> int | None:
    """The first window from which on all are safe."""
    smallest = None
    for window, safe in zip(reversed(windows), reversed(list(is_safe)), strict=True):
        if not safe:
            break
        smallest = window
    return smallest
