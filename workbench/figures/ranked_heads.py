"""The strongest heads at one checkpoint, sorted, each with its interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.emergence.head_trajectories import Trajectories
from workbench.emergence.thresholds import threshold_of
from workbench.figures.head_curves import Runs, as_runs
from workbench.figures.style import PALETTES, Theme, letter, line_style, styled
from workbench.figures.trajectories import hover, score_scale, trajectories

_ROW_PX = 19


def ranked(
    run: Runs,
    *,
    detector: str,
    probe: str | None = None,
    step: int | str = "last",
    top: int = 24,
    theme: Theme = "light",
) -> go.Figure:
    """The heads with the highest scores at one checkpoint, best first, with 95 % intervals, one panel per run.

    A dotted line is the score from which heads of the detector are counted; see `threshold_of`.

    Raises:
        WorkbenchError: if a run has no such scores or no such step.
    """
    runs = as_runs(run)
    courses = [trajectories(each, detector, probe) for each in runs]
    scale = score_scale(detector, [course.score for course in courses])
    threshold = threshold_of(detector)
    titles = [_title(each.name, course, top) for each, course in zip(runs, courses, strict=True)]
    figure = make_subplots(1, len(runs), subplot_titles=titles, horizontal_spacing=0.3 / len(runs) if runs[1:] else 0)
    for i, (each, course) in enumerate(zip(runs, courses, strict=True)):
        column = course.column(step)
        rows = _strongest(course, column, top)
        score, low, high = (a[rows, column] for a in (course.score, course.ci_lo, course.ci_hi))
        figure.add_scatter(
            x=score,
            y=list(range(len(rows))),
            mode="markers",
            name=each.name,
            marker={"color": line_style(i, theme)["color"], "size": 8},
            error_x={
                "type": "data",
                "array": np.nan_to_num(high - score),
                "arrayminus": np.nan_to_num(score - low),
                "thickness": 1.5,
                "width": 3,
                "color": PALETTES[theme].muted,
            },
            customdata=[str(course.heads[row]) for row in rows],
            text=[hover(course, row, column, scale.unit) for row in rows],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            row=1,
            col=i + 1,
        )
        if not scale.unit:
            place: Any = {"row": 1, "col": i + 1}
            figure.add_vline(
                x=threshold.value, line={"color": PALETTES[theme].muted, "width": 1, "dash": "dot"}, **place
            )
        labels = [f"{course.heads[row]} {letter(course.layer_of(row).kind, theme)}" for row in rows]
        ticks: dict[str, Any] = {
            "tickvals": list(range(len(rows))),
            "ticktext": labels,
            "range": [max(len(rows), 1) - 0.5, -0.5],
        }
        figure.update_yaxes(**ticks, row=1, col=i + 1)
    most = max(min(top, len(course.heads)) for course in courses)
    styled(figure, theme, height=90 + _ROW_PX * most)
    room = 0.03 * (scale.high - scale.low)
    figure.update_xaxes(range=[scale.low - room, scale.high + room], title_text=scale.unit or f"{detector} score")
    figure.update_yaxes(showgrid=False, ticks="")
    longest = max(len(str(head)) for course in courses for head in course.heads)
    figure.update_layout(margin={"l": 24 + 8 * longest})
    figure.update_annotations(font={"size": 12, "color": PALETTES[theme].text})
    return figure


def _strongest(course: Trajectories, column: int, top: int) -> list[int]:
    """The rows of the heads with the highest scores at a checkpoint, the highest first."""
    score = course.score[:, column]
    order = np.argsort(np.where(np.isnan(score), np.inf, -score), kind="stable")
    return [int(row) for row in order[:top] if not np.isnan(score[row])]


def _title(name: str, course: Trajectories, top: int) -> str:
    n = len(course.heads)
    return f"{name} · {n} heads" if n <= top else f"{name} · the first {top} of {n} heads"
