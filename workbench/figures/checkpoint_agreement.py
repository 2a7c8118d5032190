"""Agreement between checkpoints: lock-in over training, rank agreement of every two, scores against scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.console import fixed
from workbench.emergence.head_trajectories import CHECKPOINT_COLUMNS, checkpoint_of
from workbench.figures.axis import AxisUnit, draw_axis, training_axis
from workbench.figures.style import COLOURS, LETTERS, PALETTES, Scale, Theme, colour_axis, styled
from workbench.figures.trajectories import records, score_scale
from workbench.heads import WorkbenchError

_SHAPES = {
    "full": "circle",
    "sliding": "square",
    "chunked": "diamond",
    "sparse": "cross",
    "linear": "triangle-up",
    "none": "x",
}
_LINES = (
    ("lock_in", "all heads", "dash", 0),
    ("lock_in_within", "within layers", "solid", 1),
    ("jaccard", "top k in common", "dot", 2),
    ("amplitude", "size of the top k", "dashdot", 3),
)
_CORRELATIONS = {"rho": "all heads", "rho_within": "within layers"}


def lock_in(table: pd.DataFrame, *, x: AxisUnit = "tokens", theme: Theme = "light") -> go.Figure:
    """Agreement with the reference over training, as shares of the probe's noise ceiling.

    Args:
        table: of `Run.lock_in()`.

    Raises:
        WorkbenchError: if the table is empty.
    """
    if table.empty:
        raise WorkbenchError("there is no lock-in to draw: the table is empty")
    rows = records(table, *CHECKPOINT_COLUMNS, "reference", "n_heads", "p_within", *(name for name, *_ in _LINES))
    checkpoints = [checkpoint_of(row) for row in rows]
    axis = training_axis([checkpoints], x)
    positions = axis.positions(checkpoints)
    figure = go.Figure()
    for name, label, dash, colour in _LINES:
        for i, branch in enumerate(dict.fromkeys(checkpoint.branch for checkpoint in checkpoints)):
            on_branch = [j for j, checkpoint in enumerate(checkpoints) if checkpoint.branch == branch]
            figure.add_scatter(
                x=[positions[j] for j in on_branch],
                y=[rows[j][name] for j in on_branch],
                name=label,
                legendgroup=label,
                showlegend=i == 0,
                mode="lines+markers",
                line={"color": COLOURS[theme][colour], "dash": dash, "width": 2.5 if name == "lock_in_within" else 1.5},
                marker={"size": 4},
                text=[f"{checkpoints[j]}<br>{_format_lock_in(rows[j], name, label)}" for j in on_branch],
                hovertemplate="%{text}<extra></extra>",
            )
    figure.add_hline(y=1, line={"color": PALETTES[theme].muted, "width": 1, "dash": "dot"})
    styled(figure, theme, height=300)
    drawn = [row[name] for row in rows for name, *_ in _LINES if row[name] is not None]
    low, high = min(0.0, *drawn), max(1.0, *drawn)
    figure.update_yaxes(range=[low - 0.03, float(np.clip(high, 1, 2)) + 0.03], title_text="share of the noise ceiling")
    figure.update_xaxes(title_text=axis.title)
    return draw_axis(figure, axis, theme)


def rank_agreement(
    tables: Mapping[str, pd.DataFrame], *, labels: Mapping[str, str] | None = None, theme: Theme = "light"
) -> go.Figure:
    """How alike head scores rank at every two checkpoints, over all heads and within layers: two panels per table.

    Args:
        tables: title -> rows of `emergence.rank_agreement()`; the first column of a table is down, the second across.
        labels: checkpoint name -> its label on the axes.

    Raises:
        WorkbenchError: if there is no table.
    """
    if not tables:
        raise WorkbenchError("there is no agreement to draw; pass a table of `emergence.rank_agreement`")
    panels = [(title, column, scope) for title in tables for column, scope in _CORRELATIONS.items()]
    titles = [f"{title} · {scope}" if title else scope for title, _, scope in panels]
    figure = make_subplots(1, len(panels), subplot_titles=titles, horizontal_spacing=0.34 / len(panels))
    for i, (title, column, _) in enumerate(panels, start=1):
        wide = tables[title].pivot(index="ckpt", columns="reference", values=column)
        rows = list(dict.fromkeys(tables[title]["ckpt"]))
        columns = list(dict.fromkeys(tables[title]["reference"]))
        figure.add_heatmap(
            z=wide.loc[rows, columns].to_numpy(np.float32),
            x=columns,
            y=rows,
            coloraxis="coloraxis",
            hovertemplate="%{y} against %{x}<br>Spearman %{z:.3f}<extra></extra>",
            row=1,
            col=i,
        )
        figure.update_xaxes(**_ticks(columns, labels, 3 if len(panels) > 2 else 5), row=1, col=i)
        figure.update_yaxes(**_ticks(rows, labels, 8), range=[len(rows) - 0.5, -0.5], row=1, col=i)
    styled(figure, theme, height=360)
    figure.update_layout(coloraxis=colour_axis(Scale(-1, 1, ""), theme), plot_bgcolor=PALETTES[theme].missing)
    figure.update_layout(margin={"l": 76})
    figure.update_xaxes(type="category", showgrid=False, ticks="", tickangle=0)
    figure.update_yaxes(type="category", showgrid=False, ticks="")
    for annotation in figure.layout.annotations:
        annotation.font = {"size": 12}
    return figure


def scores_against(pairs: pd.DataFrame, *, detector: str, names: tuple[str, str], theme: Theme = "light") -> go.Figure:
    """Each head's score at one checkpoint against that of its partner at another. On the diagonal nothing moved.

    Args:
        pairs: rows of `emergence.paired()`.
        names: titles of the two axes.

    Raises:
        WorkbenchError: if there are no pairs.
    """
    if pairs.empty:
        raise WorkbenchError("there are no pairs of scores to draw")
    scale = score_scale(detector, [pairs[name].to_numpy(np.float64) for name in ("score", "score_other")])
    room = 0.03 * (scale.high - scale.low)
    ends = [scale.low - room, scale.high + room]
    figure = go.Figure()
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": PALETTES[theme].muted, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    for i, (kind, group) in enumerate(pairs.groupby("kind", sort=True, observed=True)):
        rows = records(group, *group.columns)
        figure.add_scatter(
            x=group["score"],
            y=group["score_other"],
            mode="markers",
            name=f"{LETTERS.get(str(kind), '')} {kind}".strip(),
            marker={
                "size": 8,
                "opacity": 0.75,
                "symbol": _SHAPES.get(str(kind), "circle"),
                "color": COLOURS[theme][i % len(COLOURS[theme])],
                "line": {"width": [2 if row["apart"] else 0 for row in rows], "color": PALETTES[theme].text},
            },
            text=[_format_pair(row, scale.unit) for row in rows],
            customdata=[row["name"] for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
    styled(figure, theme, height=380)
    figure.update_xaxes(title_text=names[0], range=ends)
    figure.update_yaxes(title_text=names[1], range=ends)
    return figure


def _ticks(names: Sequence[str], labels: Mapping[str, str] | None, most: int) -> dict[str, Any]:
    """Labels of some of the checkpoints, the last among them."""
    shown = list(names)[:: -max(1, -(-len(names) // most))][::-1]
    return {"tickvals": shown, "ticktext": [name if labels is None else labels.get(name, name) for name in shown]}


def _format_lock_in(row: dict[str, Any], name: str, label: str) -> str:
    value = "not known: the probe does not tell heads apart" if row[name] is None else fixed(row[name])
    chance = f" · p = {fixed(row['p_within'])}" if name == "lock_in_within" and row["p_within"] is not None else ""
    return f"{label} {value}{chance}<br>against {row['reference']} · {row['n_heads']} heads"


def _format_pair(row: dict[str, Any], unit: str) -> str:
    pair = row["name"] if row["name"] == row["name_other"] else f"{row['name']} and {row['name_other']}"
    values = f"{fixed(row['score'], 4)} and {fixed(row['score_other'], 4)} {unit}".strip()
    if row["apart"] is None:
        difference = f"difference {fixed(row['change'], 4, sign='+')}<br>two heads of one place in their rankings"
        return f"<b>{pair}</b> · {row['kind']}<br>{values}<br>{difference}"
    apart = "the 95 % intervals do not overlap" if row["apart"] else "the 95 % intervals overlap, or are not known"
    return f"<b>{pair}</b> · {row['kind']}<br>{values}<br>change {fixed(row['change'], 4, sign='+')}<br>{apart}"
