"""The Probe page: run a checkpoint on any text, and show its patterns as the Head page shows those of a scan.

The address holds the text, the checkpoint and the head that is shown. While the app keeps the result, it shows the same
again without running the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
import flask
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from workbench.app import ids
from workbench.app.components import attributes, controls, labelled
from workbench.app.probe_sources import (
    checkpoint_folders,
    checkpoint_source,
    foreign_tokenizer,
    missing_folder,
    named_model,
    note_on,
    reads_text,
)
from workbench.app.registry import page
from workbench.app.state.content import Content
from workbench.app.state.view import View
from workbench.heads import WorkbenchError
from workbench.hub.references import HubReference

TEXT, STANDARD, CHECKPOINT, MODEL, NOTE, START, CANCEL, PROGRESS, PATTERNS, OF_HEAD = (
    "probe-text",
    "probe-standard",
    "probe-checkpoint",
    "probe-model",
    "probe-note",
    "probe-start",
    "probe-cancel",
    "probe-said",
    "probe-patterns",
    "head-on-text",
)
# What the address holds: the text, or the name of a standard probe; the checkpoint, or a model's id; the head shown.
PARAMETERS = ("text", "standard", "ckpt", "model", "shown", "mixer")
# Specifications of standard probes, as `workbench.probes.build` reads them, by their names on the page.
STANDARD_PROBES = {
    "repeated random tokens": "repeats:n=28,n_sequences=1",
    "copied needles": "copy_needle:distance=16+32,n_sequences=1",
    "key and value": "key_value:n_pairs=8,n_queries=2,gap=8,n_sequences=1",
}
# A fact that is asked for after other facts, and a sentence that comes again word for word.
EXAMPLE = (
    "The ferry to Harrow Island leaves from pier 47 at noon. The captain, a quiet woman called Ingrid Vasquez, keeps "
    "her brass compass in a drawer beneath the wheel, and the spare key hangs behind the door of the galley. On "
    "Sundays the market on the square sells apricots, rope and second-hand books until the bells ring. In the evening "
    "the lamps along the harbour are lit one after the other, and the fishermen mend their nets.\n"
    "The ferry to Harrow Island leaves from pier 47 at noon. Its captain is called Ingrid Vasquez, and she keeps her "
    "brass compass in a drawer beneath the wheel."
)
_OWN_TEXT = "my text"
_ID = "org/name, org/name@revision, smollm2"


def register(app: Dash, content: Content) -> None:
    """The Probe page and the routes that start, follow, find and end a model run."""
    runs, probings = content.runs, content.probings

    @app.callback(
        Output(CHECKPOINT, "data"),
        Output(CHECKPOINT, "value"),
        Output(STANDARD, "value"),
        Input(ids.VIEW, "data"),
        State(CHECKPOINT, "value"),
    )
    def offer_checkpoints(view_json: Any, chosen: Any) -> Any:
        view = View.of_page("probe", view_json)
        if view is None:
            return (no_update,) * 3
        names = checkpoint_names(view, content)
        if chosen in names and can_be_run(chosen):
            return names, no_update, no_update
        of_address = view.get("ckpt") if view.get("ckpt") in names else ""
        readable = first_readable(view)
        value = of_address or readable or next(iter(names), None)
        if view.get("text") or view.get("standard") or not names:
            return names, value, no_update
        return names, value, _OWN_TEXT if readable else next(iter(STANDARD_PROBES))

    def can_be_run(checkpoint: str) -> bool:
        """Whether a checkpoint is on this disk, or at a hub."""
        return not missing_folder(source) if isinstance(source := chosen_source(checkpoint, "")[0], Path) else True

    def first_readable(view: View) -> str:
        """The first checkpoint of the chosen runs that can read text; "" where none can."""
        if content.model is not None and reads_text(content.model.source, content.model.tokenizer):
            return content.model.name
        for run in view.runs:
            series = runs[run].checkpoints().to_dict("records")
            tokenizer = foreign_tokenizer(series, runs[run].tokenizer)
            for ckpt in reversed(checkpoint_folders(series)):
                if reads_text(checkpoint_source(series, ckpt), tokenizer):
                    return f"{run} · {ckpt}"
        return ""

    def chosen_source(checkpoint: str, model: str) -> tuple[Path | HubReference, str | None]:
        """What is to be run, and the tokenizer of its run."""
        if model.strip():
            return named_model(model), None
        if content.model is not None and checkpoint == content.model.name:
            return content.model.source, content.model.tokenizer
        run, _, ckpt = checkpoint.partition(" · ")
        if run not in runs:
            raise WorkbenchError(
                "no checkpoint is chosen; choose one of the list, which holds those whose folder is known, or write a "
                "model's id"
            )
        series = runs[run].checkpoints().to_dict("records")
        return checkpoint_source(series, ckpt), foreign_tokenizer(series, runs[run].tokenizer)

    @app.callback(Output(NOTE, "children"), Input(MODEL, "value"), Input(CHECKPOINT, "value"))
    def say_what_is_fetched(model: Any, checkpoint: Any) -> str:
        try:
            return note_on(chosen_source(str(checkpoint or ""), str(model or ""))[0])
        except WorkbenchError as error:
            return str(error) if model else ""

    @app.callback(Output(OF_HEAD, "children"), Input(ids.VIEW, "data"), Input(ids.RUN_CHECKPOINTS, "data"))
    def link_from_head(view_json: Any, checkpoints: Any) -> Any:
        """The link from the Head page to the same head on a text, at the same checkpoint."""
        view = View.of_page("head", view_json)
        if view is None or not view.head:
            return no_update
        names = checkpoint_names(View(page="probe", runs=(view.run,)), content)
        name = f"{view.run} · {(checkpoints or {}).get(view.run, '')}"
        checkpoint = name if name in names else next(iter(names), "")
        chosen = json.dumps({"shown": view.head, "mixer": view.get("mixer"), "ckpt": checkpoint, "model": ""})
        to_probe = attributes(data_page="probe", data_set=chosen)
        return html.A("this head on my text", href="probe", className="button quiet", **to_probe)

    app.clientside_callback(
        ClientsideFunction("workbench", "runProbe"),
        Input(START, "n_clicks", allow_optional=True),
        Input(CANCEL, "n_clicks", allow_optional=True),
        Input(ids.VIEW, "data"),
        Input(ids.THEME, "data"),
    )

    def with_request(run: Callable[..., str | None]) -> Callable[[], flask.Response]:
        """A route that answers what the page asks to run with the name of a model run."""

        def respond() -> flask.Response:
            request = flask.request.get_json()
            try:
                source, tokenizer = chosen_source(str(request.get("checkpoint", "")), str(request.get("model") or ""))
                probe = STANDARD_PROBES.get(str(request.get("standard")), "")
                text = "" if probe else str(request.get("text", ""))
                return flask.jsonify({"job": run(source, text=text, probe=probe, tokenizer=tokenizer)})
            except WorkbenchError as error:
                return flask.jsonify({"error": str(error)})

        return respond

    def status() -> flask.Response:
        try:
            return flask.jsonify(probings.status(flask.request.args.get("job", "")))
        except WorkbenchError as error:
            return flask.jsonify({"state": "failed", "said": "", "note": "", "reason": str(error)})

    def losses() -> flask.Response:
        try:
            return flask.jsonify(probings.losses(flask.request.args.get("job", "")))
        except WorkbenchError as error:
            return flask.jsonify({"nats": [], "reason": str(error)})

    def cancel() -> flask.Response:
        try:
            probings.cancel(str(flask.request.get_json().get("job")))
        except WorkbenchError as error:
            return flask.jsonify({"error": str(error)})
        return flask.jsonify({})

    routes = {"start": with_request(probings.start), "find": with_request(probings.find), "cancel": cancel}
    for name, view_function in routes.items():
        app.server.add_url_rule(_route(app, name), f"probing-{name}", view_function, methods=["POST"])
    app.server.add_url_rule(_route(app, "status"), "probing-status", status)
    app.server.add_url_rule(_route(app, "losses"), "probing-losses", losses)


def _route(app: Dash, name: str) -> str:
    return f"{app.config.routes_pathname_prefix}probing/{name}"


def checkpoint_names(view: View, content: Content) -> list[str]:
    """The checkpoints of the chosen runs whose folders are known, the last of each run first; or the model alone."""
    names = [] if content.model is None else [content.model.name]
    for name in view.runs:
        folders = checkpoint_folders(content.runs[name].checkpoints().to_dict("records"))
        names += [f"{name} · {ckpt}" for ckpt in reversed(folders)]
    return names


@page("probe", register=register, parameters=PARAMETERS, controls=("runs",), title="My text")
def layout(content: Content) -> list[Any]:
    """Run a checkpoint on a text or on a standard probe."""
    text = dcc.Textarea(
        id=TEXT,
        value=EXAMPLE,
        placeholder="Write or paste a text here (of a checkpoint without a tokenizer: token ids, as 5 17 4).",
        className="probe-text",
    )
    choices = [_OWN_TEXT, *STANDARD_PROBES]
    standard = dmc.Select(
        id=STANDARD,
        data=choices,
        value=_OWN_TEXT,
        size="xs",
        allowDeselect=False,
        w=200,
        **attributes(aria_label="sequence"),
    )
    checkpoint = dmc.Select(
        id=CHECKPOINT,
        data=[],
        size="xs",
        allowDeselect=False,
        searchable=True,
        w=260,
        **attributes(aria_label="checkpoint"),
    )
    model = dmc.TextInput(
        id=MODEL, value="", placeholder=_ID, size="xs", w=220, **attributes(aria_label="or a model's id")
    )
    settings = html.Div(
        [
            labelled("Sequence", standard),
            labelled("Model", checkpoint),
            labelled("or a model's id", model),
            html.Button("Run", id=START, className="button", n_clicks=0),
            html.Button("Cancel", id=CANCEL, className="button quiet", n_clicks=0, disabled=True),
            html.Span(id=PROGRESS, className="muted", **attributes(role="status")),
            html.Span(id=NOTE, className="muted", **attributes(role="note")),
        ],
        className="choices",
    )
    about = (
        "which heads look far on this text · the model runs in a process of its own on this machine, which keeps it "
        "open for the next text"
    )
    return [
        controls(
            "Run a model on a text",
            about,
            html.Div([html.Label("Text", htmlFor=TEXT, className="muted"), text, settings]),
        ),
        html.Div(id=PATTERNS, **_first_pattern(content)),
    ]


def _first_pattern(content: Content) -> dict[str, Any]:
    """The probe run that the page follows when it is opened, and the head whose pattern it shows."""
    if content.model is None:
        return {}
    layer, head = map(str, content.model.head)
    return attributes(data_job=content.first_job, data_layer=layer, data_head=head, data_kind=content.model.kind)
