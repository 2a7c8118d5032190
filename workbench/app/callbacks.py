"""What the reader does and what the disk does: another view, another look at the runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update

from workbench.app import components as p
from workbench.app.document import EXTRAS, PAGES, fill_pages, status_line
from workbench.app.pages import overview
from workbench.app.pages.overview import KPIS, scored, unscored
from workbench.app.score_planes import planes, stop_of
from workbench.app.state.view import (
    View,
    address_of,
    choices_of_detector,
    choices_of_probe,
    heads_of,
    neighbour,
    settled,
    view_of,
)
from workbench.heads import WorkbenchError
from workbench.runs import Run


def register(app: Dash, content: p.Content) -> None:
    """Add all callbacks, those of the pages included."""
    _register_browser(app)
    _register_view(app, content)
    _register_planes(app, content)
    _register_refresh(app, content.runs)
    fill_pages(app, content)
    for page in PAGES:
        page.register(app, content)
    for fill in EXTRAS:
        fill(app, content)


def read_ahead(content: p.Content) -> None:
    """Read and draw what the first page shows, while the browser is still loading its scripts."""
    runs = content.runs
    with suppress(WorkbenchError):  # whatever cannot be read is said on the page that asks for it
        view = settled(view_of({"pathname": "", "search": ""})[0], runs)
        _planes(view, content)
        overview.read_ahead(view, content)


def next_view(view: View, trigger: str, given: Mapping[str, Any], runs: p.Runs) -> View:
    """The view after one change: a new address, another choice, a click on a head, or a key."""
    if trigger == p.LOCATION:
        return settled(view_of(given[p.LOCATION])[0], runs)
    if trigger == p.RUNS:
        return settled(replace(view, runs=tuple(given[p.RUNS] or ())), runs)
    if trigger == p.DETECTOR:
        return settled(replace(view, detector=given[p.DETECTOR] or ""), runs)
    if trigger == p.PROBE:
        return settled(replace(view, probe=given[p.PROBE] or ""), runs)
    if trigger == p.JUMP:
        jump = given[p.JUMP]
        if "key" in jump:
            if view.page != "head" or not view.head:
                return view
            return replace(view, head=neighbour(view.head, jump["key"], heads_of(runs[view.run])))
        changed = {name: jump[name] for name in ("page", "run", "head", "detector", "probe") if name in jump}
        return settled(replace(view, **changed).having(jump.get("set", {})), runs)
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
        Output(KPIS, "children"),
        Output(p.CHECKPOINT_LABEL, "children"),
        Output(p.STEPS, "data"),
        Input(p.CHECKPOINT, "value"),
        Input(p.PLANES, "data"),
        Input(p.THEME, "data"),
        Input(p.VIEW, "data"),
    )
    for page in PAGES:
        if page.graphs:
            app.clientside_callback(ClientsideFunction(js, "drawn"), *(Input(graph, "figure") for graph in page.graphs))
    app.clientside_callback(
        ClientsideFunction(js, "chose"),
        Input({"type": "choice", "name": ALL}, "value"),
        State(p.VIEW, "data"),
        prevent_initial_call=True,
    )


def _register_view(app: Dash, content: p.Content) -> None:
    runs = content.runs
    settle = {page.name: page.settle for page in PAGES}

    @app.callback(
        Output(p.NAVIGATE, "data"),
        Output(p.VIEW, "data"),
        Output(p.WANTED, "data"),
        Output(p.RUNS, "value"),
        Output(p.DETECTOR, "data"),
        Output(p.DETECTOR, "value"),
        Output(p.PROBE, "data"),
        Output(p.PROBE, "value"),
        Input(p.LOCATION, "data"),
        Input(p.RUNS, "value"),
        Input(p.DETECTOR, "value"),
        Input(p.PROBE, "value"),
        Input(p.JUMP, "data"),
        Input(p.NAMES_CHANGED, "data"),
        State(p.VIEW, "data"),
        prevent_initial_call=True,
    )
    def change_view(location: Any, chosen: Any, detector: Any, probe: Any, jump: Any, _: Any, kept: Any) -> Any:
        trigger = str(ctx.triggered_id)
        if kept is None and trigger != p.LOCATION:
            return (no_update,) * 8
        view = View() if kept is None else View.from_json(kept)
        given = {
            p.LOCATION: location,
            p.RUNS: chosen,
            p.DETECTOR: detector,
            p.PROBE: probe,
            p.JUMP: jump,
        }
        new = next_view(view, trigger, given, runs)
        new = settle[new.page](new, content)
        if new == view and trigger in {p.DETECTOR, p.PROBE}:  # a control repeats what it was told
            return (no_update,) * 8
        by_address = trigger == p.LOCATION
        by_key = trigger == p.JUMP and ("key" in jump or bool(jump.get("replace")))
        replaces = by_address or by_key or trigger == p.NAMES_CHANGED
        return (
            {"address": address_of(new), "replace": replaces},
            no_update if kept is not None and View.from_json(kept) == new else new.as_json(),
            {"step": view_of(location)[1]} if by_address else no_update,
            list(new.runs),
            choices_of_detector(runs, new.runs),
            new.detector or None,
            choices_of_probe(runs, new.runs, new.detector),
            new.probe or None,
        )


def _planes(view: View, content: p.Content) -> dict[str, Any]:
    """The scores of the chosen runs that have such, for the slider."""
    drawn = scored(view, content.runs)
    prints = [run.fingerprint("scores", detector=view.detector, probe=view.probe) for run in drawn]
    key = ("planes", view.detector, view.probe, view.x, *(run.name for run in drawn), *prints)
    return content.made.once(key, lambda: planes(drawn, view.detector, view.probe, x=view.x))


def _register_planes(app: Dash, content: p.Content) -> None:
    """The scores that the slider steps through."""

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
        asked = [list(view.runs), view.detector, view.probe, view.x, changed, wanted]
        if asked == sent_before:
            return (no_update,) * 5
        try:
            sent = _planes(view, content)
        except WorkbenchError:
            return asked, {"runs": {}, "stops": [], "detector": "", "probe": ""}, 0, [], 0
        by_address = any(change["prop_id"].startswith(f"{p.WANTED}.") for change in ctx.triggered)
        step = (wanted or {}).get("step") if by_address else at
        stops = len(sent["stops"])
        every = max(1, (stops - 1) // 5)
        shown = range(stops - 1, -1, -every)
        marks = [{"value": i, "label": sent["stops"][i]["label"].removesuffix(" tokens")} for i in reversed(shown)]
        sent = {**sent, "probe": view.probe, "unscored": unscored(view, content.runs)}
        return asked, sent, max(stops - 1, 0), marks, stop_of(sent, step)


def _register_refresh(app: Dash, runs: p.Runs) -> None:
    @app.callback(
        Output(p.STATUS, "children"),
        Output(p.SEEN, "data"),
        Output(p.SCORES_CHANGED, "data"),
        Output(p.METRICS_CHANGED, "data"),
        Output(p.HEAD_CHANGED, "data"),
        Output(p.NAMES_CHANGED, "data"),
        Output(p.ANY_CHANGED, "data"),
        Input(p.TICK, "n_intervals"),
        State(p.VIEW, "data"),
        State(p.SEEN, "data"),
    )
    def look_again(_: Any, kept: Any, seen: Any) -> Any:
        view = View() if kept is None else View.from_json(kept)
        chosen = [runs[name] for name in view.runs if name in runs] or list(runs.values())
        try:
            before = seen if seen and seen["of"] == [*view.runs, view.detector, view.probe] else _prints(view, chosen)
            every = [run.status() for run in chosen]
        except WorkbenchError as error:
            return str(error), *(no_update,) * 6
        after = _prints(view, chosen)
        line = status_line(
            sum(status.done for status in every),
            sum(status.planned for status in every),
            sum(status.failed for status in every),
            runs=len(chosen),
            checkpoints=sum(status.checkpoints for status in every),
        )
        parts = ("scores", "metrics", "head", "names", "any")
        changed = [after[what] if after[what] != before[what] else no_update for what in parts]
        return line, after, *changed


def _prints(view: View, chosen: list[Run]) -> dict[str, Any]:
    """Digests of what the parts of the page show, to redraw only those that changed."""
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
