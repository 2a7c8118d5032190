"""Lines over training: heads as they emerge, model-level numbers beside them, one head under all detectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from workbench.emergence.head_trajectories import Checkpoint, Trajectories, checkpoint_of, mixed_twice
from workbench.figures.axis import AxisUnit, TrainingAxis, draw_axis, training_axis
from workbench.figures.style import COLOURS, DASHES, ONSET, Scale, Theme, line_style, styled
from workbench.figures.trajectories import (
    DESCRIPTIVE,
    RunLike,
    chosen_probes,
    hover,
    labelled,
    layer_scores,
    records,
    said,
    score_scale,
    trajectories,
)
from workbench.heads import Head, KVHead, WorkbenchError

Runs = RunLike | Sequence[RunLike]
_WHERE = ("ckpt", "branch", "step", "step_total", "tokens")
_INTERVAL = ("n", "ci_lo", "ci_hi")


_BRANCH = {"dash": "dash"}


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

    The strongest are the `top` heads with the highest score at any checkpoint. A mark is a half-rise onset: the first
    checkpoint from which a head's score stays at or above half of its final one. Branches are dashed.

    Raises:
        WorkbenchError: if a run has no such scores, or `probe` is needed to tell several apart.
    """
    runs = as_runs(run)
    each = [trajectories(one, detector, probe) for one in runs]
    axis = training_axis([found.checkpoints for found in each], x)
    scale = score_scale(detector, [found.score for found in each])
    figure = go.Figure()
    for i, (one, found) in enumerate(zip(runs, each, strict=True)):
        rows = found.strongest(top)
        lines = [_head_line(found, row, scale) for row in rows] + [_mean_line(found, rows)]
        for line in lines:
            _add_line(figure, axis, found.checkpoints, line, name=one.name, style=line_style(i, theme))
        marks = onset_marks(found, one.onsets(detector, probe=found.probe))
        _add_onsets(figure, axis, found, {row: mark for row, mark in marks.items() if row in rows})
    styled(figure, theme, height=300)
    title = f"{detector} ({scale.unit})" if scale.unit else f"{detector} score"
    figure.update_yaxes(range=_padded(_lowered(scale, [found.score for found in each])), title_text=title)
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

    One run shows each distance in a shade of its own, farther is paler; several runs only the farthest, thin.

    Raises:
        WorkbenchError: if a run has no such metric, or `probe` is needed to tell several apart.
    """
    runs = as_runs(run)
    tables = [_metric_rows(one, metric, probe) for one in runs]
    axis = training_axis([[checkpoint_of(row) for row in rows] for rows in tables], x)
    figure = go.Figure()
    for i, (one, rows) in enumerate(zip(runs, tables, strict=True)):
        for line in _distance_lines(rows, metric, theme if len(runs) == 1 else None):
            places = [checkpoint_of(row) for row in line.pop("rows")]
            _add_line(figure, axis, places, line, name=one.name, style=line_style(i, theme))
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
    probe: str | None = None,
    x: AxisUnit = "tokens",
    theme: Theme = "light",
) -> go.Figure:
    """One head under all detectors over training; detectors with a unit of their own have their own panel.

    With `probe` on that one; a detector that was not scored on it is drawn on another, and says so. Else on all.

    Raises:
        WorkbenchError: if the run has no such head.
    """
    lines = _detector_lines(run, head, probe)
    units = sorted({scale.unit for _, _, scale in lines})
    axis = training_axis([[checkpoint_of(row) for row in rows] for _, rows, _ in lines], x)
    heights, colours = [1 if unit else 3 for unit in units], COLOURS[theme]
    figure = make_subplots(len(units), 1, shared_xaxes=True, vertical_spacing=0.07, row_heights=heights)
    for i, (name, rows, scale) in enumerate(lines):
        text = [f"{_said_row(name, row, 'score', scale.unit)}<br>{checkpoint_of(row)}" for row in rows]
        figure.add_scatter(
            x=axis.positions([checkpoint_of(row) for row in rows]),
            y=[row["score"] for row in rows],
            name=name,
            mode="lines+markers",
            line={"color": colours[i % len(colours)], "dash": DASHES[i // len(colours) % len(DASHES)]},
            marker={"size": 4},
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
        figure.update_yaxes(range=_padded(_lowered(whole, scores)), title_text=unit or "score", row=i + 1, col=1)
    figure.update_xaxes(title_text=axis.title, row=len(units), col=1)
    return draw_axis(figure, axis, theme)


def as_runs(run: Runs) -> list[RunLike]:
    """One run or several, as a list.

    Raises:
        WorkbenchError: if there is none.
    """
    runs = [run] if isinstance(run, RunLike) else list(run)
    if not runs:
        raise WorkbenchError("there is no run to draw; pass one from `workbench.open_run(path)`")
    return runs


def onset_marks(found: Trajectories, onsets: pd.DataFrame) -> dict[int, tuple[int, str]]:
    """The rows that have an onset: its column, and what a reader is told. None for what does not rise."""
    rows = {head: row for row, head in enumerate(found.heads)}
    of_kind = {(head, found.layer_of(row).kind): row for row, head in enumerate(found.heads)}
    columns = {checkpoint.step: column for column, checkpoint in enumerate(found.checkpoints)}
    marks: dict[int, tuple[int, str]] = {}
    if found.detector in DESCRIPTIVE:
        return marks
    for onset in records(onsets, "layer", "head", "kv_head", "kind", "onset_step", "previous_step"):
        if onset["onset_step"] is None:
            continue
        is_query_head = onset["head"] is not None
        head = Head(onset["layer"], onset["head"]) if is_query_head else KVHead(onset["layer"], onset["kv_head"])
        when = f"at or before step {onset['onset_step']:,}, the first checkpoint"
        if onset["previous_step"] is not None:
            when = f"between steps {onset['previous_step']:,} and {onset['onset_step']:,}"
        row = of_kind.get((head, onset["kind"]), rows[head])
        marks[row] = columns[onset["onset_step"]], f"<b>{head}</b> half-rise onset<br>{when}"
    return marks


def _head_line(found: Trajectories, row: int, scale: Scale) -> dict[str, Any]:
    return {
        "y": found.score[row],
        "text": [hover(found, row, column, scale.unit) for column in range(len(found.checkpoints))],
        "customdata": [str(found.heads[row])] * len(found.checkpoints),
        "width": 1.2,
        "opacity": 0.6,
        "label": "",
    }


def _mean_line(found: Trajectories, rows: Sequence[int]) -> dict[str, Any]:
    mean = found.score[rows].mean(0) if rows else np.full(len(found.checkpoints), math.nan)
    text = [f"mean of the top {len(rows)} heads {value:.4f}<br>" for value in mean]
    return {
        "y": mean,
        "text": [said_mean + str(at) for said_mean, at in zip(text, found.checkpoints, strict=True)],
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
            mode="lines",
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


def _add_onsets(figure: go.Figure, axis: TrainingAxis, found: Trajectories, marks: dict[int, tuple[int, str]]) -> None:
    x = axis.positions(found.checkpoints)
    figure.add_scatter(
        x=[x[column] for column, _ in marks.values()],
        y=[found.score[row, column] for row, (column, _) in marks.items()],
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
    rows = records(table, *_WHERE, *_INTERVAL, "value", "distance", "position")
    return [row for row in rows if row["position"] is None]


def _distance_lines(rows: list[dict[str, Any]], metric: str, shades: Theme | None) -> Iterator[dict[str, Any]]:
    """The lines of one run: all distances in shades, or only the farthest; then the pooled numbers, on top."""
    distances = sorted({row["distance"] for row in rows} - {None})
    for i, distance in enumerate(distances if shades else distances[-1:]):
        label, line = "", {"dash": "dot"}
        if shades:
            label, line = f"distance {distance}", {"color": _shade(i / max(len(distances) - 1, 1), shades)}
        at = [row for row in rows if row["distance"] == distance]
        drawn = {"label": label, "group": label or None, "line": line, "width": 1.5}
        yield {**_metric_line(at, metric, f"at distance {distance}"), **drawn}
    pooled = [row for row in rows if row["distance"] is None]
    yield {**_metric_line(pooled, metric, "all distances" if distances else ""), "label": "{name}", "width": 3}


def _metric_line(rows: list[dict[str, Any]], metric: str, where: str) -> dict[str, Any]:
    text = [f"{_said_row(metric, row, 'value', '')}<br>{checkpoint_of(row)}" for row in rows]
    return {
        "rows": rows,
        "y": [row["value"] for row in rows],
        "text": [f"{where}<br>{one}" if where else one for one in text],
    }


def _detector_lines(
    run: RunLike, head: Head | KVHead, probe: str | None
) -> list[tuple[str, list[dict[str, Any]], Scale]]:
    """Name, rows and scale of every detector that scored this head, on the wanted probe or on all."""
    scores = layer_scores(run, head.layer)
    column, number = ("head", head.head) if isinstance(head, Head) else ("kv_head", head.kv_head)
    mine = scores.loc[scores[column] == number]
    if mine.empty:
        there = ", ".join(str(value) for value in sorted(scores.loc[:, column].dropna().unique()))
        raise WorkbenchError(f"{head} has no scores in {run.name}; layer {head.layer} has heads {there}")
    # a layer that mixes twice has two heads of one number, and a line for each
    mine = mine.assign(mixer=mine["kind"].astype(str) if mixed_twice(mine) else "")
    found = records(mine, *_WHERE, *_INTERVAL, "detector", "probe", "mixer", "score")
    keys = chosen_probes(((row["detector"], row["probe"]) for row in found), probe)
    lines: list[tuple[str, list[dict[str, Any]], Scale]] = []
    for detector, of, mixer in sorted({(row["detector"], row["probe"], row["mixer"]) for row in found}):
        these = [row for row in found if (row["detector"], row["probe"], row["mixer"]) == (detector, of, mixer)]
        values = np.array([row["score"] for row in these], dtype=np.float64)
        if (detector, of) in keys and not np.isnan(values).all():
            name = labelled(detector, of, keys, probe) + (f" ({mixer})" if mixer else "")
            lines.append((name, these, score_scale(detector, [values])))
    return lines


def _said_row(what: str, row: dict[str, Any], value: str, unit: str) -> str:
    return said(what, (row[value], row["ci_lo"], row["ci_hi"]), row["n"], unit=unit)


def _shade(at: float | int, theme: Theme) -> str:
    """From strong to pale, nearest to farthest."""
    ends = {"light": ((8, 48, 107), (150, 190, 225)), "dark": ((253, 246, 178), (60, 110, 160))}
    near, far = ends[theme]
    return "rgb({},{},{})".format(*(round(a + at * (b - a)) for a, b in zip(near, far, strict=True)))


def _padded(scale: Scale) -> list[float]:
    """A range for lines, with some room."""
    room = 0.03 * (scale.high - scale.low)
    return [scale.low - room, scale.high + room]


def _lowered(scale: Scale, scores: Iterable[Float[np.ndarray, "..."]]) -> Scale:
    """A signed scale that starts just below the lowest score: lines need no symmetry."""
    low = min((float(np.nanmin(one)) for one in scores if not np.isnan(one).all()), default=0.0)
    return Scale(max(scale.low, math.floor(10 * low) / 10), scale.high, scale.unit) if scale.is_signed else scale
