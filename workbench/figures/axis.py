"""The training axis: tokens (or steps) on a log scale, step 0 left of a break, unknown steps right of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from workbench.emergence.head_trajectories import Checkpoint, short_count
from workbench.figures.style import PALETTES, Theme

AxisUnit = Literal["tokens", "step"]
_MOST_TICKS = 6
# Characters of the name of a checkpoint at a tick: among the ticks of training, and alone.
_LONGEST_BESIDE, _LONGEST_TICK = 10, 18
# Of the width of the figure: between training and a checkpoint without a step, and behind it.
_GAP, _ROOM = 0.16, 0.06


@dataclass(frozen=True, slots=True)
class TrainingAxis:
    """The x axis of a figure over training, the same for all its runs.

    `zero` is the x at which step 0 is drawn; None where no checkpoint is at 0. `unplaced` maps the name of each
    checkpoint whose step is not known, as of a single model, to its x: they stand behind all others, in the order of
    their runs. `is_placed`: some checkpoint's step is known.
    """

    unit: AxisUnit
    first: float | int
    last: float | int
    zero: float | int | None
    unplaced: Mapping[str, float] = field(default_factory=dict[str, float])
    is_placed: bool = True

    @property
    def title(self) -> str:
        """The title of the axis."""
        if not self.is_placed:
            return "checkpoint (no step is known)" if len(self.unplaced) == 1 else "checkpoints (no steps are known)"
        title = "training tokens (log)" if self.unit == "tokens" else "training step (log)"
        return f"{title} · right of //: no step known" if self.unplaced else title

    def amounts(self, checkpoints: Sequence[Checkpoint]) -> Float[np.ndarray, " ckpts"]:
        """The tokens or steps of each checkpoint; of one without a step the x that it stands at."""
        amounts = [amount_of(checkpoint, self.unit) for checkpoint in checkpoints]
        names = [checkpoint.name for checkpoint in checkpoints]
        placed = [self.unplaced.get(n, a) if math.isnan(a) else a for n, a in zip(names, amounts, strict=True)]
        return np.array(placed, dtype=np.float64)

    def positions(self, checkpoints: Sequence[Checkpoint]) -> Float[np.ndarray, " ckpts"]:
        """The x of each checkpoint; NaN where the axis was made without it."""
        x = self.amounts(checkpoints)
        return np.where(x == 0, math.nan if self.zero is None else self.zero, x)

    @property
    def end(self) -> float | int:
        """The largest x of a checkpoint."""
        return max(self.unplaced.values(), default=self.last)

    def name_of(self, amount: float | int) -> str:
        """A value of `amounts` in words: its tokens or its step, or the name of a checkpoint without a step."""
        names = [name for name, x in self.unplaced.items() if x == amount]
        if names:
            return names[0]
        return f"{short_count(amount)} tokens" if self.unit == "tokens" else f"step {int(amount):,}"

    def ticks(self) -> tuple[list[float], list[str]]:
        """Decades and, where there are few of them, steps between; checkpoints without a step by their names."""
        values, labels = self._ticks_of_training() if self.is_placed else ([], [])
        every = -(-len(self.unplaced) // _MOST_TICKS) or 1
        unplaced = list(self.unplaced.items())[::every]
        longest = _LONGEST_BESIDE if self.is_placed else _LONGEST_TICK
        return [*values, *(x for _, x in unplaced)], [*labels, *(shortened(name, longest) for name, _ in unplaced)]

    def _ticks_of_training(self) -> tuple[list[float], list[str]]:
        low, high = math.log10(self.first), math.log10(self.last)
        factors = (1,) if high - low > 3.2 else (1, 3) if high - low > 1.2 else (1, 2, 5)
        decades = [10.0**power for power in range(math.floor(low), math.ceil(high) + 1)]
        values = [factor * decade for decade in decades for factor in factors]
        values = [value for value in values if self.first * 0.999 <= value <= self.last * 1.001]
        if len(values) < 2 and self.first < self.last:
            values = [float(self.first), float(self.last)]
        while len(values) > _MOST_TICKS:
            values = values[::-2][::-1]
        labels = [short_count(value) for value in values]
        if self.zero is None:
            return values, labels
        return [self.zero, *values], ["0", *labels]


def training_axis(series: Sequence[Sequence[Checkpoint]], unit: AxisUnit) -> TrainingAxis:
    """The axis for the checkpoints of several runs; in steps where tokens are not known or do not tell them apart.

    A checkpoint of which no step is known changes nothing for the others: it stands right of a break at their end.
    """
    without_step = [c.name for of_run in series for c in of_run if math.isnan(amount_of(c, "step"))]
    placed = [[c for c in of_run if c.name not in without_step] for of_run in series]
    if any(c.tokens is None for of_run in placed for c in of_run) or any(map(_is_tied, placed)):
        unit = "step"
    checkpoints = [c for of_run in series for c in of_run]
    amounts = [amount for c in checkpoints if not math.isnan(amount := amount_of(c, unit))]
    unplaced = list(dict.fromkeys(c.name for c in checkpoints if math.isnan(amount_of(c, unit))))
    positive = [amount for amount in amounts if amount > 0] or [1.0]
    first, last = min(positive), max(positive)
    gap, behind = max(1.6, (last / first) ** 0.08), max(1.6, (last / first) ** _GAP)
    return TrainingAxis(
        unit,
        first,
        last,
        zero=first / gap if 0 in amounts else None,
        unplaced={name: float(last * behind ** (k + 1)) for k, name in enumerate(unplaced)},
        is_placed=bool(amounts),
    )


def shortened(label: str, longest: int) -> str:
    """A label of at most so many characters: its beginning and its end, which tell checkpoints apart."""
    if len(label) <= longest:
        return label
    end = (longest - 1) // 2
    return f"{label[: longest - 1 - end]}…{label[-end:]}"


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


def draw_axis(figure: go.Figure, axis: TrainingAxis, theme: Theme, *, most: int | None = None) -> go.Figure:
    """Set all x axes of a figure to the training axis, and mark its breaks; of its ticks at most so many are drawn."""
    values, labels = axis.ticks()
    if most is not None and len(values) > most:
        drawn = np.linspace(0, len(values) - 1, most).round().astype(int).tolist()
        values, labels = [values[i] for i in drawn], [labels[i] for i in drawn]
    first_unplaced = min(axis.unplaced.values(), default=axis.last)
    start, end = math.log10(axis.zero or (axis.first if axis.is_placed else first_unplaced)), math.log10(axis.end)
    pad = max(0.02 * (end - start), 0.02)
    room = max(pad, _ROOM * (end - start)) if axis.is_placed and axis.unplaced else pad
    figure.update_xaxes(type="log", tickvals=values, ticktext=labels, range=[start - pad, end + room], tickangle=0)
    breaks = [] if axis.zero is None else [(axis.zero, axis.first)]
    if axis.is_placed and axis.unplaced:
        breaks.append((axis.last, first_unplaced))
    for name, x_axis in dict(figure.to_plotly_json()["layout"]).items() if breaks else ():
        if not (name.startswith("xaxis") and x_axis.get("showticklabels", True)):
            continue
        number = name.removeprefix("xaxis")
        for left, right in breaks:
            figure.add_annotation(
                x=(math.log10(left) + math.log10(right)) / 2,  # annotations on a log axis take the logarithm
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
