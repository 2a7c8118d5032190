"""Cells of colour: heads by layer at one checkpoint, heads by checkpoint over training, a head among its layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.emergence.head_trajectories import Trajectories
from workbench.figures.axis import AxisUnit, TrainingAxis, cell_edges, draw_axis, training_axis
from workbench.figures.head_curves import Runs, as_runs, onset_marks
from workbench.figures.style import COLOURS, ONSET, PALETTES, Scale, Theme, colour_axis, faint, letter, styled
from workbench.figures.trajectories import (
    UNITS,
    RunLike,
    at_step,
    chosen_probes,
    hover,
    labelled,
    records,
    said,
    score_scale,
    trajectories,
)
from workbench.heads import Head, WorkbenchError

_LABELLED_CELLS = 18
# Beyond so many cells, what is said of each would weigh more than its score: then only head and score are said.
_TOLD_CELLS = 2000
_SPOTS = 200
_SHORT = "<b>%{customdata}</b><br>%{z:.4f}<extra></extra>"


def heads(
    run: Runs,
    *,
    detector: str,
    probe: str | None = None,
    step: int | str = "last",
    theme: Theme = "light",
) -> go.Figure:
    """Every head's score at one checkpoint, layer by head, one panel per run.

    A letter says what each layer is: F full, W sliding window, C chunked, L linear, N none. Grey: no score.

    Raises:
        WorkbenchError: if a run has no such scores or no such step.
    """
    runs = as_runs(run)
    each = [trajectories(one, detector, probe) for one in runs]
    scale = score_scale(detector, [t.score for t in each])
    figure = _panels(runs, spacing=0.05)
    columns = sum(found.width for found in each)
    rows = max(len(found.layers) for found in each)
    for i, found in enumerate(each):
        _add_grid(figure, found, found.column(step), panel=i + 1, scale=scale, numbers=columns <= _LABELLED_CELLS)
        figure.update_traces(name=runs[i].name, col=i + 1)
    styled(figure, theme, height=70 + int(np.clip(rows * 34, 130, max(460, rows * 10))))
    figure.update_layout(coloraxis=colour_axis(scale, theme), plot_bgcolor=PALETTES[theme].missing)
    figure.update_yaxes(showgrid=False, ticks="")
    figure.update_xaxes(showgrid=False, ticks="", title_text="head", constrain="domain")
    for i, found in enumerate(each):
        figure.update_yaxes(**_layer_ticks(found, theme), row=1, col=i + 1)
        figure.update_xaxes(**_head_ticks(found), row=1, col=i + 1)
    return figure


def strips(
    run: Runs,
    *,
    detector: str,
    probe: str | None = None,
    top: int = 48,
    x: AxisUnit = "tokens",
    theme: Theme = "light",
) -> go.Figure:
    """The strongest heads over all checkpoints, one row each, one panel per run, earliest onset first.

    Ticks mark half-rise onsets. Every run has its own order: the same name is not the same head in another run.

    Raises:
        WorkbenchError: if a run has no such scores.
    """
    runs = as_runs(run)
    each = [trajectories(one, detector, probe) for one in runs]
    scale = score_scale(detector, [t.score for t in each])
    axis = training_axis([t.checkpoints for t in each], x)
    figure = _panels(runs, spacing=0.065)
    rows = 1
    for i, (one, found) in enumerate(zip(runs, each, strict=True)):
        marks = onset_marks(found, one.onsets(detector, probe=found.probe))
        order = _by_onset(found, marks, top)
        rows = max(rows, len(order))
        _add_strip(figure, found, axis, order, unit=scale.unit, panel=i + 1)
        figure.update_yaxes(**_strip_ticks(found, order, theme), row=1, col=i + 1)
        _add_ticks(figure, found, axis, [marks.get(row) for row in order], panel=i + 1)
        figure.update_traces(name=one.name, col=i + 1)
    styled(figure, theme, height=80 + int(np.clip(rows * 18, 120, 520)))
    longest = max(len(str(head)) for found in each for head in found.heads)
    figure.update_layout(
        margin={"l": 24 + 8 * longest}, coloraxis=colour_axis(scale, theme), plot_bgcolor=PALETTES[theme].missing
    )
    figure.update_yaxes(showgrid=False, ticks="")
    figure.update_xaxes(showgrid=False, title_text=axis.title.replace("training ", "") if len(runs) > 2 else axis.title)
    return draw_axis(figure, axis, theme)


def place(
    run: RunLike, head: Head, *, probe: str | None = None, step: int | str = "last", theme: Theme = "light"
) -> go.Figure:
    """A head among the others: under each detector its layer's heads as dots, the rest of the model faint.

    With `probe` on that one; a detector that was not scored on it is shown on another, and says so. Else on all.
    Detectors with a unit of their own are left out: their numbers do not share an axis with shares.

    Raises:
        WorkbenchError: if the run has no such head at this step.
    """
    scores = run.scores(**at_step(step))
    scores = scores.loc[scores["score"].notna() & scores["head"].notna() & ~scores["detector"].isin(list(UNITS))]
    rows = records(scores, "layer", "head", "kind", "detector", "probe", "score", "ci_lo", "ci_hi", "n")
    shown = chosen_probes(((row["detector"], row["probe"]) for row in rows), probe)
    rows: list[dict[str, Any]] = [
        {**row, "label": labelled(row["detector"], row["probe"], shown, probe)}
        for row in rows
        if (row["detector"], row["probe"]) in shown
    ]
    chosen = [row for row in rows if (row["layer"], row["head"]) == head]
    if not chosen:
        raise WorkbenchError(f"{head} has no scores at {step if step == 'last' else f'step {step}'} in {run.name}")
    beside = [row for row in rows if row["layer"] == head.layer and row["head"] != head.head]
    others = _spread_out([row for row in rows if row["layer"] != head.layer])
    figure = go.Figure()
    # transparent colours, not transparent dots: of thousands each would be a layer of its own to a browser
    dots = {"color": faint(COLOURS[theme][0], 0.75), "size": 8}
    _add_dots(figure, "other layers", others, {"color": faint(PALETTES[theme].muted, 0.28), "size": 5})
    _add_dots(figure, f"layer {head.layer}", beside, dots)
    _add_dots(figure, str(head), chosen, {"color": COLOURS[theme][1], "size": 12, "symbol": "diamond"})
    names = sorted({row["label"] for row in rows}, reverse=True)
    styled(figure, theme, height=110 + 34 * len(names))
    low = min(0.0, math.floor(10 * min(row["score"] for row in rows)) / 10)
    figure.update_layout(margin={"l": 24 + 7 * max(map(len, names))})
    figure.update_xaxes(range=[low - 0.03, 1.03], title_text="score")
    figure.update_yaxes(categoryorder="array", categoryarray=names, ticks="")
    return figure


def _spread_out(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of very many rows one for each spot that can be told apart."""
    if len(rows) <= _TOLD_CELLS:
        return rows
    return list({(row["label"], round(row["score"] * _SPOTS)): row for row in rows}.values())


def _add_dots(figure: go.Figure, name: str, rows: list[dict[str, Any]], marker: dict[str, Any]) -> None:
    figure.add_scatter(
        x=[row["score"] for row in rows],
        y=[row["label"] for row in rows],
        mode="markers",
        name=name,
        marker={**marker, "line": {"width": 0}},
        customdata=[str(Head(row["layer"], row["head"])) for row in rows],
        text=[
            f"<b>{Head(row['layer'], row['head'])}</b> · {row['kind']}<br>"
            + said(row["label"], (row["score"], row["ci_lo"], row["ci_hi"]), row["n"], unit="")
            for row in rows
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _panels(runs: Sequence[RunLike], *, spacing: float | int) -> go.Figure:
    """One row of panels titled with the runs' names."""
    titles = [one.name for one in runs]
    figure = make_subplots(1, len(runs), horizontal_spacing=spacing if len(runs) > 1 else 0, subplot_titles=titles)
    figure.update_annotations(font={"size": 12}, yshift=2)
    return figure


def _add_grid(figure: go.Figure, found: Trajectories, column: int, *, panel: int, scale: Scale, numbers: bool) -> None:
    width = found.width
    z = np.full((len(found.layers), width), np.nan)
    text = np.full(z.shape, "no such head", dtype=object)
    names = np.full(z.shape, "", dtype=object)
    for row, head in enumerate(found.heads):
        cell = found.layer_slots[row], head[1]
        z[cell], names[cell] = found.score[row, column], str(head)
        if z.size <= _TOLD_CELLS:
            text[cell] = hover(found, row, column, scale.unit)
    figure.add_heatmap(
        z=z,
        x=np.arange(width),
        y=np.arange(len(found.layers)),
        text=text if z.size <= _TOLD_CELLS else None,
        customdata=names,
        texttemplate="%{z:.2f}" if numbers else None,
        textfont={"size": 12},
        hovertemplate="%{text}<extra></extra>" if z.size <= _TOLD_CELLS else _SHORT,
        xgap=2 if width <= 16 else 0.5,
        ygap=2 if len(found.layers) <= 24 else 0.5,
        coloraxis="coloraxis",
        row=1,
        col=panel,
    )


def _layer_ticks(found: Trajectories, theme: Theme) -> dict[str, Any]:
    """Layer numbers and the letter of each layer's kind; many layers show the letters of all, few numbers."""
    n = len(found.layers)
    every = max(1, n // 16)
    text = [
        f"{layer.layer if i % every == 0 else ''} {letter(layer.kind, theme)}" for i, layer in enumerate(found.layers)
    ]
    return {
        "tickvals": list(range(n)),
        "ticktext": text,
        "tickfont": {"size": 12 if n <= 16 else 9},
        "title_text": "",
        "range": [n - 0.5, -0.5],
    }


def _head_ticks(found: Trajectories) -> dict[str, Any]:
    n = found.width
    return {"tickvals": list(range(0, n, max(1, n // 8))), "range": [-0.5, n - 0.5]}


def _by_onset(found: Trajectories, marks: dict[int, tuple[int, str]], top: int) -> list[int]:
    """The strongest heads: by onset, those without one last; ties by their peak."""
    none = len(found.checkpoints), ""
    return sorted(found.strongest(top), key=lambda row: marks.get(row, none)[0])


def _add_strip(
    figure: go.Figure, found: Trajectories, axis: TrainingAxis, order: list[int], *, unit: str, panel: int
) -> None:
    columns = range(len(found.checkpoints))
    names = [str(found.heads[row]) for row in order]
    is_told = len(order) * len(columns) <= _TOLD_CELLS
    figure.add_heatmap(
        z=found.score[order],
        x=cell_edges(axis.positions(found.checkpoints)),
        y=np.arange(len(order) + 1) - 0.5,
        text=[[hover(found, row, column, unit) for column in columns] for row in order] if is_told else None,
        customdata=[[name] * len(columns) for name in names],
        hovertemplate="%{text}<extra></extra>" if is_told else _SHORT,
        coloraxis="coloraxis",
        row=1,
        col=panel,
    )


def _strip_ticks(found: Trajectories, order: list[int], theme: Theme) -> dict[str, Any]:
    """Heads with the letter of their layer's kind; of many heads every second or third."""
    every = max(1, len(order) // 24)
    labels = [f"{found.heads[row]} {letter(found.layer_of(row).kind, theme)}" for row in order[::every]]
    return {
        "tickvals": list(range(0, len(order), every)),
        "ticktext": labels,
        "range": [max(len(order), 1) - 0.5, -0.5],
    }


def _add_ticks(
    figure: go.Figure,
    found: Trajectories,
    axis: TrainingAxis,
    marks: list[tuple[int, str] | None],
    *,
    panel: int,
) -> None:
    """The onsets, one mark a row; None where a row has none."""
    positions = axis.positions(found.checkpoints)
    marked = [(i, *mark) for i, mark in enumerate(marks) if mark is not None]
    figure.add_scatter(
        x=[positions[column] for _, column, _ in marked],
        y=[i for i, _, _ in marked],
        mode="markers",
        marker={"symbol": "line-ns", "size": 11, "line": {"width": 2.5, "color": ONSET}},
        text=[text for _, _, text in marked],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        row=1,
        col=panel,
    )
