"""Lines over training: the strongest heads of runs, model-level metrics, one head under all detectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.console import fixed
from workbench.emergence.head_trajectories import (
    CHECKPOINT_COLUMNS,
    Checkpoint,
    Trajectories,
    checkpoint_of,
    mixed_twice,
)
from workbench.emergence.onset_words import COLUMNS as ONSET_COLUMNS
from workbench.emergence.onset_words import onset_words
from workbench.figures.axis import AxisUnit, TrainingAxis, draw_axis, training_axis
from workbench.figures.score_tables import score_table
from workbench.figures.style import (
    COLOURS,
    DASHES,
    MOST_ABOVE,
    ONSET,
    Scale,
    Theme,
    legend_beside,
    line_style,
    shade,
    styled,
)
from workbench.figures.trajectories import (
    DESCRIPTIVE,
    RunLike,
    chosen_probes,
    detector_label,
    format_score,
    hover,
    records,
    score_scale,
    scores_of_head,
    trajectories,
)
from workbench.heads import Head, KVHead, WorkbenchError

Runs = RunLike | pd.DataFrame | Sequence[RunLike | pd.DataFrame] | Any
_INTERVAL = ("n", "ci_lo", "ci_hi")
_LINE = ("detector", "probe", "mixer")
_BRANCH = {"dash": "dash"}
# Behind a title, where heads are chosen by their change.
CHANGED = " · heads that changed most"
_MOST_DOTS = 60  # on a line


def emergence(
    run: Runs,
    *,
    detector: str,
    probe: str | None = None,
    x: AxisUnit = "tokens",
    top: int = 3,
    theme: Theme = "light",
) -> go.Figure:
    """How the strongest heads of each run emerge: their mean in bold, each of them thin, onsets marked.

    The strongest are the `top` heads with the highest score at any checkpoint. A mark is an onset: the first checkpoint
    from which a head's score stays at or above half of its final one. Branches are dashed. Where the strongest heads
    are those of an untrained model, as by entropy, the heads that changed most are drawn instead, and it is said. Of
    more than six runs only the means are drawn.

    Raises:
        WorkbenchError: if a run has no such scores, or `probe` is needed to tell several apart.
    """
    runs = as_runs(run)
    curves_of_runs = [trajectories(each_run, detector, probe) for each_run in runs]
    axis = training_axis([curves.checkpoints for curves in curves_of_runs], x)
    scores = [curves.score for curves in curves_of_runs]
    scale = score_scale(detector, scores)
    is_crowded = len(runs) > MOST_ABOVE
    figure = go.Figure()
    for i, (each_run, curves) in enumerate(zip(runs, curves_of_runs, strict=True)):
        rows = curves.leading(top)
        lines = [] if is_crowded else [_head_line(curves, row, scale) for row in rows]
        lines.append(_mean_line(curves, rows))
        for line in lines:
            _add_line(figure, axis, curves.checkpoints, line, name=each_run.name, style=line_style(i, theme))
        marks = onset_marks(curves, each_run.onsets(detector, probe=curves.probe), axis.unit)
        if not is_crowded:
            _add_onsets(figure, axis, curves, {row: mark for row, mark in marks.items() if row in rows})
    styled(figure, theme, height=300)
    title = f"{detector} ({scale.unit})" if scale.unit else f"{detector} score"
    legend_beside(figure, len(runs))
    title += ", means alone" if is_crowded else ""
    title += CHANGED if all(curves.is_strongest_untrained for curves in curves_of_runs) else ""
    figure.update_yaxes(range=_padded(scale.lowered(scores)), title_text=title)
    figure.update_xaxes(title_text=axis.title)
    return draw_axis(figure, axis, theme)


def metrics(
    run: Runs,
    *,
    metric: str,
    probe: str | None = None,
    x: AxisUnit = "tokens",
    theme: Theme = "light",
) -> go.Figure:
    """A model-level number over training: pooled in bold, and by distance between query and source.

    One run shows each distance in a shade of its own, farther is paler; several runs show only the farthest, thin.

    Raises:
        WorkbenchError: if a run has no such metric, or `probe` is needed to tell several apart.
    """
    runs = as_runs(run)
    tables = [_metric_rows(each_run, metric, probe) for each_run in runs]
    axis = training_axis([[checkpoint_of(row) for row in rows] for rows in tables], x)
    figure = go.Figure()
    for i, (each_run, rows) in enumerate(zip(runs, tables, strict=True)):
        for line in _distance_lines(rows, metric, theme if len(runs) == 1 else None):
            checkpoints = [checkpoint_of(row) for row in line.pop("rows")]
            _add_line(figure, axis, checkpoints, line, name=each_run.name, style=line_style(i, theme))
    styled(figure, theme, height=300)
    values = [row["value"] for rows in tables for row in rows if row["value"] is not None]
    is_share = "loss" not in metric and all(0 <= value <= 1 for value in values)
    figure.update_yaxes(title_text=metric.replace("_", " "), range=_padded(Scale(0, 1, "")) if is_share else None)
    figure.update_xaxes(title_text=axis.title)
    return draw_axis(figure, axis, theme)


def history(
    run: RunLike,
    head: Head | KVHead,
    *,
    detector: str | None = None,
    probe: str | None = None,
    x: AxisUnit = "tokens",
    theme: Theme = "light",
) -> go.Figure:
    """One head under all detectors over training, or under one; those with a unit of their own have their own panel.

    With `probe`, each detector is drawn on that probe, or on another that its label names; without it, on all.

    Raises:
        WorkbenchError: if the run has no such head.
    """
    lines = _detector_lines(run, head, probe, detector)
    units = sorted({scale.unit for _, _, scale in lines})
    axis = training_axis([[checkpoint_of(row) for row in rows] for _, rows, _ in lines], x)
    heights, colours = [1 if unit else 3 for unit in units], COLOURS[theme]
    figure = make_subplots(len(units), 1, shared_xaxes=True, vertical_spacing=0.07, row_heights=heights)
    for i, (name, rows, scale) in enumerate(lines):
        text = [f"{_format_row(name, row, 'score', scale.unit)}<br>{checkpoint_of(row)}" for row in rows]
        figure.add_scatter(
            x=axis.positions([checkpoint_of(row) for row in rows]),
            y=[row["score"] for row in rows],
            name=name,
            mode="lines+markers",
            line={"color": colours[i % len(colours)], "dash": DASHES[i // len(colours) % len(DASHES)]},
            # of many checkpoints not every dot is drawn: they would lie over each other, and each takes time
            marker={"size": 4 if len(rows) > 1 else 9, "maxdisplayed": _MOST_DOTS if len(rows) > _MOST_DOTS else 0},
            text=text,
            hovertemplate="%{text}<extra></extra>",
            row=units.index(scale.unit) + 1,
            col=1,
        )
    styled(figure, theme, height=250 + 100 * (len(units) - 1))
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"})
    for i, unit in enumerate(units):
        scales = [scale for _, _, scale in lines if scale.unit == unit]
        whole = Scale(min(s.low for s in scales), max(s.high for s in scales), unit)
        scores = [np.array([row["score"] for row in rows], dtype=np.float64) for _, rows, s in lines if s.unit == unit]
        figure.update_yaxes(range=_padded(whole.lowered(scores)), title_text=unit or "score", row=i + 1, col=1)
    figure.update_xaxes(title_text=axis.title, row=len(units), col=1)
    return draw_axis(figure, axis, theme)


def as_runs(run: Runs) -> list[RunLike]:
    """One run or several, as a list; a table of scores is a run.

    Raises:
        WorkbenchError: if there is none.
    """
    if isinstance(run, str | Path):
        raise WorkbenchError(f"{run} is a path; pass the run, workbench.open_run({str(run)!r}), or a table of scores")
    runs = [run] if isinstance(run, RunLike | pd.DataFrame) else list(run)
    runs = [score_table(each) if isinstance(each, pd.DataFrame) else each for each in runs]
    if not runs:
        raise WorkbenchError("there is no run to draw; pass one from `workbench.open_run(path)`")
    return runs


def onset_marks(curves: Trajectories, onsets: pd.DataFrame, unit: AxisUnit) -> dict[int, tuple[int, str]]:
    """Row -> column and hover text of its onset; empty for a detector that describes and does not rise."""
    rows = {head: row for row, head in enumerate(curves.heads)}
    rows_by_kind = {(head, curves.layer_of(row).kind): row for row, head in enumerate(curves.heads)}
    columns = {checkpoint.step: column for column, checkpoint in enumerate(curves.checkpoints)}
    marks: dict[int, tuple[int, str]] = {}
    if curves.detector in DESCRIPTIVE:
        return marks
    for onset in records(onsets, "layer", "head", "kv_head", "kind", *ONSET_COLUMNS):
        if onset["onset_step"] is None:
            continue
        is_query_head = onset["head"] is not None
        head = Head(onset["layer"], onset["head"]) if is_query_head else KVHead(onset["layer"], onset["kv_head"])
        row = rows_by_kind.get((head, onset["kind"]), rows[head])
        marks[row] = columns[onset["onset_step"]], f"<b>{head}</b> onset<br>{onset_words(onset, unit=unit)}"
    return marks


def _head_line(curves: Trajectories, row: int, scale: Scale) -> dict[str, Any]:
    return {
        "y": curves.score[row],
        "text": [hover(curves, row, column, scale.unit) for column in range(len(curves.checkpoints))],
        "customdata": [str(curves.heads[row])] * len(curves.checkpoints),
        "width": 1.2,
        "opacity": 0.6,
        "label": "",
    }


def _mean_line(curves: Trajectories, rows: Sequence[int]) -> dict[str, Any]:
    mean = curves.score[rows].mean(0) if rows else np.full(len(curves.checkpoints), math.nan)
    which = "that changed most" if curves.is_strongest_untrained else "with the highest scores"
    text = [f"mean of the {len(rows)} heads {which} {fixed(value, 4)}<br>" for value in mean]
    return {
        "y": mean,
        "text": [value + str(checkpoint) for value, checkpoint in zip(text, curves.checkpoints, strict=True)],
        "width": 3,
        "label": "{name}",
    }


def _add_line(
    figure: go.Figure,
    axis: TrainingAxis,
    checkpoints: Sequence[Checkpoint],
    line: dict[str, Any],
    *,
    name: str,
    style: dict[str, str],
) -> None:
    """Draw a line, broken between branches; `label` is its legend entry, "" for none."""
    x, y, text = axis.positions(checkpoints), line["y"], line["text"]
    shown = bool(line["label"])
    first = checkpoints[0].branch if len(checkpoints) else None
    for branch, group in groupby(range(len(checkpoints)), key=lambda column: checkpoints[column].branch):
        columns = list(group)
        figure.add_scatter(
            x=x[columns],
            y=[y[column] for column in columns],
            mode="lines" if len(columns) > 1 else "markers",  # a line of one point is not drawn
            marker={"size": 4 + 2 * line["width"]},
            name=line["label"].format(name=name),
            opacity=line.get("opacity", 1),
            line={**style, "width": line["width"], **line.get("line", {}), **(_BRANCH if branch != first else {})},
            legendgroup=line.get("group", name),
            showlegend=shown,
            text=[text[column] for column in columns],
            customdata=line.get("customdata"),
            hovertemplate="%{text}<extra>" + name + "</extra>",
        )
        shown = False


def _add_onsets(figure: go.Figure, axis: TrainingAxis, curves: Trajectories, marks: dict[int, tuple[int, str]]) -> None:
    x = axis.positions(curves.checkpoints)
    figure.add_scatter(
        x=[x[column] for column, _ in marks.values()],
        y=[curves.score[row, column] for row, (column, _) in marks.items()],
        mode="markers",
        marker={"symbol": "circle-open", "size": 8, "color": ONSET, "line": {"width": 2}},
        showlegend=False,
        text=[text for _, text in marks.values()],
        hovertemplate="%{text}<extra></extra>",
    )


def _metric_rows(run: RunLike, metric: str, probe: str | None) -> list[dict[str, Any]]:
    table = run.metrics(metric=metric, probe=probe)
    probes = table.loc[:, "probe"].unique().tolist()
    if len(probes) > 1:
        raise WorkbenchError(f"{metric} was measured on {', '.join(probes)}: pass one of them as probe=")
    rows = records(table, *CHECKPOINT_COLUMNS, *_INTERVAL, "value", "distance", "position")
    return [row for row in rows if row["position"] is None]


def _distance_lines(rows: list[dict[str, Any]], metric: str, shades: Theme | None) -> Iterator[dict[str, Any]]:
    """The lines of one run: all distances in shades, or only the farthest; then the pooled numbers, on top."""
    distances = sorted({row["distance"] for row in rows} - {None})
    for i, distance in enumerate(distances if shades else distances[-1:]):
        label, line = "", {"dash": "dot"}
        if shades:
            label, line = f"distance {distance}", {"color": shade(i / max(len(distances) - 1, 1), shades)}
        at_distance = [row for row in rows if row["distance"] == distance]
        drawn = {"label": label, "group": label or None, "line": line, "width": 1.5}
        yield {**_metric_line(at_distance, metric, f"at distance {distance}"), **drawn}
    pooled = [row for row in rows if row["distance"] is None]
    yield {**_metric_line(pooled, metric, "all distances" if distances else ""), "label": "{name}", "width": 3}


def _metric_line(rows: list[dict[str, Any]], metric: str, distance: str) -> dict[str, Any]:
    text = [f"{_format_row(metric, row, 'value', '')}<br>{checkpoint_of(row)}" for row in rows]
    return {
        "rows": rows,
        "y": [row["value"] for row in rows],
        "text": [f"{distance}<br>{value}" if distance else value for value in text],
    }


def _detector_lines(
    run: RunLike, head: Head | KVHead, probe: str | None, only: str | None
) -> list[tuple[str, list[dict[str, Any]], Scale]]:
    """Name, rows and scale of every detector that scored this head, on the chosen probe or on all."""
    scores = scores_of_head(run, head, detector=only, probe=probe)
    # a layer with two mixers has two heads of one number, and a line for each
    mixer = scores["kind"].astype(str) if mixed_twice(scores) else ""
    rows = records(scores.assign(mixer=mixer), *CHECKPOINT_COLUMNS, *_INTERVAL, *_LINE, "score")
    keys = chosen_probes(((row["detector"], row["probe"]) for row in rows), probe)
    lines: list[tuple[str, list[dict[str, Any]], Scale]] = []
    for detector, on, mixer in sorted({(row["detector"], row["probe"], row["mixer"]) for row in rows}):
        of_line = [row for row in rows if (row["detector"], row["probe"], row["mixer"]) == (detector, on, mixer)]
        values = np.array([row["score"] for row in of_line], dtype=np.float64)
        if (detector, on) in keys and not np.isnan(values).all():
            name = detector_label(detector, on, keys, probe) + (f" ({mixer})" if mixer else "")
            lines.append((name, of_line, score_scale(detector, [values])))
    return lines


def _format_row(label: str, row: dict[str, Any], value: str, unit: str) -> str:
    return format_score(label, (row[value], row["ci_lo"], row["ci_hi"]), row["n"], unit=unit)


def _padded(scale: Scale) -> list[float]:
    """A range for lines, with some room."""
    room = 0.03 * (scale.high - scale.low)
    return [scale.low - room, scale.high + room]
