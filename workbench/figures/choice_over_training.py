"""What the final model is worth with the heads that each checkpoint would have chosen, over training."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go

from workbench.emergence.head_trajectories import checkpoint_of
from workbench.figures.axis import AxisUnit, draw_axis, training_axis
from workbench.figures.style import PALETTES, Theme, line_style, styled
from workbench.figures.trajectories import records

Measure = Literal["accuracy", "nats", "lost"]
_TITLES = {"accuracy": "answers right", "nats": "nats per answer", "lost": "nats lost against the last choice"}
_DASHES = {"all": "solid", "random": "dash", "none": "dot"}


@runtime_checkable
class EarlyLike(Protocol):
    """What the figure reads: see `workbench.experiments.EarlyChoices`."""

    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def references(self) -> pd.DataFrame: ...
    @property
    def detector(self) -> str: ...
    @property
    def window(self) -> int: ...


def early_choices(
    choices: EarlyLike, *, measure: Measure = "accuracy", x: AxisUnit = "tokens", theme: Theme = "light"
) -> go.Figure:
    """The final model by the checkpoint its full heads were chosen at, a line per probe with its interval.

    Grey lines: all heads full, random choices, none full.
    """
    figure = go.Figure()
    groups = list(choices.table.groupby("probe", sort=False))
    every = [checkpoint_of(row) for row in records(choices.table, "ckpt", "branch", "step", "step_total", "tokens")]
    axis = training_axis([every], x)
    for i, (probe, group) in enumerate(groups):
        rows = records(
            group,
            *("ckpt", "branch", "step", "step_total", "tokens"),
            measure,
            f"{measure}_lo",
            f"{measure}_hi",
            "heads",
        )
        places = [checkpoint_of(row) for row in rows]
        values = [row[measure] for row in rows]
        spread = [[_gap(row[f"{measure}_{end}"], row[measure]) for row in rows] for end in ("hi", "lo")]
        figure.add_scatter(
            x=axis.positions(places),
            y=values,
            error_y={"type": "data", "array": spread[0], "arrayminus": spread[1], "thickness": 1, "width": 2},
            name=str(probe),
            mode="lines+markers",
            line=line_style(i, theme),
            marker={"size": 5},
            text=[f"chosen at {place}<br>{row['heads']}" for place, row in zip(places, rows, strict=True)],
            hovertemplate=f"{probe} %{{y:.3f}}<br>%{{text}}<extra></extra>",
        )
    for row in choices.references.to_dict("records") if len(groups) == 1 else ():
        figure.add_hline(
            y=row[measure],
            line={"color": PALETTES[theme].muted, "width": 1, "dash": _DASHES[row["choice"]]},
            annotation_text=f"{row['choice']} full" if row["choice"] != "random" else "random heads full",
            annotation_font_size=10,
        )
    styled(figure, theme, height=320)
    figure.update_xaxes(title_text=f"heads chosen by {choices.detector} at this checkpoint, {axis.title}")
    figure.update_yaxes(title_text=_TITLES[measure])
    return draw_axis(figure, axis, theme)


def _gap(end: float | None, value: float) -> float:
    return 0.0 if end is None else abs(end - value)
