"""What the pages show: thin callbacks that ask the runs and hand their tables to the figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from dash import Dash, Input, Output, State, ctx, no_update

from workbench import figures
from workbench.app import pages as p
from workbench.app.live import LiveRun
from workbench.app.planes import planes, stop_of
from workbench.app.tables import facts_of, head_scores, score_table
from workbench.app.view import View
from workbench.figures.style import Theme
from workbench.heads import Head, WorkbenchError

Runs = Mapping[str, LiveRun]
_WAITING = "no scores yet<br>make some with<br><b>workbench scan DIR --out {run}</b><br>this page follows the scan"


def register_overview(app: Dash, runs: Runs) -> None:
    """The figures of the Overview, and the scores that its slider steps through."""

    @app.callback(
        Output(p.SENT, "data"),
        Output(p.PLANES, "data"),
        Output(p.CHECKPOINT, "max"),
        Output(p.CHECKPOINT, "marks"),
        Output(p.CHECKPOINT, "value"),
        Input(p.VIEW, "data"),
        Input(p.SCORES_CHANGED, "data"),
        Input(p.WANTED, "data"),
        State(p.AT, "data"),
        State(p.SENT, "data"),
        prevent_initial_call=True,
    )
    def send_planes(kept: Any, changed: Any, wanted: Any, at: Any, sent_before: Any) -> Any:
        view = View.from_json(kept)
        asked = [list(view.runs), view.detector, view.probe, changed, wanted]
        if asked == sent_before:
            return (no_update,) * 5
        try:
            sent = planes(scored(view, runs), view.detector, view.probe)
        except WorkbenchError:
            return asked, {"runs": {}, "stops": [], "detector": "", "probe": ""}, 0, [], 0
        by_address = any(change["prop_id"].startswith(f"{p.WANTED}.") for change in ctx.triggered)
        step = (wanted or {}).get("step") if by_address else at
        stops = len(sent["stops"])
        every = max(1, (stops - 1) // 5)
        shown = range(stops - 1, -1, -every)
        marks = [{"value": i, "label": sent["stops"][i]["label"].removesuffix(" tokens")} for i in reversed(shown)]
        return asked, {**sent, "probe": view.probe}, max(stops - 1, 0), marks, stop_of(sent, step)

    for graph, draw in ((p.EMERGENCE, figures.emergence), (p.STRIPS, figures.strips), (p.GRID, figures.heads)):

        @app.callback(
            Output(graph, "figure"),
            Input(p.VIEW, "data"),
            Input(p.SCORES_CHANGED, "data"),
            Input(p.THEME, "data"),
            prevent_initial_call=True,
        )
        def show_figure(kept: Any, _: Any, dark: Any, draw: Any = draw) -> Any:
            return _overview_figure(draw, kept, dark, runs)


def theme_of(dark: bool | None) -> Theme:
    """The theme that the browser keeps as a flag."""
    return "dark" if dark else "light"


def _overview_figure(draw: Any, kept: Any, dark: Any, runs: Runs) -> Any:
    """A figure of all chosen runs that have such scores, or what to do to get some."""
    if kept is None or kept["page"] != "overview":
        return no_update
    view, theme = View.from_json(kept), theme_of(dark)
    drawn = scored(view, runs)
    if not drawn:
        return p.message(_WAITING.format(run=runs[view.run].path.name if view.run else "RUN"), theme)
    try:
        figure: go.Figure = draw(drawn, detector=view.detector, probe=view.probe, theme=theme)
    except WorkbenchError as error:
        return p.message(str(error), theme)
    return figure.update_layout(meta={"detector": view.detector, "probe": view.probe})


def scored(view: View, runs: Runs) -> list[LiveRun]:
    """The chosen runs that have scores of the chosen detector on the chosen probe."""
    chosen = [runs[name] for name in view.runs if name in runs]
    return [run for run in chosen if view.detector and view.probe in run.probes_of(view.detector)]


def register_metrics(app: Dash, runs: Runs) -> None:
    """The two model-level figures of the Overview."""

    @app.callback(
        Output(p.LEFT_METRIC, "data"),
        Output(p.LEFT_METRIC, "value"),
        Output(p.RIGHT_METRIC, "data"),
        Output(p.RIGHT_METRIC, "value"),
        Input(p.VIEW, "data"),
        Input(p.METRICS_CHANGED, "data"),
        State(p.LEFT_METRIC, "value"),
        State(p.RIGHT_METRIC, "value"),
        prevent_initial_call=True,
    )
    def offer_metrics(kept: Any, _: Any, left: Any, right: Any) -> Any:
        names = metric_choices(View.from_json(kept), runs)
        accuracy = next((name for name in names if "accuracy" in name), names[0] if names else None)
        loss = next((name for name in names if "loss" in name), names[-1] if names else None)
        data = [{"value": name, "label": name.replace("_", " ", 1)} for name in names]
        return data, left if left in names else accuracy, data, right if right in names else loss

    for select, graph in ((p.LEFT_METRIC, p.LEFT_FIGURE), (p.RIGHT_METRIC, p.RIGHT_FIGURE)):

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
            view, theme = View.from_json(kept), theme_of(dark)
            if not choice:
                return p.message("no model-level numbers yet", theme)
            metric, _, probe = choice.partition(" on ")
            drawn = [runs[name] for name in view.runs if (metric, probe) in runs[name].metric_names()]
            if not drawn:
                return p.message("no model-level numbers yet", theme)
            # whose colour is whose stands beside it: in the cards and in the legend of Emergence
            return figures.metrics(drawn, metric=metric, probe=probe, theme=theme).update_layout(showlegend=False)


def metric_choices(view: View, runs: Runs) -> list[str]:
    """What was measured of any chosen run, as `metric on probe`."""
    return sorted({f"{metric} on {probe}" for name in view.runs for metric, probe in runs[name].metric_names()})


def register_head(app: Dash, runs: Runs) -> None:
    """The Head page."""

    @app.callback(
        Output(p.TITLE, "children"),
        Output(p.BADGES, "children"),
        Output(p.HISTORY, "figure"),
        Output(p.HEAD_GRID, "figure"),
        Input(p.VIEW, "data"),
        Input(p.HEAD_CHANGED, "data"),
        Input(p.THEME, "data"),
        prevent_initial_call=True,
    )
    def show_head(kept: Any, _: Any, dark: Any) -> Any:
        if kept is None or kept["page"] != "head":
            return (no_update,) * 4
        view, theme = View.from_json(kept), theme_of(dark)
        if not view.head:
            waiting = p.message(_WAITING.format(run=view.run or "RUN"), theme)
            return "no head yet", [], waiting, waiting
        run, head = runs[view.run], Head.parse(view.head)
        grid = _overview_figure(figures.heads, {**kept, "page": "overview", "runs": [view.run]}, dark, runs)
        facts = p.badges(facts_of(run, run.layers(), head))
        return view.head, facts, figures.history(run, head, probe=view.probe, theme=theme), framed(grid, run, head)

    @app.callback(
        Output(p.PLACE, "figure"),
        Output(p.SCORES, "children"),
        Input(p.VIEW, "data"),
        Input(p.STEPS, "data"),
        Input(p.HEAD_CHANGED, "data"),
        Input(p.THEME, "data"),
        prevent_initial_call=True,
    )
    def show_place(kept: Any, steps: Any, _: Any, dark: Any) -> Any:
        if kept is None or kept["page"] != "head" or not kept["head"]:
            return no_update, no_update
        view, theme = View.from_json(kept), theme_of(dark)
        run, head, step = runs[view.run], Head.parse(view.head), (steps or {}).get(view.run, "last")
        try:
            figure = figures.place(run, head, probe=view.probe, step=step, theme=theme)
        except WorkbenchError as error:
            return p.message(str(error), theme), []
        return figure, score_table(head_scores(run, head, step, probe=view.probe))


def framed(grid: go.Figure, run: LiveRun, head: Head) -> go.Figure:
    """The layer-by-head grid with a frame around one head."""
    layers = run.layers().loc[:, "layer"].tolist()
    row = layers.index(head.layer)
    return grid.add_shape(
        type="rect",
        x0=head.head - 0.5,
        x1=head.head + 0.5,
        y0=row - 0.5,
        y1=row + 0.5,
        line={"color": "#E4572E", "width": 3},
        name="chosen",
    )
