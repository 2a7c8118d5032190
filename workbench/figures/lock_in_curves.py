"""Lock-in over training: how far heads agree with a later checkpoint, over all heads and within layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.emergence.head_trajectories import checkpoint_of
from workbench.figures.axis import AxisUnit, draw_axis, training_axis
from workbench.figures.style import COLOURS, PALETTES, Theme, styled
from workbench.figures.trajectories import records
from workbench.heads import WorkbenchError

_LINES = (
    ("lock_in", "all heads", "dash", 0),
    ("lock_in_within", "within layers", "solid", 1),
    ("jaccard", "top k in common", "dot", 2),
    ("amplitude", "size of the top k", "dashdot", 3),
)
_WHERE = ("ckpt", "branch", "step", "step_total", "tokens")


def lock_in(table: pd.DataFrame, *, x: AxisUnit = "tokens", theme: Theme = "light") -> go.Figure:
    """Agreement with the reference over training, as shares of the probe's noise ceiling.

    Args:
        table: of `Run.lock_in()`.

    Raises:
        WorkbenchError: if the table is empty.
    """
    if table.empty:
        raise WorkbenchError("there is no lock-in to draw: the table is empty")
    rows = records(table, *_WHERE, "reference", "n_heads", "p_within", *(name for name, *_ in _LINES))
    places = [checkpoint_of(row) for row in rows]
    axis = training_axis([places], x)
    at = axis.positions(places)
    figure = go.Figure()
    for name, label, dash, colour in _LINES:
        for i, branch in enumerate(dict.fromkeys(place.branch for place in places)):
            mine = [j for j, place in enumerate(places) if place.branch == branch]
            figure.add_scatter(
                x=[at[j] for j in mine],
                y=[rows[j][name] for j in mine],
                name=label,
                legendgroup=label,
                showlegend=i == 0,
                mode="lines+markers",
                line={"color": COLOURS[theme][colour], "dash": dash, "width": 2.5 if name == "lock_in_within" else 1.5},
                marker={"size": 4},
                text=[f"{places[j]}<br>{_said(rows[j], name, label)}" for j in mine],
                hovertemplate="%{text}<extra></extra>",
            )
    figure.add_hline(y=1, line={"color": PALETTES[theme].muted, "width": 1, "dash": "dot"})
    styled(figure, theme, height=300)
    drawn = [row[name] for row in rows for name, *_ in _LINES if row[name] is not None]
    low, high = min(0.0, *drawn), max(1.0, *drawn)
    figure.update_yaxes(range=[low - 0.03, float(np.clip(high, 1, 2)) + 0.03], title_text="share of the noise ceiling")
    figure.update_xaxes(title_text=axis.title)
    return draw_axis(figure, axis, theme)


def _said(row: dict[str, Any], name: str, label: str) -> str:
    value = "not known: the probe does not tell heads apart" if row[name] is None else f"{row[name]:.3f}"
    chance = f" · p = {row['p_within']:.3f}" if name == "lock_in_within" and row["p_within"] is not None else ""
    return f"{label} {value}{chance}<br>against {row['reference']} · {row['n_heads']} heads"
