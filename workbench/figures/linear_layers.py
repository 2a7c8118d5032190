"""Linear attention: errors of low-precision states over length, and its cost beside that of softmax."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.style import PALETTES, Theme, line_style, styled
from workbench.heads import WorkbenchError

_PRECISION_COLUMNS = ("layer", "head", "slope", "precision", "tokens", "error")
_CROSSOVER_COLUMNS = ("terms", "unit", "tokens", "softmax", "linear", "break_even")


def state_precision(table: pd.DataFrame, *, theme: Theme = "light") -> go.Figure:
    """Relative error of each linear head's output over tokens, one panel per layer, one colour per precision.

    The bold line is the worst head, the thin line the median.

    Args:
        table: of `workbench.analysis.state_precision.state_precision_table`.

    Raises:
        WorkbenchError: if the table is empty or has other columns.
    """
    _check(table, _PRECISION_COLUMNS)
    layers, precisions = sorted(table["layer"].unique()), list(table["precision"].unique())
    figure = make_subplots(
        rows=1,
        cols=len(layers),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[f"layer {layer}" for layer in layers],
    )
    groups = dict(iter(table.groupby(["layer", "precision"])))
    for column, layer in enumerate(layers):
        for i, precision in enumerate(precisions):
            rows = groups[layer, precision]
            worst, median = _precision_lines(rows, precision, line_style(i, theme))
            figure.add_trace(go.Scatter(**worst, showlegend=column == 0), 1, column + 1)
            figure.add_trace(go.Scatter(**median, showlegend=False), 1, column + 1)
    styled(figure, theme, height=340)
    figure.update_xaxes(type="log", title_text="tokens (log)")
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_yaxes(title_text="relative error of the output (log)", col=1)
    return figure


def crossover(table: pd.DataFrame, *, theme: Theme = "light") -> go.Figure:
    """Cost per token of softmax and of linear attention over context length, one panel per choice of terms.

    Args:
        table: of `workbench.analysis.crossover.crossover_table`.

    Raises:
        WorkbenchError: if the table is empty or has other columns.
    """
    _check(table, _CROSSOVER_COLUMNS)
    panels = list(table.groupby("terms", sort=False))
    titles = [f"{terms}: {rows['break_even'].iloc[0]:,.0f} tokens" for terms, rows in panels]
    figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.09, subplot_titles=titles)
    for column, (_, rows) in enumerate(panels):
        unit = str(rows["unit"].iloc[0])
        for i, kind in enumerate(("softmax", "linear")):
            hover = [
                f"{kind}, {n:,} tokens: {cost:.3g} {unit}" for n, cost in zip(rows["tokens"], rows[kind], strict=True)
            ]
            figure.add_trace(
                go.Scatter(
                    x=rows["tokens"].tolist(),
                    y=rows[kind].tolist(),
                    name=kind,
                    line=line_style(i, theme),
                    mode="lines",
                    text=hover,
                    hoverinfo="text",
                    legendgroup=kind,
                    showlegend=column == 0,
                ),
                1,
                column + 1,
            )
        figure.add_vline(
            x=float(rows["break_even"].iloc[0]),
            line={"color": PALETTES[theme].cursor, "width": 1, "dash": "dot"},
            row=1,  # pyright: ignore[reportArgumentType]
            col=column + 1,  # pyright: ignore[reportArgumentType]
        )
        figure.update_yaxes(title_text=f"{unit} per token (log)", col=column + 1)
    styled(figure, theme, height=320)
    figure.update_xaxes(type="log", title_text="context, tokens (log)")
    figure.update_yaxes(type="log", exponentformat="power")
    return figure


def _precision_lines(
    rows: pd.DataFrame, precision: str, style: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    by_length = rows.groupby("tokens").error
    worst = rows.loc[by_length.idxmax()]
    median = by_length.median()
    shared = {"mode": "lines", "legendgroup": precision, "name": precision, "hoverinfo": "text"}
    return (
        {
            "x": worst["tokens"].tolist(),
            "y": worst["error"].tolist(),
            "line": {**style, "width": 2.5},
            "text": [
                f"{precision}, {row.tokens:,} tokens<br>worst: L{row.layer}H{row.head}, {row.error:.2g}"
                for row in worst.itertuples()
            ],
            **shared,
        },
        {
            "x": [int(n) for n in median.index],
            "y": median.tolist(),
            "line": {**style, "width": 1},
            "text": [f"{precision}, {n:,} tokens<br>median head: {error:.2g}" for n, error in median.items()],
            **shared,
        },
    )


def _check(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing or table.empty:
        raise WorkbenchError(
            f"a table of {len(table)} rows and the columns {list(table.columns)} was given; expected some rows of "
            f"{', '.join(columns)}"
        )
