"""Callbacks of the whole app: the view, the scores under the slider, and the refresh while a scan writes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update

from workbench.app import ids, pattern_routes
from workbench.app.document import fill_pages, graph_ids, status_line
from workbench.app.pages import overview
from workbench.app.pages.overview import KPIS, scored, unscored
from workbench.app.registry import pages
from workbench.app.score_planes import planes, stop_of
from workbench.app.state.address import address_of, settled, view_of
from workbench.app.state.content import Content, Runs
from workbench.app.state.view import View, choices_of_detector, choices_of_probe, heads_of, neighbour
from workbench.heads import WorkbenchError
from workbench.runs import Run


def register(app: Dash, content: Content) -> None:
    """Add all callbacks, those of the pages included."""
    _register_browser(app, content)
    _register_view(app, content)
    _register_planes(app, content)
    _register_refresh(app, content)
    fill_pages(app, content)
    for page in pages():
        page.register(app, content)
    pattern_routes.register(app, content)


def read_ahead(content: Content) -> None:
    """Read and draw what the first page shows, while the browser is still loading its scripts."""
    runs = content.runs
    if not runs:
        return
    with suppress(WorkbenchError):  # the page that shows an unreadable run gives the reason
        view = settled(view_of({"pathname": "", "search": ""})[0], runs)
        _planes(view, content)
        overview.read_ahead(view, content)


def next_view(view: View, trigger: str, inputs: Mapping[str, Any], runs: Runs) -> View:
    """The view after one change: a new address, another choice, a click on a head, or a key."""
    if trigger == ids.LOCATION:
        return settled(view_of(inputs[ids.LOCATION])[0], runs)
    if trigger == ids.RUNS:
        return settled(replace(view, runs=tuple(inputs[ids.RUNS] or ())), runs)
    if trigger == ids.DETECTOR:
        return settled(replace(view, detector=inputs[ids.DETECTOR] or ""), runs)
    if trigger == ids.PROBE:
        return settled(replace(view, probe=inputs[ids.PROBE] or ""), runs)
    if trigger == ids.JUMP:
        jump = inputs[ids.JUMP]
        if "key" in jump:
            if view.page != "head" or not view.head:
                return view
            return replace(view, head=neighbour(view.head, jump["key"], heads_of(runs[view.run])))
        changed = {name: jump[name] for name in ("page", "run", "head", "detector", "probe") if name in jump}
        return settled(replace(view, **changed).having(jump.get("set", {})), runs)
    return settled(view, runs)


def _register_browser(app: Dash, content: Content) -> None:
    """Callbacks that run in the browser: see assets/workbench.js."""
    js = "workbench"
    app.clientside_callback(ClientsideFunction(js, "readAddress"), Output(ids.LOCATION, "data"), Input(ids.ROOT, "id"))
    app.clientside_callback(ClientsideFunction(js, "writeAddress"), Input(ids.NAVIGATE, "data"))
    app.clientside_callback(
        ClientsideFunction(js, "applyTheme"),
        Output(ids.MANTINE, "forceColorScheme"),
        Output(ids.ROOT, "className"),
        Input(ids.THEME, "data"),
        Input(ids.VIEW, "data"),
    )
    app.clientside_callback(
        ClientsideFunction(js, "showCheckpoint"),
        Output(KPIS, "children"),
        Output(ids.CHECKPOINT_LABEL, "children"),
        Output(ids.RUN_CHECKPOINTS, "data"),
        Input(ids.CHECKPOINT, "value"),
        Input(ids.PLANES, "data"),
        Input(ids.THEME, "data"),
        Input(ids.VIEW, "data"),
    )
    for page in pages():
        figures = [Input(graph, "figure") for graph in graph_ids(page, content)]
        if figures:
            app.clientside_callback(ClientsideFunction(js, "watchFigures"), *figures)
    app.clientside_callback(
        ClientsideFunction(js, "changeParameter"),
        Input({"type": "choice", "name": ALL}, "value"),
        State(ids.VIEW, "data"),
        prevent_initial_call=True,
    )


def _register_view(app: Dash, content: Content) -> None:
    runs = content.runs
    settle = {page.name: page.settle for page in pages()}

    @app.callback(
        Output(ids.NAVIGATE, "data"),
        Output(ids.VIEW, "data"),
        Output(ids.ADDRESS_STEP, "data"),
        Output(ids.RUNS, "value"),
        Output(ids.DETECTOR, "data"),
        Output(ids.DETECTOR, "value"),
        Output(ids.PROBE, "data"),
        Output(ids.PROBE, "value"),
        Input(ids.LOCATION, "data"),
        Input(ids.RUNS, "value"),
        Input(ids.DETECTOR, "value"),
        Input(ids.PROBE, "value"),
        Input(ids.JUMP, "data"),
        Input(ids.NAMES_CHANGED, "data"),
        State(ids.VIEW, "data"),
        prevent_initial_call=True,
    )
    def change_view(location: Any, chosen: Any, detector: Any, probe: Any, jump: Any, _: Any, view_json: Any) -> Any:
        trigger = str(ctx.triggered_id)
        if view_json is None and trigger != ids.LOCATION:
            return (no_update,) * 8
        view = View() if view_json is None else View.from_json(view_json)
        inputs = {
            ids.LOCATION: location,
            ids.RUNS: chosen,
            ids.DETECTOR: detector,
            ids.PROBE: probe,
            ids.JUMP: jump,
        }
        new = next_view(view, trigger, inputs, runs)
        new = settle[new.page](new, content)
        if new == view and trigger in {ids.DETECTOR, ids.PROBE}:  # the server set the control, and it reports back
            return (no_update,) * 8
        by_address = trigger == ids.LOCATION
        by_key = trigger == ids.JUMP and ("key" in jump or bool(jump.get("replace")))
        replaces = by_address or by_key or trigger == ids.NAMES_CHANGED
        return (
            {"address": address_of(new), "replace": replaces},
            no_update if view_json is not None and view == new else new.as_json(),
            {"step": view_of(location)[1]} if by_address else no_update,
            list(new.runs),
            choices_of_detector(runs, new.runs),
            new.detector or None,
            choices_of_probe(runs, new.runs, new.detector),
            new.probe or None,
        )


def _planes(view: View, content: Content) -> dict[str, Any]:
    """The scores of the chosen runs that have such, for the slider."""
    drawn = scored(view, content.runs)
    digests = [run.fingerprint("scores", detector=view.detector, probe=view.probe) for run in drawn]
    key = ("planes", view.detector, view.probe, view.x, *(run.name for run in drawn), *digests)
    return content.made.once(key, lambda: planes(drawn, view.detector, view.probe, x=view.x))


def _register_planes(app: Dash, content: Content) -> None:
    """The scores that the slider steps through."""

    @app.callback(
        Output(ids.PLANES_REQUEST, "data"),
        Output(ids.PLANES, "data"),
        Output(ids.CHECKPOINT, "max"),
        Output(ids.CHECKPOINT, "marks"),
        Output(ids.CHECKPOINT, "value"),
        Input(ids.VIEW, "data"),
        Input(ids.SCORES_CHANGED, "data"),
        Input(ids.ADDRESS_STEP, "data"),
        State(ids.CURRENT_STEP, "data"),
        State(ids.PLANES_REQUEST, "data"),
        prevent_initial_call=True,
    )
    def send_planes(view_json: Any, changed: Any, address_step: Any, current_step: Any, last_request: Any) -> Any:
        view = View.from_json(view_json)
        request = [list(view.runs), view.detector, view.probe, view.x, changed, address_step]
        if request == last_request:
            return (no_update,) * 5
        if not content.runs:
            return request, no_update, 0, [], 0
        try:
            scores = _planes(view, content)
        except WorkbenchError:
            return request, {"runs": {}, "stops": [], "detector": "", "probe": ""}, 0, [], 0
        by_address = any(change["prop_id"].startswith(f"{ids.ADDRESS_STEP}.") for change in ctx.triggered)
        step = (address_step or {}).get("step") if by_address else current_step
        stops = scores["stops"]
        stride = max(1, (len(stops) - 1) // 5)
        marked = range(len(stops) - 1, -1, -stride)
        marks = [{"value": i, "label": stops[i]["label"].removesuffix(" tokens")} for i in reversed(marked)]
        scores = {**scores, "probe": view.probe, "unscored": unscored(view, content.runs)}
        return request, scores, max(len(stops) - 1, 0), marks, stop_of(scores, step)


def _register_refresh(app: Dash, content: Content) -> None:
    runs = content.runs

    @app.callback(
        Output(ids.STATUS, "children"),
        Output(ids.FINGERPRINTS, "data"),
        Output(ids.SCORES_CHANGED, "data"),
        Output(ids.METRICS_CHANGED, "data"),
        Output(ids.HEAD_CHANGED, "data"),
        Output(ids.NAMES_CHANGED, "data"),
        Output(ids.ANY_CHANGED, "data"),
        Input(ids.TICK, "n_intervals"),
        State(ids.VIEW, "data"),
        State(ids.FINGERPRINTS, "data"),
    )
    def refresh(_: Any, view_json: Any, last: Any) -> Any:
        if not runs:
            return "" if content.model is None else content.model.about, *(no_update,) * 6
        view = View() if view_json is None else View.from_json(view_json)
        chosen = [runs[name] for name in view.runs if name in runs] or list(runs.values())
        try:
            before = last if last and last["of"] == [*view.runs, view.detector, view.probe] else _digests(view, chosen)
            statuses = [run.status() for run in chosen]
        except WorkbenchError as error:
            return str(error), *(no_update,) * 6
        after = _digests(view, chosen)
        line = status_line(
            sum(status.done for status in statuses),
            sum(status.planned for status in statuses),
            sum(status.failed for status in statuses),
            runs=len(chosen),
            checkpoints=sum(status.checkpoints for status in statuses),
            remarks=[f"{run.name}: {remark}" for run in chosen for remark in run.left_out],
        )
        names = ("scores", "metrics", "head", "names", "any")
        changed = [after[name] if after[name] != before[name] else no_update for name in names]
        return line, after, *changed


def _digests(view: View, chosen: list[Run]) -> dict[str, Any]:
    """Digests of what the page shows, table by table, so that only changed figures are drawn again."""
    return {
        "of": [*view.runs, view.detector, view.probe],
        "scores": [run.fingerprint("scores", detector=view.detector, probe=view.probe) for run in chosen],
        "metrics": [run.fingerprint("metrics") for run in chosen],
        "head": [run.fingerprint("scores") for run in chosen if run.name == view.run],
        "any": [
            f"{run.fingerprint('scores')} {run.fingerprint('metrics')} {run.failures_changed_ns()}" for run in chosen
        ],
        "names": sorted(
            {f"{name} on {probe}" for run in chosen for name in run.detectors for probe in run.probes_of(name)}
        ),
    }
