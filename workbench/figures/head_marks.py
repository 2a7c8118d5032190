"""Marks of chosen heads in figures that have a cell for every head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from workbench.figures.style import ONSET, PALETTES, Theme
from workbench.heads import Head

Mark = Literal["dot", "ring"]
_CORNER = 0.33  # of a cell, up and left of its middle


def mark_heads(
    figure: go.Figure, heads: Mapping[str, Collection[Head]], *, mark: Mark = "dot", theme: Theme = "light"
) -> go.Figure:
    """Mark heads in a figure of `heads`: a dot in a corner of their cells, or a ring around it.

    Args:
        heads: run name -> its heads; those that the figure does not show are left out.
    """
    traces: Any = figure.data
    panels = [trace for trace in traces if trace.type == "heatmap" and trace.name in heads]
    for panel in panels:
        labels = {str(head) for head in heads[panel.name]}
        cells = [(row, column) for (row, column), label in np.ndenumerate(panel.customdata) if label in labels]
        ring = {"symbol": "square-open", "size": 15, "color": PALETTES[theme].text, "line": {"width": 2}}
        corner = _CORNER if mark == "dot" else 0  # beside the number in the cell
        dot = {"symbol": "circle", "size": 6, "color": ONSET, "line": {"width": 1, "color": "#ffffff"}}
        figure.add_scatter(
            x=[column - corner for _, column in cells],
            y=[row - corner for row, _ in cells],
            xaxis=panel.xaxis,
            yaxis=panel.yaxis,
            mode="markers",
            marker=dot if mark == "dot" else ring,
            hoverinfo="skip",
            showlegend=False,
            name=f"{mark}s",
        )
    return figure
