"""The Overview page: heads over training and at one checkpoint, beside model-level numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import dash_mantine_components as dmc
import pandas as pd
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, html, no_update

from workbench import figures
from workbench.app import ids
from workbench.app.components import WAITING, attributes, card, choice, graph, message, theme_of
from workbench.app.registry import page
from workbench.app.state.content import Content, Runs
from workbench.app.state.view import View
from workbench.figures.style import Theme
from workbench.heads import WorkbenchError
from workbench.runs import Run

KPIS, EMERGENCE, STRIPS, RIDGES, GRID = "kpis", "emergence", "strips", "ridges", "grid"
DRAWN: dict[str, Callable[..., go.Figure]] = {
    EMERGENCE: figures.emergence,
    STRIPS: figures.strips,
    GRID: figures.heads,
    RIDGES: figures.ridgelines,
}
# The least width of one run's panel.
_PANEL_PX = 210
# Numbers of one class, such as `recall_hops_2` and `loss_nats_depth_50`.
_CLASSED = re.compile(r"(?P<metric>.+)_(?P<by>[a-z]+)_(?P<value>\d+)")
LEFT_METRIC, RIGHT_METRIC, LEFT_FIGURE, RIGHT_FIGURE = "metric-left", "metric-right", "figure-left", "figure-right"


def register(app: Dash, content: Content) -> None:
    """The figures of the Overview."""
    _register_figures(app, content)
    _register_metrics(app, content)


def read_ahead(view: View, content: Content) -> None:
    """Read and draw what the page shows first, in the light theme."""
    choices = default_metrics(metric_choices(view, content.runs), view.probe)
    for figure_id in DRAWN:
        _draw(figure_id, view, None, content=content, metric=choices[0])
    for metric in choices:
        _draw_metric(metric, view, None, content=content)


def _register_figures(app: Dash, content: Content) -> None:
    for figure_id in DRAWN:

        @app.callback(
            Output(figure_id, "figure"),
            Input(ids.VIEW, "data"),
            Input(ids.SCORES_CHANGED, "data"),
            Input(ids.THEME, "data"),
            State(LEFT_METRIC, "value"),
            prevent_initial_call=True,
        )
        def show_figure(view_json: Any, _: Any, is_dark: Any, metric: Any, figure_id: Any = figure_id) -> Any:
            view = View.of_page("overview", view_json)
            if view is None:
                return no_update
            shown_metric = metric or default_metrics(metric_choices(view, content.runs), view.probe)[0]
            return _draw(figure_id, view, is_dark, content=content, metric=shown_metric)

    @app.callback(Output(ids.parameter_id("x"), "value"), Input(ids.VIEW, "data"), prevent_initial_call=True)
    def show_unit(view_json: Any) -> Any:
        return no_update if view_json is None else View.from_json(view_json).x


def _draw(figure_id: str, view: View, is_dark: bool | None, *, content: Content, metric: str | None) -> go.Figure:
    """One of `DRAWN`; Emergence also shows the phase changes of a metric."""

    def draw() -> go.Figure:
        theme = theme_of(is_dark)
        figure = overview_figure(DRAWN[figure_id], view, content.runs, theme=theme)
        if figure_id != EMERGENCE:
            return figure
        return mark(figure, scored(view, content.runs), metric, view=view, theme=theme)

    digests = [content.runs[name].fingerprint("scores", detector=view.detector, probe=view.probe) for name in view.runs]
    key = (figure_id, view.runs, view.detector, view.probe, view.x, bool(is_dark), *digests)
    if figure_id == EMERGENCE:
        key += (metric, *(content.runs[name].fingerprint("metrics") for name in view.runs))
    return content.made.once(key, draw)


def overview_figure(draw: Callable[..., go.Figure], view: View, runs: Runs, *, theme: Theme) -> go.Figure:
    """A figure of all chosen runs that have such scores, or the command that makes some."""
    drawn = scored(view, runs)
    if not drawn:
        return message(WAITING.format(run=runs[view.run].path.name if view.run else "RUN"), theme)
    try:
        over_training = {"x": view.x} if draw in (figures.emergence, figures.strips) else {}
        figure: go.Figure = draw(drawn, detector=view.detector, probe=view.probe, theme=theme, **over_training)
    except WorkbenchError as error:
        return message(str(error), theme)
    width = 0 if draw is figures.emergence else _PANEL_PX * len(drawn)
    return figure.update_layout(meta={"detector": view.detector, "probe": view.probe, "width": width})


def scored(view: View, runs: Runs) -> list[Run]:
    """The chosen runs that have scores of the chosen detector on the chosen probe."""
    chosen = [runs[name] for name in view.runs if name in runs]
    return [run for run in chosen if view.detector and view.probe in run.probes_of(view.detector)]


def unscored(view: View, runs: Runs) -> dict[str, str]:
    """The chosen runs without such scores, and the probes that the detector was scored on there."""
    with_scores = {run.name for run in scored(view, runs)}
    reasons: dict[str, str] = {}
    for name in view.runs:
        if name in runs and name not in with_scores:
            probes = runs[name].probes_of(view.detector)
            reasons[name] = f"scored on {', '.join(probes)}" if probes else f"no scores of {view.detector}"
    return reasons


def emerged(view: View, runs: Runs) -> dict[str, pd.DataFrame]:
    """The traced heads of all chosen runs that have such scores."""
    chosen = [runs[name] for name in view.runs if view.probe in runs[name].probes_of(view.detector)]
    return {run.name: run.emergence(view.detector, probe=view.probe) for run in chosen}


def _register_metrics(app: Dash, content: Content) -> None:
    runs = content.runs

    @app.callback(
        Output(LEFT_METRIC, "data"),
        Output(LEFT_METRIC, "value"),
        Output(RIGHT_METRIC, "data"),
        Output(RIGHT_METRIC, "value"),
        Input(ids.VIEW, "data"),
        Input(ids.METRICS_CHANGED, "data"),
        State(LEFT_METRIC, "value"),
        State(RIGHT_METRIC, "value"),
        prevent_initial_call=True,
    )
    def offer_metrics(view_json: Any, _: Any, left: Any, right: Any) -> Any:
        view = View.from_json(view_json)
        names = metric_choices(view, runs)
        accuracy, loss = default_metrics(names, view.probe)
        data = grouped(names)
        return data, left if left in names else accuracy, data, right if right in names else loss

    for select_id, figure_id in ((LEFT_METRIC, LEFT_FIGURE), (RIGHT_METRIC, RIGHT_FIGURE)):

        @app.callback(
            Output(figure_id, "figure"),
            Input(select_id, "value"),
            Input(ids.VIEW, "data"),
            Input(ids.METRICS_CHANGED, "data"),
            Input(ids.THEME, "data"),
            prevent_initial_call=True,
        )
        def show_metric(choice: Any, view_json: Any, _: Any, is_dark: Any) -> Any:
            view = View.of_page("overview", view_json)
            return no_update if view is None else _draw_metric(choice, view, is_dark, content=content)


def _draw_metric(choice: str | None, view: View, is_dark: bool | None, *, content: Content) -> go.Figure:
    """A model-level number of all chosen runs that have it."""
    theme, runs = theme_of(is_dark), content.runs
    metric, _, probe = (choice or "").partition(" on ")
    drawn = [runs[name] for name in view.runs if (metric, probe) in runs[name].metric_names()]

    def draw() -> go.Figure:
        if not drawn:
            return message("no model-level numbers yet", theme)
        # The cards and the legend of Emergence name the colours.
        figure = figures.metrics(drawn, metric=metric, probe=probe, x=view.x, theme=theme)
        return mark(figure, drawn, choice, view=view, theme=theme).update_layout(showlegend=False)

    digests = [run.fingerprint("metrics", probe=probe) for run in drawn]
    names = [run.name for run in drawn]
    return content.made.once((metric, probe, view.x, bool(is_dark), *names, *digests), draw)


def metric_choices(view: View, runs: Runs) -> list[str]:
    """The model-level numbers of all chosen runs, as `metric on probe`."""
    return sorted({f"{metric} on {probe}" for name in view.runs for metric, probe in runs[name].metric_names()})


def default_metrics(names: list[str], probe: str) -> tuple[str | None, str | None]:
    """The first metrics of the two figures: an accuracy and a loss, on the probe if there are such."""
    by_probe = sorted(names, key=lambda name: not name.endswith(f" on {probe}"))
    accuracy = next((name for name in by_probe if "accuracy" in name), names[0] if names else None)
    return accuracy, next((name for name in by_probe if "loss" in name), names[-1] if names else None)


def grouped(names: list[str]) -> list[dict[str, Any]]:
    """The choices in groups: each pooled number, and the numbers of each class, such as hops, in order."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        metric, _, probe = name.partition(" on ")
        classed = _CLASSED.fullmatch(metric)
        title = (f"{classed['metric']} by {classed['by']}" if classed else metric).replace("_", " ")
        group = f"{title} · {probe}" if classed else title
        groups.setdefault(group, []).append((int(classed["value"]) if classed else 0, name))
    return [
        {"group": group, "items": [{"value": name, "label": name.replace("_", " ")} for _, name in sorted(items)]}
        for group, items in groups.items()
    ]


def mark(figure: go.Figure, drawn: list[Run], choice: str | None, *, view: View, theme: Theme) -> go.Figure:
    """The phase changes of a metric of these runs, as marks in a figure over training."""
    metric, _, probe = (choice or "").partition(" on ")
    changes = {run.name: run.pooled_phase_changes(metric, probe) for run in drawn}
    return figures.mark_phases(figure, changes, x=view.x, theme=theme)


def _scores(view: View, content: Content, _: int | None) -> pd.DataFrame:
    """All scores of the chosen detector and probe, of all chosen runs."""
    tables = [
        run.scores(detector=view.detector, probe=view.probe).assign(run=run.name) for run in scored(view, content.runs)
    ]
    return _concatenated(tables)


def _emergence(view: View, content: Content, _: int | None) -> pd.DataFrame:
    return _concatenated([table.assign(run=name) for name, table in emerged(view, content.runs).items()])


def _metrics(view: View, content: Content, _: int | None) -> pd.DataFrame:
    tables = [content.runs[name].metrics().assign(run=name) for name in view.runs]
    return pd.concat(tables, ignore_index=True)


def _concatenated(tables: list[pd.DataFrame]) -> pd.DataFrame:
    if not tables:
        raise WorkbenchError("no chosen run has such scores yet; make some with `workbench scan DIR --out RUN`")
    return pd.concat(tables, ignore_index=True)


@page(
    "overview",
    register=register,
    parameters=("x",),
    exports={"scores": _scores, "emergence": _emergence, "metrics": _metrics},
)
def layout(_: Content) -> list[Any]:
    """Heads over training, at one checkpoint, and model-level numbers."""
    curves = html.Div(
        [
            card(
                "Emergence",
                [
                    "bold: mean of each run's 3 strongest heads; rings: half-rise onset; dotted: phase change",
                    choice("x", width=84, choices=("tokens", "step")),
                ],
                graph(EMERGENCE, "cursor"),
            ),
            card(
                _metric_select(LEFT_METRIC),
                "dotted: farthest distance",
                graph(LEFT_FIGURE, "cursor"),
                table="metrics",
            ),
            card(
                _metric_select(RIGHT_METRIC),
                "dotted: farthest distance",
                graph(RIGHT_FIGURE, "cursor"),
                table="metrics",
            ),
        ],
        className="row three",
    )
    strips = card(
        "Heads × checkpoints",
        "strongest heads, earliest onset (tick) first, in each run's own order · click opens the head",
        graph(STRIPS, "clickable cursor"),
        table="emergence",
    )
    ridges = card(
        "Score distribution over training",
        "heights: log of 1 + heads; where a class of heads parts from the rest",
        graph(RIDGES),
        table="scores",
    )
    kinds = "F full · W sliding window · C chunked · K selected keys · L linear · grey: no score · click opens the head"
    grid = card("Layer × head at this checkpoint", kinds, graph(GRID, "clickable grid"), table="scores")
    return [html.Div(id=KPIS, className="kpis"), curves, strips, grid, ridges]


def _metric_select(name: str) -> dmc.Select:
    return dmc.Select(
        id=name,
        data=[],
        size="xs",
        allowDeselect=False,
        className="metric",
        **attributes(aria_label="metric"),
    )
