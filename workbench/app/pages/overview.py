"""Overview: heads over training, at one checkpoint, and what the models can do meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, html, no_update

from workbench import figures
from workbench.app import components as p
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
# What a run's panel beside others needs at least.
_PANEL_PX = 210
# as `recall_hops_2`, `loss_nats_depth_50`
_CLASSED = re.compile(r"(?P<what>.+)_(?P<by>[a-z]+)_(?P<at>\d+)")
LEFT_METRIC, RIGHT_METRIC, LEFT_FIGURE, RIGHT_FIGURE = "metric-left", "metric-right", "figure-left", "figure-right"


def register(app: Dash, content: p.Content) -> None:
    """The figures of the Overview."""
    _register_figures(app, content)
    _register_metrics(app, content)


def read_ahead(view: View, content: p.Content) -> None:
    """Read and draw what the page shows first, in the light theme."""
    choices = default_metrics(metric_choices(view, content.runs), view.probe)
    for graph in DRAWN:
        _drawn(graph, view, None, content=content, metric=choices[0])
    for choice in choices:
        _metric(choice, view, None, content=content)


def _register_figures(app: Dash, content: p.Content) -> None:
    for graph in DRAWN:

        @app.callback(
            Output(graph, "figure"),
            Input(p.VIEW, "data"),
            Input(p.SCORES_CHANGED, "data"),
            Input(p.THEME, "data"),
            State(LEFT_METRIC, "value"),
            prevent_initial_call=True,
        )
        def show_figure(kept: Any, _: Any, dark: Any, metric: Any, graph: Any = graph) -> Any:
            if kept is None or kept["page"] != "overview":
                return no_update
            view = View.from_json(kept)
            chosen = metric or default_metrics(metric_choices(view, content.runs), view.probe)[0]
            return _drawn(graph, view, dark, content=content, metric=chosen)

    @app.callback(Output(p.choice_id("x"), "value"), Input(p.VIEW, "data"), prevent_initial_call=True)
    def show_unit(kept: Any) -> Any:
        return no_update if kept is None else View.from_json(kept).x


def _drawn(graph: str, view: View, dark: bool | None, *, content: p.Content, metric: str | None) -> go.Figure:
    """One of `DRAWN`, with the phase changes of a metric where it has lines."""

    def draw() -> go.Figure:
        figure = overview_figure(DRAWN[graph], {**view.as_json(), "page": "overview"}, dark, content.runs)
        if graph != EMERGENCE:
            return figure
        return mark(figure, scored(view, content.runs), metric, view=view, theme=p.theme_of(dark))

    shown = [content.runs[name].fingerprint("scores", detector=view.detector, probe=view.probe) for name in view.runs]
    about = (view.runs, view.detector, view.probe, view.x, bool(dark), *shown)
    if graph == EMERGENCE:
        about += (metric, *(content.runs[name].fingerprint("metrics") for name in view.runs))
    return content.made.once((graph, *about), draw)


def overview_figure(draw: Any, kept: Any, dark: Any, runs: p.Runs) -> Any:
    """A figure of all chosen runs that have such scores, or what to do to get some."""
    if kept is None or kept["page"] != "overview":
        return no_update
    view, theme = View.from_json(kept), p.theme_of(dark)
    drawn = scored(view, runs)
    if not drawn:
        return p.message(p.WAITING.format(run=runs[view.run].path.name if view.run else "RUN"), theme)
    try:
        over_training = {"x": view.x} if draw in (figures.emergence, figures.strips) else {}
        figure: go.Figure = draw(drawn, detector=view.detector, probe=view.probe, theme=theme, **over_training)
    except WorkbenchError as error:
        return p.message(str(error), theme)
    width = 0 if draw is figures.emergence else _PANEL_PX * len(drawn)
    return figure.update_layout(meta={"detector": view.detector, "probe": view.probe, "width": width})


def scored(view: View, runs: p.Runs) -> list[Run]:
    """The chosen runs that have scores of the chosen detector on the chosen probe."""
    chosen = [runs[name] for name in view.runs if name in runs]
    return [run for run in chosen if view.detector and view.probe in run.probes_of(view.detector)]


def unscored(view: View, runs: p.Runs) -> dict[str, str]:
    """The chosen runs without such scores, and what the detector was scored on there."""
    shown = {run.name for run in scored(view, runs)}
    found: dict[str, str] = {}
    for name in view.runs:
        if name in runs and name not in shown:
            probes = runs[name].probes_of(view.detector)
            found[name] = f"scored on {', '.join(probes)}" if probes else f"no scores of {view.detector}"
    return found


def _register_metrics(app: Dash, content: p.Content) -> None:
    runs = content.runs

    @app.callback(
        Output(LEFT_METRIC, "data"),
        Output(LEFT_METRIC, "value"),
        Output(RIGHT_METRIC, "data"),
        Output(RIGHT_METRIC, "value"),
        Input(p.VIEW, "data"),
        Input(p.METRICS_CHANGED, "data"),
        State(LEFT_METRIC, "value"),
        State(RIGHT_METRIC, "value"),
        prevent_initial_call=True,
    )
    def offer_metrics(kept: Any, _: Any, left: Any, right: Any) -> Any:
        view = View.from_json(kept)
        names = metric_choices(view, runs)
        accuracy, loss = default_metrics(names, view.probe)
        data = grouped(names)
        return data, left if left in names else accuracy, data, right if right in names else loss

    for select, graph in ((LEFT_METRIC, LEFT_FIGURE), (RIGHT_METRIC, RIGHT_FIGURE)):

        @app.callback(
            Output(graph, "figure"),
            Input(select, "value"),
            Input(p.VIEW, "data"),
            Input(p.METRICS_CHANGED, "data"),
            Input(p.THEME, "data"),
            prevent_initial_call=True,
        )
        def show_metric(choice: Any, kept: Any, _: Any, dark: Any) -> Any:
            if kept is None or kept["page"] != "overview":
                return no_update
            return _metric(choice, View.from_json(kept), dark, content=content)


def _metric(choice: str | None, view: View, dark: bool | None, *, content: p.Content) -> go.Figure:
    """A model-level number of all chosen runs that have it."""
    theme, runs = p.theme_of(dark), content.runs
    metric, _, probe = (choice or "").partition(" on ")
    drawn = [runs[name] for name in view.runs if (metric, probe) in runs[name].metric_names()]

    def draw() -> go.Figure:
        if not drawn:
            return p.message("no model-level numbers yet", theme)
        # whose colour is whose stands beside it: in the cards and in the legend of Emergence
        figure = figures.metrics(drawn, metric=metric, probe=probe, x=view.x, theme=theme)
        return mark(figure, drawn, choice, view=view, theme=theme).update_layout(showlegend=False)

    shown = [run.fingerprint("metrics", probe=probe) for run in drawn]
    names = [run.name for run in drawn]
    return content.made.once((metric, probe, view.x, bool(dark), *names, *shown), draw)


def metric_choices(view: View, runs: p.Runs) -> list[str]:
    """What was measured of any chosen run, as `metric on probe`."""
    return sorted({f"{metric} on {probe}" for name in view.runs for metric, probe in runs[name].metric_names()})


def default_metrics(names: list[str], probe: str) -> tuple[str | None, str | None]:
    """What the two figures show unless told otherwise: an accuracy, and a loss; on the probe, if there are such."""
    near_first = sorted(names, key=lambda name: not name.endswith(f" on {probe}"))
    accuracy = next((name for name in near_first if "accuracy" in name), names[0] if names else None)
    return accuracy, next((name for name in near_first if "loss" in name), names[-1] if names else None)


def grouped(names: list[str]) -> list[dict[str, Any]]:
    """The choices by what is measured: pooled numbers first, then those of one class, such as hops, in order."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        metric, _, probe = name.partition(" on ")
        of = _CLASSED.fullmatch(metric)
        group = f"{of['what']} by {of['by']}" if of else metric
        groups.setdefault(f"{group.replace('_', ' ')} · {probe}" if of else group.replace("_", " "), []).append(
            (int(of["at"]) if of else 0, name)
        )
    return [
        {"group": group, "items": [{"value": name, "label": name.replace("_", " ")} for _, name in sorted(items)]}
        for group, items in groups.items()
    ]


def mark(figure: go.Figure, drawn: list[Run], choice: str | None, *, view: View, theme: Theme) -> go.Figure:
    """The phase changes of a metric of these runs, as marks in a figure over training."""
    metric, _, probe = (choice or "").partition(" on ")
    changes = {run.name: run.pooled_phase_changes(metric, probe) for run in drawn}
    return figures.mark_phases(figure, changes, x=view.x, theme=theme)


def layout(_: p.Content) -> html.Div:
    """The Overview."""
    curves = html.Div(
        [
            p.card(
                "Emergence",
                [
                    "bold: mean of each run's 3 strongest heads; rings: half-rise onset; dotted: phase change",
                    p.choice("x", width=84, choices=("tokens", "step")),
                ],
                p.graph(EMERGENCE, "cursor"),
            ),
            p.card(
                _metric_select(LEFT_METRIC),
                "dotted: farthest distance",
                p.graph(LEFT_FIGURE, "cursor"),
                table="metrics",
            ),
            p.card(
                _metric_select(RIGHT_METRIC),
                "dotted: farthest distance",
                p.graph(RIGHT_FIGURE, "cursor"),
                table="metrics",
            ),
        ],
        className="row three",
    )
    strips = p.card(
        "Heads × checkpoints",
        "strongest heads, earliest onset (tick) first, in each run's own order · click opens the head",
        p.graph(STRIPS, "clickable cursor"),
        table="emergence",
    )
    ridges = p.card(
        "Score distribution over training",
        "heights: log of 1 + heads; where a class of heads parts from the rest",
        p.graph(RIDGES),
        table="scores",
    )
    kinds = "F full · W sliding window · C chunked · L linear · grey: no score · click opens the head"
    grid = p.card("Layer × head at this checkpoint", kinds, p.graph(GRID, "clickable grid"), table="scores")
    return p.page_of("overview", [html.Div(id=KPIS, className="kpis"), curves, strips, grid, ridges])


def _metric_select(name: str) -> dmc.Select:
    return dmc.Select(
        id=name, data=[], size="xs", allowDeselect=False, className="metric", **p.extra(aria_label="metric")
    )


PAGE = p.Page("overview", layout, register, (EMERGENCE, LEFT_FIGURE, RIGHT_FIGURE, STRIPS, GRID, RIDGES))
