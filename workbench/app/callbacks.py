"""What happens when: thin callbacks that ask the runs and hand their tables to the figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, ctx, no_update

from workbench import figures
from workbench.app import pages as p
from workbench.app.live import LiveRun
from workbench.app.planes import planes, stop_of
from workbench.app.tables import facts_of, head_scores, score_table
from workbench.app.view import (
    View,
    address_of,
    choices_of_detector,
    choices_of_probe,
    heads_of,
    neighbour,
    settled,
    view_of,
)
from workbench.figures.style import Theme
from workbench.heads import Head, WorkbenchError

Runs = Mapping[str, LiveRun]
_WAITING = "no scores yet<br>make some with<br><b>workbench scan DIR --out {run}</b><br>this page follows the scan"


def register(app: Dash, runs: Runs) -> None:
    """Add all callbacks."""
    _register_browser(app)
    _register_view(app, runs)
    _register_refresh(app, runs)
    _register_overview(app, runs)
    _register_metrics(app, runs)
    _register_head(app, runs)


def theme_of(dark: bool | None) -> Theme:
    """The theme that the browser keeps as a flag."""
    return "dark" if dark else "light"


def next_view(view: View, trigger: str, given: Mapping[str, Any], runs: Runs) -> View:
    """The view after one change: a new address, another choice, a click on a head, or a key."""
    if trigger == p.LOCATION:
        return settled(view_of(given[p.LOCATION])[0], runs)
    if trigger == p.RUNS:
        return settled(replace(view, runs=tuple(given[p.RUNS] or ())), runs)
    if trigger == p.DETECTOR:
        return settled(replace(view, detector=given[p.DETECTOR] or ""), runs)
    if trigger == p.PROBE:
        return settled(replace(view, probe=given[p.PROBE] or ""), runs)
    if trigger == p.FOCUS:
        return settled(replace(view, run=given[p.FOCUS] or ""), runs)
    if trigger == p.JUMP:
        jump = given[p.JUMP]
        if "key" in jump:
            if view.page != "head" or not view.head:
                return view
            return replace(view, head=neighbour(view.head, jump["key"], heads_of(runs[view.run])))
        changed = {name: jump[name] for name in ("page", "run", "head") if name in jump}
        return settled(replace(view, **changed), runs)
    return settled(view, runs)


def _register_browser(app: Dash) -> None:
    """Callbacks that run in the browser: see assets/workbench.js."""
    js = "workbench"
    app.clientside_callback(ClientsideFunction(js, "located"), Output(p.LOCATION, "data"), Input(p.ROOT, "id"))
    app.clientside_callback(ClientsideFunction(js, "navigated"), Input(p.NAVIGATE, "data"), State(p.VIEW, "data"))
    app.clientside_callback(
        ClientsideFunction(js, "themed"),
        Output(p.MANTINE, "forceColorScheme"),
        Output(p.ROOT, "className"),
        Input(p.THEME, "data"),
        Input(p.VIEW, "data"),
    )
    app.clientside_callback(
        ClientsideFunction(js, "stepped"),
        Output(p.KPIS, "children"),
        Output(p.CHECKPOINT_LABEL, "children"),
        Output(p.STEPS, "data"),
        Input(p.CHECKPOINT, "value"),
        Input(p.PLANES, "data"),
        Input(p.THEME, "data"),
        Input(p.VIEW, "data"),
    )
    app.clientside_callback(
        ClientsideFunction(js, "drawn"),
        *(
            Input(graph, "figure")
            for graph in (p.EMERGENCE, p.LEFT_FIGURE, p.RIGHT_FIGURE, p.STRIPS, p.GRID, p.HISTORY, p.PLACE, p.HEAD_GRID)
        ),
    )


def _register_view(app: Dash, runs: Runs) -> None:
    @app.callback(
        Output(p.NAVIGATE, "data"),
        Output(p.VIEW, "data"),
        Output(p.WANTED, "data"),
        Output(p.RUNS, "value"),
        Output(p.DETECTOR, "data"),
        Output(p.DETECTOR, "value"),
        Output(p.PROBE, "data"),
        Output(p.PROBE, "value"),
        Output(p.FOCUS, "data"),
        Output(p.FOCUS, "value"),
        Input(p.LOCATION, "data"),
        Input(p.RUNS, "value"),
        Input(p.DETECTOR, "value"),
        Input(p.PROBE, "value"),
        Input(p.FOCUS, "value"),
        Input(p.JUMP, "data"),
        Input(p.NAMES_CHANGED, "data"),
        State(p.VIEW, "data"),
        prevent_initial_call=True,
    )
    def change_view(
        location: Any, chosen: Any, detector: Any, probe: Any, focus: Any, jump: Any, _: Any, kept: Any
    ) -> Any:
        trigger = str(ctx.triggered_id)
        if kept is None and trigger != p.LOCATION:
            return (no_update,) * 10
        view = View() if kept is None else View.from_json(kept)
        given = {
            p.LOCATION: location,
            p.RUNS: chosen,
            p.DETECTOR: detector,
            p.PROBE: probe,
            p.FOCUS: focus,
            p.JUMP: jump,
        }
        new = next_view(view, trigger, given, runs)
        if new == view and trigger in {p.DETECTOR, p.PROBE, p.FOCUS}:  # a control repeats what it was told
            return (no_update,) * 10
        by_address = trigger == p.LOCATION
        replaces = by_address or (trigger == p.JUMP and "key" in jump) or trigger == p.NAMES_CHANGED
        return (
            {"address": address_of(new), "replace": replaces},
            no_update if kept == {**new.as_json(), "runs": list(new.runs)} else new.as_json(),
            {"step": view_of(location)[1]} if by_address else no_update,
            list(new.runs),
            choices_of_detector(runs, new.runs),
            new.detector or None,
            choices_of_probe(runs, new.runs, new.detector),
            new.probe or None,
            list(new.runs),
            new.run or None,
        )


def _register_refresh(app: Dash, runs: Runs) -> None:
    @app.callback(
        Output(p.STATUS, "children"),
        Output(p.SEEN, "data"),
        Output(p.SCORES_CHANGED, "data"),
        Output(p.METRICS_CHANGED, "data"),
        Output(p.HEAD_CHANGED, "data"),
        Output(p.NAMES_CHANGED, "data"),
        Input(p.TICK, "n_intervals"),
        State(p.VIEW, "data"),
        State(p.SEEN, "data"),
    )
    def look_again(_: Any, kept: Any, seen: Any) -> Any:
        view = View() if kept is None else View.from_json(kept)
        chosen = [runs[name] for name in view.runs if name in runs] or list(runs.values())
        before = seen if seen and seen["of"] == [*view.runs, view.detector, view.probe] else _prints(view, chosen)
        try:
            every = [run.status() for run in chosen]
        except WorkbenchError as error:
            return str(error), *(no_update,) * 5
        after = _prints(view, chosen)
        line = p.status_line(
            sum(status.done for status in every),
            sum(status.planned for status in every),
            sum(status.failed for status in every),
            runs=len(chosen),
            checkpoints=sum(status.checkpoints for status in every),
        )
        changed = [
            after[what] if after[what] != before[what] else no_update for what in ("scores", "metrics", "head", "names")
        ]
        return line, after, *changed


def _prints(view: View, chosen: list[LiveRun]) -> dict[str, Any]:
    """Digests of what the parts of the page show, to redraw only those that changed."""
    return {
        "of": [*view.runs, view.detector, view.probe],
        "scores": [run.fingerprint("scores", detector=view.detector, probe=view.probe) for run in chosen],
        "metrics": [run.fingerprint("metrics") for run in chosen],
        "head": [run.fingerprint("scores") for run in chosen if run.name == view.run],
        "names": sorted(
            {f"{name} on {probe}" for run in chosen for name in run.detectors for probe in run.probes_of(name)}
        ),
    }


def _register_overview(app: Dash, runs: Runs) -> None:
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

    @app.callback(
        Output(p.EMERGENCE, "figure"),
        Input(p.VIEW, "data"),
        Input(p.SCORES_CHANGED, "data"),
        Input(p.THEME, "data"),
        prevent_initial_call=True,
    )
    def show_emergence(kept: Any, _: Any, dark: Any) -> Any:
        return _overview_figure(figures.emergence, kept, dark, runs)

    @app.callback(
        Output(p.STRIPS, "figure"),
        Input(p.VIEW, "data"),
        Input(p.SCORES_CHANGED, "data"),
        Input(p.THEME, "data"),
        prevent_initial_call=True,
    )
    def show_strips(kept: Any, _: Any, dark: Any) -> Any:
        return _overview_figure(figures.strips, kept, dark, runs)

    @app.callback(
        Output(p.GRID, "figure"),
        Input(p.VIEW, "data"),
        Input(p.SCORES_CHANGED, "data"),
        Input(p.THEME, "data"),
        prevent_initial_call=True,
    )
    def show_grid(kept: Any, _: Any, dark: Any) -> Any:
        return _overview_figure(figures.heads, kept, dark, runs)


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


def _register_metrics(app: Dash, runs: Runs) -> None:
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


def _register_head(app: Dash, runs: Runs) -> None:
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
