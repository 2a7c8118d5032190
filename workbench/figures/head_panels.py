"""Panels of heads: heads by layer at one checkpoint, heads over training, one head among the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from workbench.emergence.head_trajectories import Trajectories
from workbench.figures.axis import AxisUnit, TrainingAxis, cell_edges, draw_axis, training_axis
from workbench.figures.head_curves import CHANGED, Runs, as_runs, onset_marks
from workbench.figures.score_tables import only_detector
from workbench.figures.style import COLOURS, ONSET, PALETTES, Scale, Theme, colour_axis, faint, letter, styled
from workbench.figures.trajectories import (
    UNITS,
    RunLike,
    at_step,
    chosen_probes,
    detector_label,
    format_score,
    hover,
    records,
    score_scale,
    trajectories,
)
from workbench.heads import Head, WorkbenchError

_MOST_NUMBERED = 18  # columns of which each shows its score
# With more squares than this, full hover texts outweigh the scores: then the hover text is head and score alone.
_MOST_DESCRIBED = 2000
# More panels than this are narrow, and have fewer ticks.
_WIDE_PANELS, _FEW_TICKS = 4, 2
# The least width of a panel of `strips`, its names included, at which its ticks can be read.
STRIP_PX = 260
_DOT_POSITIONS = 120  # that can be told apart
_SHORT = "<b>%{customdata}</b><br>%{z:.6~r}<extra></extra>"


def heads(
    run: Runs,
    detector: str | None = None,
    *,
    probe: str | None = None,
    step: int | str = "last",
    theme: Theme = "light",
) -> go.Figure:
    """Every head's score at one checkpoint, layer by head, one panel per run.

    The letter of each layer is its kind: F full, W sliding window, C chunked, K selected keys, L linear, N none. Grey:
    no score.

    Args:
        run: a run, a table as `wb.score` and `Run.scores` return it, or several of them.
        detector: may be left out where all scores are of one.

    Raises:
        WorkbenchError: if a run has no such scores or no such step, or several detectors have some and none is named.
    """
    runs = as_runs(run)
    detector = only_detector(runs[0]) if detector is None else detector
    curves_of_runs = [trajectories(each_run, detector, probe) for each_run in runs]
    scale = score_scale(detector, [curves.score for curves in curves_of_runs])
    figure = _panels([each_run.name for each_run in runs], spacing=0.05)
    columns = sum(curves.width for curves in curves_of_runs)
    rows = max(len(curves.layers) for curves in curves_of_runs)
    for i, curves in enumerate(curves_of_runs):
        _add_grid(figure, curves, curves.column(step), panel=i + 1, scale=scale, numbers=columns <= _MOST_NUMBERED)
        figure.update_traces(name=runs[i].name, col=i + 1)
    styled(figure, theme, height=70 + int(np.clip(rows * 34, 130, max(460, rows * 10))))
    figure.update_layout(coloraxis=colour_axis(scale, theme), plot_bgcolor=PALETTES[theme].missing)
    figure.update_yaxes(showgrid=False, ticks="")
    figure.update_xaxes(showgrid=False, ticks="", title_text="head", constrain="domain")
    for i, curves in enumerate(curves_of_runs):
        figure.update_yaxes(**_layer_ticks(curves, theme), row=1, col=i + 1)
        figure.update_xaxes(**_head_ticks(curves), row=1, col=i + 1)
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

    Ticks mark onsets. Every run has its own order: the same name is not the same head in another run. Where the
    strongest heads are those of an untrained model, as by entropy, they are the heads that changed most.

    Raises:
        WorkbenchError: if a run has no such scores.
    """
    runs = as_runs(run)
    curves_of_runs = [trajectories(each_run, detector, probe) for each_run in runs]
    scale = score_scale(detector, [curves.score for curves in curves_of_runs])
    axis = training_axis([curves.checkpoints for curves in curves_of_runs], x)
    titles = [r.name + CHANGED * c.is_strongest_untrained for r, c in zip(runs, curves_of_runs, strict=True)]
    longest = max(len(str(head)) for curves in curves_of_runs for head in curves.heads)
    # beside each panel but the first stand its heads' names
    figure = _panels(titles, spacing=max(0.065, (20 + 8 * longest) / (STRIP_PX * len(runs))))
    rows = 1
    for i, (each_run, curves) in enumerate(zip(runs, curves_of_runs, strict=True)):
        marks = onset_marks(curves, each_run.onsets(detector, probe=curves.probe), axis.unit)
        order = _by_onset(curves, marks, top)
        rows = max(rows, len(order))
        _add_strip(figure, curves, axis, order, unit=scale.unit, panel=i + 1)
        figure.update_yaxes(**_strip_ticks(curves, order, theme), row=1, col=i + 1)
        _add_onset_ticks(figure, axis.positions(curves.checkpoints), [marks.get(row) for row in order], panel=i + 1)
        figure.update_traces(name=each_run.name, col=i + 1)
    styled(figure, theme, height=80 + int(np.clip(rows * 18, 120, 520)))
    figure.update_layout(
        margin={"l": 24 + 8 * longest}, coloraxis=colour_axis(scale, theme), plot_bgcolor=PALETTES[theme].missing
    )
    figure.update_yaxes(showgrid=False, ticks="")
    # of many panels the titles would lie over each other
    title = axis.title.replace("training ", "").partition(" · ")[0] if len(runs) > 2 else axis.title
    figure.update_xaxes(showgrid=False, title_text=title)
    return draw_axis(figure, axis, theme, most=_FEW_TICKS if len(runs) > _WIDE_PANELS else None)


def place(
    run: RunLike, head: Head, *, probe: str | None = None, step: int | str = "last", theme: Theme = "light"
) -> go.Figure:
    """A head among the others: under each detector its layer's heads as dots, the rest of the model faint.

    With `probe`, each detector is shown on that probe, or on another that its label names; without it, on all.
    Detectors with a unit of their own are left out: their scores and shares have no common axis.

    Raises:
        WorkbenchError: if the run has no such head at this step.
    """
    scores = run.scores(**at_step(step))
    scores = scores.loc[scores["score"].notna() & scores["head"].notna() & ~scores["detector"].isin(list(UNITS))]
    pairs = scores.loc[:, ["detector", "probe"]].drop_duplicates().itertuples(index=False, name=None)
    shown = chosen_probes(((str(detector), str(on)) for detector, on in pairs), probe)
    labels = {pair: detector_label(*pair, shown, probe) for pair in shown}
    keys = list(zip(scores["detector"], scores["probe"], strict=True))
    scores = scores.assign(label=[labels.get(key) for key in keys])
    scores = scores.loc[scores["label"].notna()]
    is_of_layer, is_head = scores["layer"] == head.layer, scores["head"] == head.head
    of_head, of_layer = _dots(scores.loc[is_of_layer & is_head]), _dots(scores.loc[is_of_layer & ~is_head])
    if not of_head:
        raise WorkbenchError(f"{head} has no scores at {step if step == 'last' else f'step {step}'} in {run.name}")
    others = _dots(_thinned(scores.loc[~is_of_layer]))
    figure = go.Figure()
    # transparent colours, not transparent dots: a browser composes each transparent dot as a layer
    dots = {"color": faint(COLOURS[theme][0], 0.75), "size": 8}
    _add_dots(figure, "other layers", others, {"color": faint(PALETTES[theme].muted, 0.28), "size": 5})
    _add_dots(figure, f"layer {head.layer}", of_layer, dots)
    _add_dots(figure, str(head), of_head, {"color": COLOURS[theme][1], "size": 12, "symbol": "diamond"})
    names = sorted(set(labels.values()), reverse=True)
    styled(figure, theme, height=110 + 34 * len(names))
    low = min(0.0, math.floor(10 * float(scores["score"].min())) / 10)
    figure.update_layout(margin={"l": 24 + 7 * max(map(len, names))})
    figure.update_xaxes(range=[low - 0.03, 1.03], title_text="score")
    figure.update_yaxes(categoryorder="array", categoryarray=names, ticks="")
    return figure


def _dots(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return records(rows, "layer", "head", "kind", "label", "score", "ci_lo", "ci_hi", "n")


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """Of very many rows, one for each position that can be told apart."""
    if len(rows) <= _MOST_DESCRIBED:
        return rows
    places = (rows["score"] * _DOT_POSITIONS).round()
    return rows.loc[~pd.DataFrame({"label": rows["label"], "place": places}).duplicated(keep="last")]


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
            + format_score(row["label"], (row["score"], row["ci_lo"], row["ci_hi"]), row["n"], unit="")
            for row in rows
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _panels(titles: Sequence[str], *, spacing: float | int) -> go.Figure:
    """One row of titled panels, at most as far apart as plotly allows of so many."""
    n = len(titles)
    between = min(spacing, 0.35 / n) if n > 1 else 0
    figure = make_subplots(1, n, horizontal_spacing=between, subplot_titles=list(titles))
    figure.update_annotations(font={"size": 12}, yshift=2)
    return figure


def _add_grid(figure: go.Figure, curves: Trajectories, column: int, *, panel: int, scale: Scale, numbers: bool) -> None:
    width = curves.width
    z = np.full((len(curves.layers), width), np.nan)
    text = np.full(z.shape, "no such head", dtype=object)
    names = np.full(z.shape, "", dtype=object)
    for row, head in enumerate(curves.heads):
        square = curves.layer_slots[row], head[1]
        z[square], names[square] = curves.score[row, column], str(head)
        if z.size <= _MOST_DESCRIBED:
            text[square] = hover(curves, row, column, scale.unit)
    figure.add_heatmap(
        z=z,
        x=np.arange(width),
        y=np.arange(len(curves.layers)),
        text=text if z.size <= _MOST_DESCRIBED else None,
        customdata=names,
        texttemplate="%{z:.2f}" if numbers else None,
        textfont={"size": 12},
        hovertemplate="%{text}<extra></extra>" if z.size <= _MOST_DESCRIBED else _SHORT,
        xgap=2 if width <= 16 else 0.5,
        ygap=2 if len(curves.layers) <= 24 else 0.5,
        coloraxis="coloraxis",
        row=1,
        col=panel,
    )


def _layer_ticks(curves: Trajectories, theme: Theme) -> dict[str, Any]:
    """The letter of each layer's kind, with its number, or with every n-th number where there are many layers."""
    n = len(curves.layers)
    every = max(1, n // 16)
    text = [
        f"{layer.layer if i % every == 0 else ''} {letter(layer.kind, theme)}" for i, layer in enumerate(curves.layers)
    ]
    return {
        "tickvals": list(range(n)),
        "ticktext": text,
        "tickfont": {"size": 12 if n <= 16 else 9},
        "title_text": "",
        "range": [n - 0.5, -0.5],
    }


def _head_ticks(curves: Trajectories) -> dict[str, Any]:
    n = curves.width
    return {"tickvals": list(range(0, n, max(1, n // 8))), "range": [-0.5, n - 0.5]}


def _by_onset(curves: Trajectories, marks: dict[int, tuple[int, str]], top: int) -> list[int]:
    """The rows of the strongest heads in the order of their onsets, those without one last; ties by their peak."""
    last = len(curves.checkpoints), ""
    return sorted(curves.leading(top), key=lambda row: marks.get(row, last)[0])


def _add_strip(
    figure: go.Figure, curves: Trajectories, axis: TrainingAxis, order: list[int], *, unit: str, panel: int
) -> None:
    columns = range(len(curves.checkpoints))
    names = [str(curves.heads[row]) for row in order]
    is_described = len(order) * len(columns) <= _MOST_DESCRIBED
    figure.add_heatmap(
        z=curves.score[order],
        x=cell_edges(axis.positions(curves.checkpoints)),
        y=np.arange(len(order) + 1) - 0.5,
        text=[[hover(curves, row, column, unit) for column in columns] for row in order] if is_described else None,
        customdata=[[name] * len(columns) for name in names],
        hovertemplate="%{text}<extra></extra>" if is_described else _SHORT,
        coloraxis="coloraxis",
        row=1,
        col=panel,
    )


def _strip_ticks(curves: Trajectories, order: list[int], theme: Theme) -> dict[str, Any]:
    """Heads with the letter of their layer's kind; of many heads every second or third."""
    every = max(1, len(order) // 24)
    labels = [f"{curves.heads[row]} {letter(curves.layer_of(row).kind, theme)}" for row in order[::every]]
    return {
        "tickvals": list(range(0, len(order), every)),
        "ticktext": labels,
        "range": [max(len(order), 1) - 0.5, -0.5],
    }


def _add_onset_ticks(
    figure: go.Figure, positions: Float[np.ndarray, " ckpts"], marks: list[tuple[int, str] | None], *, panel: int
) -> None:
    """The onset of each row as a tick; None where a row has none."""
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
