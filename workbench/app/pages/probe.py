"""The Probe page: run a checkpoint on any text, and show its patterns as the Head page shows those of a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
import flask
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from workbench.app import ids
from workbench.app.components import attributes, controls, labelled
from workbench.app.probe_processes import checkpoint_folders, checkpoint_source, named_model, note_on
from workbench.app.registry import page
from workbench.app.state.content import Content
from workbench.app.state.view import View
from workbench.heads import WorkbenchError
from workbench.hub.references import HubReference

TEXT, STANDARD, CHECKPOINT, MODEL, NOTE, START, CANCEL, PROGRESS, PATTERNS = (
    "probe-text",
    "probe-standard",
    "probe-checkpoint",
    "probe-model",
    "probe-note",
    "probe-start",
    "probe-cancel",
    "probe-said",
    "probe-patterns",
)
# Specifications of standard probes, as `workbench.probes.build` reads them, by their names on the page.
STANDARD_PROBES = {
    "repeated random tokens": "repeats:n=28,n_sequences=1",
    "copied needles": "copy_needle:distance=16+32,n_sequences=1",
    "key and value": "key_value:n_pairs=8,n_queries=2,gap=8,n_sequences=1",
}
_OWN_TEXT = "my text"
_ID = "org/name, org/name@revision, smollm2"


def register(app: Dash, content: Content) -> None:
    """The Probe page and the routes that start, follow and end a model run."""
    runs, probings = content.runs, content.probings

    @app.callback(
        Output(CHECKPOINT, "data"),
        Output(CHECKPOINT, "value"),
        Input(ids.VIEW, "data"),
        State(CHECKPOINT, "value"),
    )
    def offer_checkpoints(view_json: Any, chosen: Any) -> Any:
        view = View.of_page("probe", view_json)
        if view is None:
            return no_update, no_update
        names = [
            f"{name} · {ckpt}"
            for name in view.runs
            for ckpt in checkpoint_folders(runs[name].checkpoints().to_dict("records"))
        ]
        names += [] if content.model is None else [content.model.name]
        return names, chosen if chosen in names else (names or [None])[-1]

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
        return checkpoint_source(runs[run].checkpoints().to_dict("records"), ckpt), runs[run].tokenizer

    @app.callback(Output(NOTE, "children"), Input(MODEL, "value"), Input(CHECKPOINT, "value"))
    def say_what_is_fetched(model: Any, checkpoint: Any) -> str:
        try:
            return note_on(chosen_source(str(checkpoint or ""), str(model or ""))[0])
        except WorkbenchError as error:
            return str(error) if model else ""

    app.clientside_callback(
        ClientsideFunction("workbench", "runProbe"),
        Input(START, "n_clicks", allow_optional=True),
        Input(CANCEL, "n_clicks", allow_optional=True),
        Input(ids.THEME, "data"),
    )

    def start() -> flask.Response:
        request = flask.request.get_json()
        try:
            source, tokenizer = chosen_source(str(request.get("checkpoint", "")), str(request.get("model") or ""))
            probe = STANDARD_PROBES.get(str(request.get("standard")), "")
            text = str(request.get("text", ""))
            return flask.jsonify({"job": probings.start(source, text=text, probe=probe, tokenizer=tokenizer)})
        except WorkbenchError as error:
            return flask.jsonify({"error": str(error)})

    def status() -> flask.Response:
        try:
            return flask.jsonify(probings.status(flask.request.args.get("job", "")))
        except WorkbenchError as error:
            return flask.jsonify({"state": "failed", "said": "", "reason": str(error)})

    def cancel() -> flask.Response:
        try:
            probings.cancel(str(flask.request.get_json().get("job")))
        except WorkbenchError as error:
            return flask.jsonify({"error": str(error)})
        return flask.jsonify({})

    prefix = f"{app.config.routes_pathname_prefix}probing/"
    app.server.add_url_rule(f"{prefix}start", "probing-start", start, methods=["POST"])
    app.server.add_url_rule(f"{prefix}status", "probing-status", status)
    app.server.add_url_rule(f"{prefix}cancel", "probing-cancel", cancel, methods=["POST"])


@page("probe", register=register)
def layout(content: Content) -> list[Any]:
    """Run a checkpoint on a text or on a standard probe."""
    text = dcc.Textarea(
        id=TEXT,
        placeholder="Write or paste a text here (of a checkpoint without a tokenizer: token ids, as 5 17 4).",
        className="probe-text",
    )
    choices = [_OWN_TEXT, *STANDARD_PROBES]
    standard = dmc.Select(id=STANDARD, data=choices, value=_OWN_TEXT, size="xs", allowDeselect=False, w=220)
    settings = html.Div(
        [
            labelled("Sequence", standard),
            labelled("Checkpoint", dmc.Select(id=CHECKPOINT, data=[], size="xs", allowDeselect=False, w=300)),
            labelled("or a model's id", dmc.TextInput(id=MODEL, value="", placeholder=_ID, size="xs", w=220)),
            html.Button("Run", id=START, className="button", n_clicks=0),
            html.Button("Cancel", id=CANCEL, className="button quiet", n_clicks=0, disabled=True),
            html.Span(id=PROGRESS, className="muted", **attributes(role="status")),
            html.Span(id=NOTE, className="muted", **attributes(role="note")),
        ],
        className="choices",
    )
    about = "the model runs in a process of its own on this machine; the result is kept until the app ends"
    return [
        controls("Run a model on a text", about, html.Div([text, settings])),
        html.Div(id=PATTERNS, **_first_pattern(content)),
    ]


def _first_pattern(content: Content) -> dict[str, Any]:
    """The probe run that the page follows when it is opened, and the head whose pattern it shows."""
    if content.model is None:
        return {}
    layer, head = map(str, content.model.head)
    return attributes(data_job=content.first_job, data_layer=layer, data_head=head, data_kind=content.model.kind)
