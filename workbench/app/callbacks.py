"""Callbacks of the whole app: the view, and the scores under the slider."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update

from workbench.app import definitions, following, ids, pattern_routes
from workbench.app.document import fill_pages, graph_ids
from workbench.app.pages import overview
from workbench.app.pages.overview import KPIS
from workbench.app.registry import pages
from workbench.app.slider_scores import slider_scores
from workbench.app.state.address import address_of, place_in, query_of, settled, view_of
from workbench.app.state.asked_view import NotThere, refuse_other
from workbench.app.state.content import Content, Runs
from workbench.app.state.head_sets import of_same_heads
from workbench.app.state.scan_states import why_empty
from workbench.app.state.slider_stops import nearest_stop, stop_of
from workbench.app.state.view import NO_HEAD, View, choices_of_detector, choices_of_probe, heads_of, neighbour
from workbench.figures.axis import shortened
from workbench.heads import WorkbenchError

_LONGEST_MARK = 12  # characters below the slider
# What the browser keeps where no run has such scores.
_NO_PLANES = {"runs": {}, "stops": [], "detector": "", "probe": "", "unscored": {}, "threshold": None}


def register(app: Dash, content: Content) -> None:
    """Add all callbacks, those of the pages included."""
    _register_browser(app, content)
    _register_view(app, content)
    _register_planes(app, content)
    following.register(app, content)
    fill_pages(app, content)
    for page in pages():
        page.register(app, content)
    pattern_routes.register(app, content)
    definitions.register(app)


def read_ahead(content: Content) -> None:
    """Read and draw what the first page shows, while the browser is still loading its scripts."""
    runs = content.runs
    if not runs:
        return
    with suppress(WorkbenchError):  # the page that shows an unreadable run gives the reason
        view = settled(view_of({"pathname": "", "search": ""})[0], runs)
        slider_scores(view, content)
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
            beside = neighbour(view.head, jump["key"], heads_of(runs[view.run]))
            return replace(view, head=beside).having({NO_HEAD: ""})
        changed = {name: jump[name] for name in ("page", "run", "head", "detector", "probe") if name in jump}
        return of_same_heads(view, settled(replace(view, **changed).having(jump.get("set", {})), runs), runs)
    return settled(view, runs)


def _register_browser(app: Dash, content: Content) -> None:
    """Callbacks that run in the browser: see assets/workbench.js."""
    js = "workbench"
    app.clientside_callback(
        ClientsideFunction(js, "readAddress"),
        Output(ids.LOCATION, "data"),
        Output(ids.THEME, "data"),
        Input(ids.ROOT, "id"),
        State(ids.CARDS, "data"),
    )
    app.clientside_callback(ClientsideFunction(js, "writeAddress"), Input(ids.NAVIGATE, "data"))
    app.clientside_callback(
        ClientsideFunction(js, "applyTheme"),
        Output(ids.MANTINE, "forceColorScheme"),
        Output(ids.ROOT, "className"),
        Input(ids.THEME, "data"),
        Input(ids.VIEW, "data"),
        State(ids.THEME_COLOURS, "data"),
    )
    app.clientside_callback(
        ClientsideFunction(js, "showCheckpoint"),
        Output(ids.CHECKPOINT_LABEL, "children"),
        Output(ids.RUN_CHECKPOINTS, "data"),
        Input(ids.CHECKPOINT, "value"),
        Input(ids.PLANES, "data"),
        Input(ids.VIEW, "data"),
    )
    app.clientside_callback(
        ClientsideFunction(js, "showCards"),
        Output(KPIS, "children"),
        Input(ids.CHECKPOINT, "value"),
        Input(ids.PLANES, "data"),
        Input(ids.VIEW, "data"),
    )
    app.clientside_callback(ClientsideFunction(js, "showNotice"), Input(ids.NOTICE, "data"), prevent_initial_call=True)
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

    def settled_on_page(view: View) -> View:
        try:
            return settle[view.page](view, content)
        except WorkbenchError:  # a damaged part: the page's cards say so
            return view

    @app.callback(
        Output(ids.NAVIGATE, "data"),
        Output(ids.VIEW, "data"),
        Output(ids.ADDRESS_STEP, "data"),
        Output(ids.RUNS, "value"),
        Output(ids.DETECTOR, "data"),
        Output(ids.DETECTOR, "value"),
        Output(ids.PROBE, "data"),
        Output(ids.PROBE, "value"),
        Output(ids.NOTICE, "data"),
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
            return (no_update,) * 9
        view = View() if view_json is None else View.from_json(view_json)
        inputs = {
            ids.LOCATION: location,
            ids.RUNS: chosen,
            ids.DETECTOR: detector,
            ids.PROBE: probe,
            ids.JUMP: jump,
        }
        new = settled_on_page(next_view(view, trigger, inputs, runs))
        if new == view and trigger in {ids.DETECTOR, ids.PROBE}:  # the server set the control, and it reports back
            return (no_update,) * 9
        by_address = trigger == ids.LOCATION
        by_key = trigger == ids.JUMP and ("key" in jump or bool(jump.get("replace")))
        replaces = by_address or by_key or trigger == ids.NAMES_CHANGED
        visit = location.get("visit") if by_address else None
        place = {"place": place_in(location), "visit": visit} if by_address else no_update
        not_there = _not_there(location, new, content) if by_address else ""
        return (
            {"address": address_of(new), "replace": replaces, "keepsPlace": by_address, "visit": visit},
            no_update if view_json is not None and view == new else new.as_json(),
            place,
            list(new.runs),
            *_choices(new, runs),
            {"text": not_there} if not_there else no_update,
        )


def _choices(view: View, runs: Runs) -> tuple[Any, ...]:
    """The choices and values of the selects of detector and probe."""
    try:
        detectors, probes = (
            choices_of_detector(runs, view.runs),
            choices_of_probe(runs, view.runs, view.detector),
        )
    except (WorkbenchError, OSError):  # no chosen run can be read: the cards say why
        return (no_update,) * 4
    return detectors, view.detector or None, probes, view.probe or None


def _not_there(location: Any, view: View, content: Content) -> str:
    """What an address names that is not there; "" if all is there. A head that is not there is said on its page."""
    try:
        refuse_other({name: values for name, values in query_of(location).items() if name != "head"}, view, content)
    except NotThere as error:
        return f"{error}; the nearest is shown"
    except (WorkbenchError, OSError):  # the cards say why
        return ""
    return ""


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
        request = [list(view.runs), view.detector, view.probe, view.x, changed]
        by_address = any(change["prop_id"].startswith(f"{ids.ADDRESS_STEP}.") for change in ctx.triggered)
        is_same = request == last_request
        if is_same and not by_address:
            return (no_update,) * 5
        if not content.runs:
            return request, no_update, 0, [], 0
        try:
            scores = slider_scores(view, content)
        except (WorkbenchError, OSError) as error:
            reason = why_empty([content.runs[name] for name in view.runs]) or str(error)
            return request, {**_NO_PLANES, "reason": reason}, 0, [], 0
        stops = scores["stops"]
        place = (address_step or {}).get("place", {})
        position = stop_of(scores, place) if by_address else nearest_stop(scores, current_step or {})
        if is_same:
            return *(no_update,) * 4, position
        stride = max(1, (len(stops) - 1) // 5)
        marked = range(len(stops) - 1, -1, -stride)
        labels = {i: shortened(stops[i]["label"].removesuffix(" tokens"), _LONGEST_MARK) for i in marked}
        marks = [{"value": i, "label": labels[i]} for i in reversed(marked)]
        return request, scores, max(len(stops) - 1, 0), marks, position
