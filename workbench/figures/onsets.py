"""Onsets with their intervals: one head's curve with its fits, all heads of a run, and runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.emergence.head_trajectories import checkpoint_of, short_count
from workbench.figures.axis import TrainingAxis, draw_axis, training_axis
from workbench.figures.style import COLOURS, ONSET, PALETTES, Theme, line_style, styled
from workbench.figures.trajectories import records
from workbench.heads import Head, KVHead, WorkbenchError

_WHERE = ("ckpt", "branch", "step", "step_total", "tokens")
_FITS = ("fit_floor", "fit_amplitude", "fit_n50", "fit_width", "n50", "n50_lo", "n50_hi")
_FINE = 200


def onset(scores: pd.DataFrame, traced: pd.DataFrame, head: Head | KVHead, *, theme: Theme = "light") -> go.Figure:
    """One head's scores with their intervals, the logistic, the high mark, and where its onset lies.

    Args:
        scores: rows of `Run.scores()` of one detector on one probe.
        traced: rows of `Run.emergence()` of the same.

    Raises:
        WorkbenchError: if the head is in neither.
    """
    mine, course = _of_head(scores, head), _of_head(traced, head)
    rows = records(mine, *_WHERE, "score", "ci_lo", "ci_hi")
    one = records(course.tail(1), *_FITS, "unit", "high", "verdict", "method", "detector")[0]
    places = [checkpoint_of(row) for row in rows]
    axis = training_axis([places], "step" if one["unit"] == "step" else "tokens")
    figure = go.Figure()
    _add_points(figure, axis, rows, theme)
    if one["n50"] is not None and axis.unit == one["unit"]:
        low, high = (max(one[name], axis.zero or axis.first) for name in ("n50_lo", "n50_hi"))
        figure.add_vrect(x0=low, x1=high, fillcolor=ONSET, opacity=0.15, line_width=0)
        figure.add_vline(x=one["n50"], line={"color": ONSET, "width": 1.5})
    if one["fit_n50"] is not None and axis.unit == one["unit"]:
        _add_fit(figure, axis, one, theme)
    figure.add_hline(y=one["high"], line={"color": PALETTES[theme].muted, "width": 1, "dash": "dot"})
    styled(figure, theme, height=300)
    figure.update_yaxes(title_text=one["detector"])
    figure.update_xaxes(title_text=axis.title)
    figure.update_layout(title={"text": _verdict(head, one), "font": {"size": 13}}, margin={"t": 56})
    return draw_axis(figure, axis, theme)


def compare(tables: Mapping[str, pd.DataFrame], *, detector: str, theme: Theme = "light") -> go.Figure:
    """How many heads of a class each run has by a time, as shares of all its heads, one step line per run and probe.

    Args:
        tables: run name -> rows of `Run.emergence()`.

    Raises:
        WorkbenchError: if no table has the detector, or the runs count in different units or none.
    """
    lines: list[tuple[str, str, pd.DataFrame]] = []
    for name, table in tables.items():
        for probe, group in table.loc[table["detector"] == detector].groupby("probe", sort=True, observed=True):
            lines.append((name, str(probe), group))
    if not lines:
        raise WorkbenchError(f"none of {', '.join(tables) or 'no runs'} has heads traced under {detector}")
    units = sorted({str(group["unit"].iloc[0]) for *_, group in lines})
    if len(units) > 1 or units == [""]:
        raise WorkbenchError(
            f"the runs count in {' and '.join(unit or 'nothing' for unit in units)}; expected one unit"
        )
    every = np.concatenate([group.loc[:, "n50"].dropna().to_numpy(np.float64) for *_, group in lines])
    first, last = (float(every.min()), float(every.max())) if len(every) else (1.0, 10.0)
    axis = TrainingAxis("tokens" if units == ["tokens"] else "step", first, max(last, first * 1.01), zero=None)
    figure = go.Figure()
    runs = list(tables)
    for name, probe, group in lines:
        amount, share, text = _cumulative(group, axis)
        label = name if sum(n == name for n, *_ in lines) == 1 else f"{name} on {probe}"
        style = line_style(runs.index(name), theme)
        figure.add_scatter(
            x=amount,
            y=share,
            name=label,
            mode="lines",
            line={**style, "shape": "hv", "width": 2},
            text=text,
            hovertemplate="%{text}<extra>" + label + "</extra>",
        )
    styled(figure, theme, height=300)
    figure.update_yaxes(title_text=f"share of heads: {detector}", rangemode="tozero")
    figure.update_xaxes(title_text=axis.title)
    return draw_axis(figure, axis, theme)


def _of_head(table: pd.DataFrame, head: Head | KVHead) -> pd.DataFrame:
    column = "head" if isinstance(head, Head) else "kv_head"
    mine = table.loc[(table["layer"] == head.layer) & (table[column] == head[1]).fillna(False).astype(bool)]
    if mine.empty:
        raise WorkbenchError(f"{head} is not in these tables; they have layers {_known(table)}")
    return mine


def _known(table: pd.DataFrame) -> str:
    return ", ".join(str(layer) for layer in sorted(table.loc[:, "layer"].unique())) or "none"


def _add_points(figure: go.Figure, axis: TrainingAxis, rows: Sequence[dict[str, Any]], theme: Theme) -> None:
    places = [checkpoint_of(row) for row in rows]

    def reach(name: str, sign: int) -> list[float]:
        return [0.0 if row[name] is None or row["score"] is None else sign * (row[name] - row["score"]) for row in rows]

    figure.add_scatter(
        x=axis.positions(places),
        y=[row["score"] for row in rows],
        mode="markers",
        name="score",
        marker={"color": COLOURS[theme][0], "size": 6},
        error_y={
            "type": "data",
            "array": reach("ci_hi", 1),
            "arrayminus": reach("ci_lo", -1),
            "thickness": 1,
            "width": 0,
        },
        text=[f"{place}" for place in places],
        hovertemplate="%{y:.4f}<br>%{text}<extra></extra>",
    )


def _add_fit(figure: go.Figure, axis: TrainingAxis, one: dict[str, Any], theme: Theme) -> None:
    at = np.geomspace(axis.first, axis.last, _FINE)
    slope = 2 * math.log(9) / one["fit_width"]
    z = np.clip(slope * (np.log(at) - math.log(one["fit_n50"])), -80, 80)
    figure.add_scatter(
        x=at,
        y=one["fit_floor"] + one["fit_amplitude"] / (1 + np.exp(-z)),
        mode="lines",
        name="logistic",
        line={"color": COLOURS[theme][1], "width": 1.5},
        hoverinfo="skip",
    )


def _verdict(head: Head | KVHead, one: dict[str, Any]) -> str:
    if one["n50"] is None:
        return f"{head}: {one['verdict'].replace('_', ' ')}"
    low, mid, high = (short_count(float(one[name])) for name in ("n50_lo", "n50", "n50_hi"))
    return f"{head}: {one['verdict']}, half of its rise at {mid} {one['unit']} (95 % {low} to {high}, {one['method']})"


def _cumulative(group: pd.DataFrame, axis: TrainingAxis) -> tuple[list[float], list[float], list[str]]:
    """From the axis' start to its end: amounts, shares of heads that are there, and words."""
    n50 = np.sort(group.loc[:, "n50"].dropna().to_numpy(np.float64))
    at_first = int(np.sum(group.loc[:, "verdict"].to_numpy() == "at_first"))
    amount = [float(axis.first), *n50.tolist(), float(axis.last)]
    n = [at_first, *(at_first + np.arange(1, len(n50) + 1)).tolist(), at_first + len(n50)]
    text = [
        f"{count} of {len(group)} heads by {short_count(at)} {axis.unit}" for at, count in zip(amount, n, strict=True)
    ]
    return amount, [count / len(group) for count in n], text
