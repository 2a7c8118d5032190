"""Onsets and phase changes: one head's curve with its fit, heads by time for several runs, marks of phase changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.emergence.head_trajectories import CHECKPOINT_COLUMNS, checkpoint_of, short_count
from workbench.figures.axis import AxisUnit, TrainingAxis, draw_axis, training_axis
from workbench.figures.head_curves import Runs, as_runs, onset_marks
from workbench.figures.style import COLOURS, MOST_ABOVE, ONSET, PALETTES, Theme, line_style, styled
from workbench.figures.trajectories import records, trajectories
from workbench.heads import Head, KVHead, WorkbenchError

_FITS = ("fit_floor", "fit_amplitude", "fit_n50", "fit_width", "n50", "n50_lo", "n50_hi")
_FIT_POINTS = 200
_RULER = "y99"  # an axis of its own: marks lie at the foot, whatever the y axis of the figure


def onset(scores: pd.DataFrame, traced: pd.DataFrame, head: Head | KVHead, *, theme: Theme = "light") -> go.Figure:
    """One head's scores with their intervals, the fitted logistic, the high mark and the onset with its interval.

    Args:
        scores: rows of `Run.scores()` of one detector on one probe.
        traced: rows of `Run.emergence()` of the same.

    Raises:
        WorkbenchError: if the head is in neither.
    """
    rows = records(_of_head(scores, head), *CHECKPOINT_COLUMNS, "score", "ci_lo", "ci_hi")
    last_branch = _of_head(traced, head).tail(1)
    traced_head = records(last_branch, *_FITS, "unit", "high", "verdict", "method", "detector")[0]
    axis = training_axis([[checkpoint_of(row) for row in rows]], "step" if traced_head["unit"] == "step" else "tokens")
    figure = go.Figure()
    _add_points(figure, axis, rows, theme)
    if traced_head["n50"] is not None and axis.unit == traced_head["unit"]:
        low, high = (max(traced_head[name], axis.zero or axis.first) for name in ("n50_lo", "n50_hi"))
        figure.add_vrect(x0=low, x1=high, fillcolor=ONSET, opacity=0.15, line_width=0)
        figure.add_vline(x=traced_head["n50"], line={"color": ONSET, "width": 1.5})
    if traced_head["fit_n50"] is not None and axis.unit == traced_head["unit"]:
        _add_fit(figure, axis, traced_head, theme)
    figure.add_hline(y=traced_head["high"], line={"color": PALETTES[theme].muted, "width": 1, "dash": "dot"})
    styled(figure, theme, height=300)
    figure.update_yaxes(title_text=traced_head["detector"])
    figure.update_xaxes(title_text=axis.title)
    figure.update_layout(title={"text": _format_verdict(head, traced_head), "font": {"size": 13}}, margin={"t": 56})
    return draw_axis(figure, axis, theme)


def compare(tables: Mapping[str, pd.DataFrame], *, detector: str, theme: Theme = "light") -> go.Figure:
    """The share of each run's heads that are there by a time, one step line per run and probe.

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
    if units == [""]:
        raise WorkbenchError(
            f"no steps are known of {', '.join(tables)}, so there is no training to count heads over; a series of "
            "checkpoints has them in its names, or in series.toml"
        )
    if len(units) > 1:
        raise WorkbenchError(
            f"the runs count in {' and '.join(unit or 'nothing' for unit in units)}; expected one unit"
        )
    n50 = np.concatenate([group.loc[:, "n50"].dropna().to_numpy(np.float64) for *_, group in lines])
    first, last = (float(n50.min()), float(n50.max())) if len(n50) else (1.0, 10.0)
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


def onset_shares(
    run: Runs, *, detector: str, probe: str | None = None, x: AxisUnit = "tokens", theme: Theme = "light"
) -> go.Figure:
    """The share of each run's scored heads that have their onset by a checkpoint, one step line per run.

    A run of one checkpoint has no training to count over, and is left out.

    Raises:
        WorkbenchError: if no run has scores of two checkpoints.
    """
    courses = [(each, trajectories(each, detector, probe)) for each in as_runs(run)]
    styles = {each.name: line_style(i, theme) for i, (each, _) in enumerate(courses)}
    courses = [(each, curves) for each, curves in courses if len(curves.checkpoints) > 1]
    if not courses:
        raise WorkbenchError("there is no training to count onsets over: each run has scores of one checkpoint")
    axis = training_axis([curves.checkpoints for _, curves in courses], x)
    figure = go.Figure()
    for each, curves in courses:
        onsets = each.onsets(detector, probe=curves.probe)
        columns = [column for column, _ in onset_marks(curves, onsets, axis.unit).values()]
        n = [sum(column <= c for column in columns) for c in range(len(curves.checkpoints))]
        n_heads = int((~np.isnan(curves.score)).any(axis=1).sum())
        figure.add_scatter(
            x=axis.positions(curves.checkpoints),
            y=[count / max(n_heads, 1) for count in n],
            name=each.name,
            mode="lines",
            line={**styles[each.name], "shape": "hv", "width": 2},
            text=[f"{count} of {n_heads} heads by {c}" for count, c in zip(n, curves.checkpoints, strict=True)],
            hovertemplate="%{text}<extra>" + each.name + "</extra>",
        )
    styled(figure, theme, height=300)
    figure.update_yaxes(title_text=f"share of heads with an onset: {detector}", rangemode="tozero")
    figure.update_xaxes(title_text=axis.title)
    return draw_axis(figure, axis, theme)


def mark_phases(
    figure: go.Figure, changes: Mapping[str, pd.DataFrame], *, x: AxisUnit = "tokens", theme: Theme = "light"
) -> go.Figure:
    """Mark phase changes in a figure over training: for each run a dotted line where half of the change is over.

    Of more than six runs there are only the triangles at the foot.

    Args:
        changes: run name, in the order of the figure's runs -> rows of `Run.phase_changes()` to mark; rows that are no
            change, or in another unit than the axis, are left out.
    """
    for i, (name, table) in enumerate(changes.items()):
        for row in records(table, "metric", "probe", "unit", "is_change", "n10", "n50", "n90"):
            if row["is_change"] and row["n50"] is not None and row["unit"] == x:
                line = {"color": line_style(i, theme)["color"], "width": 1.5, "dash": "dot"}
                if len(changes) <= MOST_ABOVE:
                    figure.add_vline(x=row["n50"], line=line, name=name)
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


def _of_head(table: pd.DataFrame, head: Head | KVHead) -> pd.DataFrame:
    column = "head" if isinstance(head, Head) else "kv_head"
    rows = table.loc[(table["layer"] == head.layer) & (table[column] == head[1]).fillna(False).astype(bool)]
    if rows.empty:
        layers = ", ".join(str(layer) for layer in sorted(table.loc[:, "layer"].unique())) or "none"
        raise WorkbenchError(f"{head} is not in these tables; they have layers {layers}")
    return rows


def _add_points(figure: go.Figure, axis: TrainingAxis, rows: Sequence[dict[str, Any]], theme: Theme) -> None:
    checkpoints = [checkpoint_of(row) for row in rows]

    def reach(name: str, sign: int) -> list[float]:
        return [0.0 if row[name] is None or row["score"] is None else sign * (row[name] - row["score"]) for row in rows]

    figure.add_scatter(
        x=axis.positions(checkpoints),
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
        text=[str(checkpoint) for checkpoint in checkpoints],
        hovertemplate="%{y:.6~r}<br>%{text}<extra></extra>",
    )


def _add_fit(figure: go.Figure, axis: TrainingAxis, fit: dict[str, Any], theme: Theme) -> None:
    x = np.geomspace(axis.first, axis.last, _FIT_POINTS)
    slope = 2 * math.log(9) / fit["fit_width"]
    z = np.clip(slope * (np.log(x) - math.log(fit["fit_n50"])), -80, 80)
    figure.add_scatter(
        x=x,
        y=fit["fit_floor"] + fit["fit_amplitude"] / (1 + np.exp(-z)),
        mode="lines",
        name="logistic",
        line={"color": COLOURS[theme][1], "width": 1.5},
        hoverinfo="skip",
    )


def _format_verdict(head: Head | KVHead, row: dict[str, Any]) -> str:
    if row["n50"] is None:
        return f"{head}: {row['verdict'].replace('_', ' ')}"
    low, mid, high = (short_count(float(row[name])) for name in ("n50_lo", "n50", "n50_hi"))
    return f"{head}: {row['verdict']}, half of its rise at {mid} {row['unit']} (95 % {low} to {high}, {row['method']})"


def _cumulative(group: pd.DataFrame, axis: TrainingAxis) -> tuple[list[float], list[float], list[str]]:
    """Amounts from the start of the axis to its end, the share of heads that are there by then, and hover texts."""
    n50 = np.sort(group.loc[:, "n50"].dropna().to_numpy(np.float64))
    at_first = int(np.sum(group.loc[:, "verdict"].to_numpy() == "at_first"))
    amount = [float(axis.first), *n50.tolist(), float(axis.last)]
    n = [at_first, *(at_first + np.arange(1, len(n50) + 1)).tolist(), at_first + len(n50)]
    text = [
        f"{count} of {len(group)} heads by {short_count(time)} {axis.unit}"
        for time, count in zip(amount, n, strict=True)
    ]
    return amount, [count / len(group) for count in n], text
