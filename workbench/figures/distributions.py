"""How all heads' scores are spread, checkpoint below checkpoint: where a class of heads parts from the rest."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from workbench.emergence.head_trajectories import Trajectories, short_count
from workbench.figures.head_curves import Runs, as_runs
from workbench.figures.style import PALETTES, Scale, Theme, line_style, styled
from workbench.figures.trajectories import score_scale, trajectories

_BINS = 32
_HEIGHT = 0.92  # of a row


def ridgelines(
    run: Runs, *, detector: str, probe: str | None = None, rows: int = 9, theme: Theme = "light"
) -> go.Figure:
    """Histograms of all heads' scores over training, the last on top, one panel per run.

    Heights are the logarithm of 1 + heads: a single head out of thousands stays visible.

    Raises:
        WorkbenchError: if a run has no such scores.
    """
    runs = as_runs(run)
    each = [trajectories(one, detector, probe) for one in runs]
    scale = _lowered(score_scale(detector, [found.score for found in each]), each)
    figure = make_subplots(1, len(runs), subplot_titles=[one.name for one in runs], horizontal_spacing=0.06)
    for i, found in enumerate(each):
        columns = _spread(found, rows)
        for row, column in enumerate(columns):
            _add_ridge(figure, found, column, row=row, panel=i + 1, scale=scale, colour=line_style(i, theme)["color"])
        ticks = [_label(found, column) for column in columns]
        figure.update_yaxes(tickvals=list(range(len(columns))), ticktext=ticks, row=1, col=i + 1)
        figure.update_yaxes(range=[-0.1, len(columns) + 0.05], row=1, col=i + 1)
    styled(figure, theme, height=260)
    title = f"{detector} ({scale.unit})" if scale.unit else f"{detector} score"
    figure.update_xaxes(title_text=title, range=[scale.low, scale.high])
    figure.update_yaxes(showgrid=False, ticks="")
    for annotation in figure.layout.annotations:
        annotation.font = {"size": 12, "color": PALETTES[theme].text}
    return figure


def _spread(found: Trajectories, most: int) -> list[int]:
    """At most so many of the checkpoints that have scores, the first and the last among them."""
    there = np.flatnonzero(~np.isnan(found.score).all(0))
    return sorted({int(there[round(at)]) for at in np.linspace(0, len(there) - 1, min(most, len(there)))})


def _lowered(scale: Scale, each: list[Trajectories]) -> Scale:
    """Where some scores are negative, from just below the lowest."""
    low = min((float(np.nanmin(found.score)) for found in each if not np.isnan(found.score).all()), default=0.0)
    return Scale(max(scale.low, np.floor(10 * low) / 10), scale.high, scale.unit) if scale.is_signed else scale


def _add_ridge(
    figure: go.Figure, found: Trajectories, column: int, *, row: int, panel: int, scale: Scale, colour: str
) -> None:
    edges, counts = _histogram(found.score[:, column], scale)
    highest = np.log1p(len(found.heads))
    y = row + _HEIGHT * np.log1p(counts) / highest
    x = np.repeat(edges, 2)[1:-1]
    figure.add_scatter(
        x=[x[0], *x, x[-1]],
        y=[row, *np.repeat(y, 2), row],
        mode="lines",
        line={"color": colour, "width": 1},
        fill="toself",
        opacity=0.75,
        hoveron="fills",
        text=f"{found.checkpoints[column]}: {int(counts.sum())} heads with a score",
        hoverinfo="text",
        showlegend=False,
        row=1,
        col=panel,
    )


def _histogram(
    scores: Float[np.ndarray, " heads"], scale: Scale
) -> tuple[Float[np.ndarray, " edges"], Float[np.ndarray, " bins"]]:
    edges = np.linspace(scale.low, scale.high, _BINS + 1)
    there = np.clip(scores[~np.isnan(scores)], scale.low, scale.high)
    return edges, np.histogram(there, edges)[0].astype(np.float64)


def _label(found: Trajectories, column: int) -> str:
    at = found.checkpoints[column]
    return short_count(at.tokens) if at.tokens is not None else str(at).removeprefix("step ")
