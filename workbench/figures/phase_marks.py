"""When a model-level number changed its course, marked in another figure over training."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from workbench.emergence.head_trajectories import short_count
from workbench.figures.axis import AxisUnit
from workbench.figures.style import Theme, line_style
from workbench.figures.trajectories import records

_RULER = "y99"  # an axis of its own, so that marks lie at the foot whatever the figure counts


def mark_phases(
    figure: go.Figure, changes: Mapping[str, pd.DataFrame], *, x: AxisUnit = "tokens", theme: Theme = "light"
) -> go.Figure:
    """Add to a figure over training, for each run, a dotted line where half of a phase change was over.

    Args:
        changes: run name, in the order of the figure's runs -> rows of `Run.phase_changes()` to mark; those that are no
            change, or count in another unit than the axis, are left out.
    """
    for i, (name, table) in enumerate(changes.items()):
        for row in records(table, "metric", "probe", "unit", "is_change", "n10", "n50", "n90"):
            if row["is_change"] and row["n50"] is not None and row["unit"] == x:
                figure.add_vline(
                    x=row["n50"], line={"color": line_style(i, theme)["color"], "width": 1.5, "dash": "dot"}, name=name
                )
                figure.add_scatter(
                    x=[row["n50"]],
                    y=[0.02],
                    yaxis=_RULER,
                    mode="markers",
                    marker={"symbol": "triangle-up", "size": 9, "color": line_style(i, theme)["color"]},
                    hovertemplate=f"<b>{name}</b>: phase change of {row['metric']} on {row['probe']}<br>"
                    f"half over at {short_count(row['n50'])} {x}, 10 to 90 % between {short_count(row['n10'])} and "
                    f"{short_count(row['n90'])}<extra></extra>",
                    showlegend=False,
                )
    return figure.update_layout({f"yaxis{_RULER[1:]}": {"overlaying": "y", "range": [0, 1], "visible": False}})
