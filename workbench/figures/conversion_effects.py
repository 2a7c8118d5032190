"""A conversion study drawn: recall by distance for each keep-set, heads before and after continued pretraining.

And what a window and linear attention cost each head. The first two take `Results.measured` and `Results.scores` of
`workbench.experiments`; report.json has the former, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.style import COLOURS, PALETTES, Theme, line_style, styled
from workbench.heads import WorkbenchError

_KEPT = ("all", "induction", "random_non_top", "least_induction", "none")


def recall_by_distance(
    measured: pd.DataFrame,
    *,
    training: str = "no training",
    n_kept: int,
    window: int | None = None,
    methods: Sequence[str] = _KEPT,
    theme: Theme = "light",
) -> go.Figure:
    """Share of needle words copied right by distance in tokens, a line per keep-set; bars: one deviation over seeds.

    Random draws of a seed are averaged first. `n_kept`: heads full, where a method has several numbers. `window`: drawn
    as a line.

    Raises:
        WorkbenchError: if nothing was measured after this training.
    """
    table: Any = measured
    table = table[(table.probe == "needle") & table.label.notna() & (table.training == training)]
    if table.empty:
        trainings = ", ".join(map(repr, dict.fromkeys(measured.loc[:, "training"])))
        raise WorkbenchError(f"no needles were measured after {training!r}; there are {trainings}")
    figure = go.Figure()
    for i, method in enumerate(methods):
        mine = table[table.method == method]
        mine = mine[mine.n_kept == n_kept] if mine.n_kept.nunique() > 1 else mine
        if mine.empty:
            continue
        each = mine.groupby(["label", "seed"]).accuracy.mean().groupby("label")
        mean, deviation = each.mean(), each.std().fillna(0)
        label = f"{method}, {int(mine.n_kept.iloc[0])} full"
        figure.add_scatter(
            x=mean.index.to_numpy(),
            y=mean.to_numpy(),
            error_y={"type": "data", "array": deviation.to_numpy(), "thickness": 1, "width": 3},
            name=label,
            mode="lines+markers",
            line=line_style(i, theme),
            hovertemplate=f"{label}<br>distance %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    if window is not None:
        figure.add_vline(x=window, line={"dash": "dot", "color": PALETTES[theme].muted}, annotation_text="window")
    styled(figure, theme, height=320)
    figure.update_xaxes(title_text="distance to the needle (tokens)")
    figure.update_yaxes(title_text="copied right", range=[-0.03, 1.03])
    return figure


def heads_before_and_after(
    scores: pd.DataFrame, *, training: str, method: str, detector: str = "retrieval", theme: Theme = "light"
) -> go.Figure:
    """Every head's score before and after, windows lifted on both sides; on the diagonal nothing has moved.

    Raises:
        WorkbenchError: if there are no such scores.
    """
    table: Any = scores
    table = table[table.lifted & (table.detector == detector)]
    heads = ["seed", "layer", "head"]
    before = table[table.training == "no training"].set_index(heads).score
    after = table[(table.training == training) & (table.method == method) & (table.draw == 0)]
    after = after.set_index(heads).score
    if before.empty or after.empty:
        raise WorkbenchError(f"there are no {detector} scores of {method!r} before and after {training!r}")
    both = pd.DataFrame({"before": before, "after": after}).dropna().reset_index()
    names = [f"seed {r['seed']} L{r['layer']}H{r['head']}" for r in both.to_dict("records")]
    figure = _by_layer(both.assign(name=names), "before", "after", hover="%{x:.3f} → %{y:.3f}", theme=theme)
    figure.update_xaxes(title_text=f"{detector} before")
    figure.update_yaxes(title_text=f"{detector} after")
    return figure


def window_against_linear(table: pd.DataFrame, *, theme: Theme = "light") -> go.Figure:
    """What a window costs each head (x) and what linear attention does (y), in nats per answer, a point per head.

    On the dotted line both cost the same; above it a head needs softmax more than it needs the far context.

    Args:
        table: `layer, kv_head, window_nats, linear_nats`, as `SafeForms.table()` has them, and `seed` if there are
            several models.

    Raises:
        WorkbenchError: if a column is missing.
    """
    missing = [c for c in ("layer", "kv_head", "window_nats", "linear_nats") if c not in table.columns]
    if missing:
        raise WorkbenchError(f"the table has no {', '.join(missing)}; expected those of SafeForms.table()")
    named = table.assign(name=[_named(row) for row in table.to_dict("records")])
    hover = "window %{x:.3f}, linear %{y:.3f}"
    figure = _by_layer(named, "window_nats", "linear_nats", hover=hover, theme=theme)
    figure.update_xaxes(title_text="cost of a window (nats per answer)")
    figure.update_yaxes(title_text="cost of linear attention")
    return figure


def _by_layer(table: pd.DataFrame, x: str, y: str, *, hover: str, theme: Theme) -> go.Figure:
    """A point per row at two of its columns, a colour per layer, and the line on which both are the same."""
    values = table[[x, y]].to_numpy(dtype=float)
    ends = [float(np.min(values)), float(np.max(values))]
    figure = go.Figure()
    line = {"dash": "dot", "width": 1, "color": PALETTES[theme].muted}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    rows: Any = table
    for i, (layer, mine) in enumerate(rows.groupby("layer")):
        figure.add_scatter(
            x=mine[x].to_numpy(),
            y=mine[y].to_numpy(),
            name=f"layer {layer}",
            mode="markers",
            marker={"size": 8, "color": COLOURS[theme][i % len(COLOURS[theme])], "opacity": 0.8},
            text=mine["name"].tolist(),
            hovertemplate=f"%{{text}}<br>{hover}<extra></extra>",
        )
    styled(figure, theme, height=360)
    return figure


def _named(row: dict[str, Any]) -> str:
    head = f"L{row['layer']}KV{row['kv_head']}"
    return f"seed {row['seed']} {head}" if "seed" in row else head
