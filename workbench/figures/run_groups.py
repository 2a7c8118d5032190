"""Groups of runs over training, such as seeds of one model: the mean of each, and a band from lowest to highest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from workbench.console import fixed
from workbench.emergence.head_trajectories import CHECKPOINT_COLUMNS, Checkpoint, checkpoint_of
from workbench.figures.axis import AxisUnit, TrainingAxis, draw_axis, training_axis
from workbench.figures.style import Scale, Theme, faint, line_style, styled
from workbench.figures.trajectories import RunLike, records, score_scale, trajectories
from workbench.heads import WorkbenchError

# What tells the runs of a group apart: a number at the end, and a word that says what it counts.
_MEMBER = re.compile(r"[-_. /]*(seed|run|rep|trial|copy|s|r)?[-_. ]*\d+$", re.IGNORECASE)


class _Course(NamedTuple):
    """One run's numbers over its checkpoints."""

    checkpoints: tuple[Checkpoint, ...]
    y: Float[np.ndarray, " ckpts"]


def group_names(names: Sequence[str]) -> dict[str, str]:
    """The group of each run: its name without the number at its end, where another run has the same."""
    stems = {name: _MEMBER.sub("", name) or name for name in names}
    counts = [*stems.values()]
    return {name: stem if counts.count(stem) > 1 else name for name, stem in stems.items()}


def emergence_of_groups(
    groups: Mapping[str, Sequence[RunLike]],
    *,
    detector: str,
    probe: str | None = None,
    x: AxisUnit = "tokens",
    theme: Theme = "light",
) -> go.Figure:
    """How the strongest heads of groups of runs emerge: the mean over the runs of their three strongest heads.

    The band reaches from the lowest run to the highest. A group is drawn at the checkpoints that all its runs have.

    Raises:
        WorkbenchError: if a run has no such scores, or the runs of a group share no checkpoint.
    """
    curves = {name: [trajectories(run, detector, probe) for run in runs] for name, runs in groups.items()}
    scores = [each.score for of_group in curves.values() for each in of_group]
    scale = score_scale(detector, scores)
    courses = {
        name: [_Course(each.checkpoints, each.score[each.leading(3)].mean(0)) for each in of_group]
        for name, of_group in curves.items()
    }
    title = f"{detector} ({scale.unit})" if scale.unit else f"{detector} score"
    return _drawn(courses, title, scale.lowered(scores), x=x, theme=theme)


def metrics_of_groups(
    groups: Mapping[str, Sequence[RunLike]],
    *,
    metric: str,
    probe: str | None = None,
    x: AxisUnit = "tokens",
    theme: Theme = "light",
) -> go.Figure:
    """A model-level number of groups of runs over training, pooled over distances; see `emergence_of_groups`.

    Raises:
        WorkbenchError: if a run has no such metric, or the runs of a group share no checkpoint.
    """
    courses: dict[str, list[_Course]] = {}
    for name, runs in groups.items():
        for run in runs:
            table = run.metrics(metric=metric, probe=probe)
            rows = records(table, *CHECKPOINT_COLUMNS, "value", "distance", "position")
            pooled = [row for row in rows if row["distance"] is None and row["position"] is None]
            values = np.array([row["value"] for row in pooled], dtype=np.float64)
            courses.setdefault(name, []).append(_Course(tuple(map(checkpoint_of, pooled)), values))
    return _drawn(courses, metric.replace("_", " "), None, x=x, theme=theme)


def _drawn(
    courses: Mapping[str, Sequence[_Course]], title: str, scale: Scale | None, *, x: AxisUnit, theme: Theme
) -> go.Figure:
    axis = training_axis([each.checkpoints for of_group in courses.values() for each in of_group], x)
    figure = go.Figure()
    for i, (name, of_group) in enumerate(courses.items()):
        _add_group(figure, axis, name, of_group, style=line_style(i, theme))
    styled(figure, theme, height=300)
    room = 0.0 if scale is None else 0.03 * (scale.high - scale.low)
    range_of_y = None if scale is None else [scale.low - room, scale.high + room]
    figure.update_yaxes(title_text=title, range=range_of_y)
    figure.update_xaxes(title_text=axis.title)
    return draw_axis(figure, axis, theme)


def _add_group(
    figure: go.Figure, axis: TrainingAxis, name: str, of_group: Sequence[_Course], *, style: dict[str, str]
) -> None:
    places = [dict(zip(axis.positions(c.checkpoints).tolist(), c.y.tolist(), strict=True)) for c in of_group]
    shared = sorted(set.intersection(*map(set, places)))
    if not shared:
        raise WorkbenchError(f"the runs of {name} share no checkpoint that a mean could be taken at; show each run")
    values = np.array([[place[at] for at in shared] for place in places])
    mean, low, high = values.mean(0), values.min(0), values.max(0)
    n = len(of_group)
    label = f"{name} · {n} runs" if n > 1 else name
    if n > 1:
        figure.add_scatter(
            x=[*shared, *reversed(shared)],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=faint(style["color"], 0.18),
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=name,
            showlegend=False,
        )
    labels: dict[float, Any] = dict(
        zip(axis.positions(of_group[0].checkpoints).tolist(), of_group[0].checkpoints, strict=True)
    )
    figure.add_scatter(
        x=shared,
        y=mean,
        mode="lines" if len(shared) > 1 else "markers",
        name=label,
        legendgroup=name,
        line={**style, "width": 3},
        text=[
            f"mean of {n} run{'s' * (n > 1)} {fixed(m, 4)}<br>"
            f"lowest {fixed(lo, 4)}, highest {fixed(hi, 4)}<br>{labels[at]}"
            for at, m, lo, hi in zip(shared, mean.tolist(), low.tolist(), high.tolist(), strict=True)
        ],
        hovertemplate="%{text}<extra>" + name + "</extra>",
    )
