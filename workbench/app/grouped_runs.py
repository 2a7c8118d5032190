"""Runs of one name and several numbers, such as seeds, drawn as one group."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from workbench import figures
from workbench.app.components import message
from workbench.app.state.view import View
from workbench.figures.style import Theme
from workbench.heads import WorkbenchError
from workbench.runs import Run


def grouped_by_name(view: View) -> bool:
    """Whether runs whose names differ in a number at their end are drawn as one group."""
    return view.get("group") == "by name"


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    names = figures.group_names([run.name for run in runs])
    for run in runs:
        groups.setdefault(names[run.name], []).append(run)
    return groups


def emergence_figure(drawn: Sequence[Run], *, view: View, theme: Theme) -> go.Figure:
    """The strongest heads of each group over training, or why that cannot be drawn."""
    try:
        chosen = {"detector": view.detector, "probe": view.probe}
        return figures.emergence_of_groups(_groups(drawn), **chosen, x=view.x, theme=theme)
    except WorkbenchError as error:
        return message(str(error), theme)


def metrics_figure(drawn: Sequence[Run], metric: str, probe: str, *, view: View, theme: Theme) -> go.Figure:
    """A model-level number of each group over training, or why that cannot be drawn."""
    try:
        return figures.metrics_of_groups(_groups(drawn), metric=metric, probe=probe, x=view.x, theme=theme)
    except WorkbenchError as error:
        return message(str(error), theme)
