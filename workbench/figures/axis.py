"""The training axis: tokens (or steps) on a log scale, with step 0 left of a break."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from workbench.emergence.head_trajectories import Checkpoint, short_count
from workbench.figures.style import PALETTES, Theme
from workbench.heads import WorkbenchError

AxisUnit = Literal["tokens", "step"]


@dataclass(frozen=True, slots=True)
class TrainingAxis:
    """The x axis of a figure over training, the same for all its runs.

    `zero` is the x at which step 0 is drawn; None where no checkpoint is at 0.
    """

    unit: AxisUnit
    first: float | int
    last: float | int
    zero: float | int | None

    @property
    def title(self) -> str:
        """The title of the axis."""
        return "training tokens (log)" if self.unit == "tokens" else "training step (log)"

    def positions(self, checkpoints: Sequence[Checkpoint]) -> Float[np.ndarray, " ckpts"]:
        """The x of each checkpoint; NaN where it is not known."""
        x = np.array([amount_of(checkpoint, self.unit) for checkpoint in checkpoints])
        return np.where(x == 0, math.nan if self.zero is None else self.zero, x)

    def ticks(self) -> tuple[list[float], list[str]]:
        """Decades and, where there are few of them, steps between."""
        low, high = math.log10(self.first), math.log10(self.last)
        factors = (1,) if high - low > 3.2 else (1, 3) if high - low > 1.2 else (1, 2, 5)
        decades = [10.0**power for power in range(math.floor(low), math.ceil(high) + 1)]
        values = [factor * decade for decade in decades for factor in factors]
        values = [value for value in values if self.first * 0.999 <= value <= self.last * 1.001]
        if len(values) < 2 and self.first < self.last:
            values = [float(self.first), float(self.last)]
        while len(values) > 6:
            values = values[::-2][::-1]
        labels = [short_count(value) for value in values]
        if self.zero is None:
            return values, labels
        return [self.zero, *values], ["0", *labels]


def training_axis(series: Sequence[Sequence[Checkpoint]], unit: AxisUnit) -> TrainingAxis:
    """The axis for the checkpoints of several runs; in steps where tokens are not known or do not tell them apart.

    Raises:
        WorkbenchError: if some checkpoint's step is not known either.
    """
    checkpoints = [checkpoint for of_run in series for checkpoint in of_run]
    if any(checkpoint.tokens is None for checkpoint in checkpoints) or any(map(_is_tied, series)):
        unit = "step"
    names, amounts = [c.name for c in checkpoints], [amount_of(c, unit) for c in checkpoints]
    unplaced = [name for name, amount in zip(names, amounts, strict=True) if math.isnan(amount)]
    if unplaced:
        raise WorkbenchError(f"no step is known of {', '.join(unplaced)}: give it in series.toml and scan again")
    positive = [amount for amount in amounts if amount > 0] or [1.0]
    first, last = min(positive), max(positive)
    if 0 not in amounts:
        return TrainingAxis(unit, first, last, zero=None)
    return TrainingAxis(unit, first, last, zero=first / max(1.6, (last / first) ** 0.08))


def _is_tied(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether checkpoints of different steps have the same tokens."""
    both = {(checkpoint.tokens, amount_of(checkpoint, "step")) for checkpoint in checkpoints}
    return len({tokens for tokens, _ in both}) < len(both)


def cell_edges(positions: Float[np.ndarray, " ckpts"]) -> Float[np.ndarray, " edges"]:
    """The borders of heatmap columns around sorted positions, half way between them on the log scale."""
    log = np.log10(positions)
    if len(log) == 1:
        return 10 ** np.array([log[0] - 0.1, log[0] + 0.1])
    middle = (log[1:] + log[:-1]) / 2
    return 10 ** np.array([2 * log[0] - middle[0], *middle, 2 * log[-1] - middle[-1]])


def draw_axis(figure: go.Figure, axis: TrainingAxis, theme: Theme) -> go.Figure:
    """Set all x axes of a figure to the training axis, and mark its break."""
    values, labels = axis.ticks()
    start, end = math.log10(axis.zero or axis.first), math.log10(axis.last)
    pad = max(0.02 * (end - start), 0.02)
    figure.update_xaxes(type="log", tickvals=values, ticktext=labels, range=[start - pad, end + pad])
    if axis.zero is None:
        return figure
    for name, x_axis in dict(figure.to_plotly_json()["layout"]).items():
        if name.startswith("xaxis") and x_axis.get("showticklabels", True):
            number = name.removeprefix("xaxis")
            figure.add_annotation(
                x=(start + math.log10(axis.first)) / 2,  # annotations on a log axis take the logarithm
                xref=f"x{number}",
                y=0,
                yref=f"y{number} domain",
                yanchor="top",
                text="//",
                showarrow=False,
                font={"size": 11, "color": PALETTES[theme].muted},
            )
    return figure


def amount_of(checkpoint: Checkpoint, unit: AxisUnit) -> float:
    """Tokens or steps of the whole lineage, NaN where unknown."""
    if unit == "tokens":
        amount = checkpoint.tokens
    else:
        amount = checkpoint.step if checkpoint.step_total is None else checkpoint.step_total
    return math.nan if amount is None else float(amount)
