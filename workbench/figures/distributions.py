"""Distributions of head scores, a histogram per checkpoint: where a class of heads parts from the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from workbench.emergence.head_trajectories import Trajectories, short_count
from workbench.figures.axis import shortened
from workbench.figures.head_curves import Runs, as_runs
from workbench.figures.style import PALETTES, Scale, Theme, line_style, styled
from workbench.figures.trajectories import score_scale, trajectories

_BINS = 32
_LONGEST_LABEL = 10  # characters
_HEIGHT = 0.92  # of a row


def ridgelines(
    run: Runs, *, detector: str, probe: str | None = None, rows: int = 9, theme: Theme = "light"
) -> go.Figure:
    """Histograms of all heads' scores over training, the last on top, one panel per run.

    Heights are the logarithm of 1 + heads: one head among thousands stays visible.

    Raises:
        WorkbenchError: if a run has no such scores.
    """
    runs = as_runs(run)
    curves_of_runs = [trajectories(each_run, detector, probe) for each_run in runs]
    scores = [curves.score for curves in curves_of_runs]
    scale = score_scale(detector, scores).lowered(scores)
    spacing = min(0.06, 0.35 / len(runs))
    figure = make_subplots(
        1, len(runs), subplot_titles=[each_run.name for each_run in runs], horizontal_spacing=spacing
    )
    for i, curves in enumerate(curves_of_runs):
        columns = _evenly_spaced(curves, rows)
        line = {"color": line_style(i, theme)["color"], "width": 1}
        for row, column in enumerate(columns):
            figure.add_scatter(**_ridge(curves, column, scale, row=row), line=line, row=1, col=i + 1)
        labels = [shortened(_checkpoint_label(curves, column), _LONGEST_LABEL) for column in columns]
        figure.update_yaxes(tickvals=list(range(len(columns))), ticktext=labels, row=1, col=i + 1)
        figure.update_yaxes(range=[-0.1, len(columns) + 0.05], row=1, col=i + 1)
    styled(figure, theme, height=260)
    figure.update_layout(margin={"l": 24 + 6 * _LONGEST_LABEL})
    title = f"{detector} ({scale.unit})" if scale.unit else f"{detector} score"
    figure.update_xaxes(title_text=title, range=[scale.low, scale.high])
    figure.update_yaxes(showgrid=False, ticks="")
    for annotation in figure.layout.annotations:
        annotation.font = {"size": 12, "color": PALETTES[theme].text}
    return figure


def _evenly_spaced(curves: Trajectories, most: int) -> list[int]:
    """At most so many of the checkpoints that have scores, the first and the last among them."""
    scored = np.flatnonzero(~np.isnan(curves.score).all(0))
    return sorted({int(scored[round(i)]) for i in np.linspace(0, len(scored) - 1, min(most, len(scored)))})


def _ridge(curves: Trajectories, column: int, scale: Scale, *, row: int) -> dict[str, Any]:
    """The histogram of one checkpoint as a filled outline above its row."""
    edges, counts = _histogram(curves.score[:, column], scale)
    y = row + _HEIGHT * np.log1p(counts) / np.log1p(len(curves.heads))
    x = np.repeat(edges, 2)[1:-1]
    return {
        "x": [x[0], *x, x[-1]],
        "y": [row, *np.repeat(y, 2), row],
        "mode": "lines",
        "fill": "toself",
        "opacity": 0.75,
        "hoveron": "fills",
        "text": f"{curves.checkpoints[column]}: {int(counts.sum())} heads with a score",
        "hoverinfo": "text",
        "showlegend": False,
    }


def _histogram(
    scores: Float[np.ndarray, " heads"], scale: Scale
) -> tuple[Float[np.ndarray, " edges"], Float[np.ndarray, " bins"]]:
    edges = np.linspace(scale.low, scale.high, _BINS + 1)
    clipped = np.clip(scores[~np.isnan(scores)], scale.low, scale.high)
    return edges, np.histogram(clipped, edges)[0].astype(np.float64)


def _checkpoint_label(curves: Trajectories, column: int) -> str:
    checkpoint = curves.checkpoints[column]
    return short_count(checkpoint.tokens) if checkpoint.tokens is not None else str(checkpoint).removeprefix("step ")
