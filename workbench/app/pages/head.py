"""The Head page: one head over training, among the others, and its attention pattern."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import dash_mantine_components as dmc
import pandas as pd
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from workbench import figures
from workbench.app import ids
from workbench.app.answers_of_view import kept_answer
from workbench.app.components import WAITING, attributes, badges, card, graph, message, theme_of
from workbench.app.head_tables import facts_of, head_scores, score_table
from workbench.app.pages.overview import WITH_LEGEND_PX, overview_figure
from workbench.app.registry import page
from workbench.app.score_planes import MANY
from workbench.app.state.content import Content
from workbench.app.state.head_sets import PARAMETER, pinned, toggled
from workbench.app.state.scan_states import why_empty
from workbench.app.state.view import NO_HEAD, View
from workbench.figures.style import Theme
from workbench.heads import Head, WorkbenchError
from workbench.runs import Run
from workbench.runs.answers import Answer
from workbench.store.head_notes import read_notes

TITLE, BADGES, HISTORY, AMONG_HEADS, SCORES, HEAD_GRID, PATTERNS = (
    "head-title",
    "head-badges",
    "history",
    "place",
    "head-scores",
    "head-grid",
    "head-patterns",
)
HISTORY_REST, HISTORY_READ = "history-rest", "history-read"
_READING = "…"  # in the place of an onset
NOTICE, LINKS, LINES = "head-notice", "head-links", "head-lines"


def register(app: Dash, content: Content) -> None:
    """The Head page."""
    runs = content.runs
    app.clientside_callback(
        ClientsideFunction("workbench", "changeHeadRun"),
        Input(ids.HEAD_RUN, "value"),
        State(ids.VIEW, "data"),
        prevent_initial_call=True,
    )

    @app.callback(Output(ids.HEAD_RUN, "data"), Output(ids.HEAD_RUN, "value"), Input(ids.VIEW, "data"))
    def offer_runs(view_json: Any) -> Any:
        view = View.of_page("head", view_json)
        return (no_update, no_update) if view is None else (list(view.runs), view.run or None)

    @app.callback(
        Output(TITLE, "children"),
        Output(BADGES, "children"),
        Output(HEAD_GRID, "figure"),
        Output(NOTICE, "children"),
        Output(LINKS, "children"),
        Output(LINES, "className"),
        Input(ids.VIEW, "data"),
        Input(ids.HEAD_CHANGED, "data"),
        State(ids.THEME, "data"),
    )
    def show_head(view_json: Any, _: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("head", view_json), theme_of(is_dark)
        if view is None:
            return (no_update,) * 6
        if not view.head:
            return "no head yet", [], _waiting(view, content, theme), "", [], "row two"
        run, head = runs[view.run], Head.parse(view.head)
        answer = kept_answer(run, content)
        grid = overview_figure(figures.heads, replace(view, runs=(view.run,)), runs, theme=theme)
        grid = figures.mark_heads(grid, {run.name: answer.heads}, theme=theme)
        grid = figures.mark_heads(grid, {run.name: pinned(view, runs)}, mark="ring", theme=theme)
        is_one = run.n_scored < 2
        return (
            view.head,
            badges(facts_of(run, run.layers(), head)),
            framed(grid, run, head),
            notice(view),
            links(view, content, answer),
            "row two one-checkpoint" if is_one else "row two",
        )

    # Of each run, the scores that have been read under all detectors.
    whole: dict[str, str] = {}
    _register_history(app, content, whole)

    @app.callback(
        Output(AMONG_HEADS, "figure"),
        Output(SCORES, "children"),
        Input(ids.VIEW, "data"),
        Input(ids.RUN_CHECKPOINTS, "data"),
        Input(ids.HEAD_CHANGED, "data"),
        State(ids.THEME, "data"),
    )
    def show_among_heads(view_json: Any, checkpoints: Any, _: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("head", view_json), theme_of(is_dark)
        if view is None:
            return no_update, no_update
        if not view.head:
            return _waiting(view, content, theme), []
        run, head, step = runs[view.run], Head.parse(view.head), (checkpoints or {}).get(view.run, "last")
        try:
            figure = figures.place(run, head, probe=view.probe, step=step, theme=theme)
        except WorkbenchError as error:
            return message(str(error), theme), []
        # Onsets need the scores of every checkpoint, which the history reads, of a large run later.
        are_read = whole.get(view.run) == run.fingerprint("scores") or not _is_large(run)
        rows = head_scores(run, head, step, probe=view.probe, onsets=run.n_scored > 1 and are_read)
        return figure, score_table(rows if are_read else [{**row, "onset": _READING} for row in rows])

    @app.callback(
        Output(SCORES, "children", allow_duplicate=True),
        Input(HISTORY_READ, "data"),
        State(ids.VIEW, "data"),
        State(ids.RUN_CHECKPOINTS, "data"),
        prevent_initial_call=True,
    )
    def show_onsets(_: Any, view_json: Any, checkpoints: Any) -> Any:
        view = View.of_page("head", view_json)
        if view is None or not view.head:
            return no_update
        run, step = runs[view.run], (checkpoints or {}).get(view.run, "last")
        return score_table(head_scores(run, Head.parse(view.head), step, probe=view.probe, onsets=run.n_scored > 1))


def _is_large(run: Run) -> bool:
    """Whether all scores of a run take long to read."""
    return run.n_scored * len(run.detectors) * int(run.layers().loc[:, "n_heads"].sum()) > MANY


def _register_history(app: Dash, content: Content, whole: dict[str, str]) -> None:
    """The history: first under the chosen detector, then, once they are read, under all; `whole` notes that."""

    def draw(view: View, is_dark: Any, *, detector: str | None) -> go.Figure:
        run, head, theme = content.runs[view.run], Head.parse(view.head), theme_of(is_dark)
        try:
            figure = figures.history(run, head, detector=detector, probe=view.probe, x=view.x, theme=theme)
            return figure.update_layout(meta={"width": WITH_LEGEND_PX})
        except WorkbenchError as error:
            return message(str(error), theme)

    @app.callback(
        Output(HISTORY, "figure"),
        Output(HISTORY_REST, "data"),
        Output(HISTORY_READ, "data"),
        Input(ids.VIEW, "data"),
        Input(ids.HEAD_CHANGED, "data"),
        State(ids.THEME, "data"),
    )
    def show_history(view_json: Any, _: Any, is_dark: Any) -> Any:
        view = View.of_page("head", view_json)
        if view is None:
            return (no_update,) * 3
        if not view.head:
            return _waiting(view, content, theme_of(is_dark)), no_update, no_update
        run = content.runs[view.run]
        if run.n_scored < 2:
            return (no_update,) * 3
        digest = run.fingerprint("scores")
        if whole.get(view.run) == digest:
            return draw(view, is_dark, detector=None), no_update, no_update
        if view.probe not in run.probes_of(view.detector):
            return draw_whole(view, is_dark, digest), no_update, digest
        figure = draw(view, is_dark, detector=view.detector)
        figure.update_layout(meta={"width": WITH_LEGEND_PX, "follows": "all detectors"})
        return figure, [view_json, is_dark, digest], no_update

    @app.callback(
        Output(HISTORY, "figure", allow_duplicate=True),
        Output(HISTORY_READ, "data", allow_duplicate=True),
        Input(HISTORY_REST, "data"),
        State(ids.VIEW, "data"),
        State(ids.THEME, "data"),
        prevent_initial_call=True,
    )
    def show_whole_history(rest: Any, view_json: Any, is_dark: Any) -> Any:
        if not rest or rest[0] != view_json:  # another head is shown by now, and has its own history
            return no_update, no_update
        return draw_whole(View.from_json(view_json), is_dark, rest[2]), rest[2]

    def draw_whole(view: View, is_dark: Any, digest: str) -> go.Figure:
        figure = draw(view, is_dark, detector=None)
        whole[view.run] = digest
        return figure


def notice(view: View) -> str:
    """That the head that was asked for is not there, and which is shown in its place; "" where it is."""
    name = view.get(NO_HEAD)
    return f"there is no head {name} in {view.run}: this is {view.head}, its strongest" if name else ""


def links(view: View, content: Content, answer: Answer) -> list[Any]:
    """Whether detectors say that the head looks far, its note, and the pinned heads."""
    head = Head.parse(view.head)
    parts: list[Any] = []
    if not answer.plan and head in answer.heads:  # what plans say, and the way to a text, stands beside the name
        parts.append(html.Span(f"looks far, {answer.basis}", className="muted"))
    chosen = pinned(view, content.runs)
    pin = attributes(data_page="head", data_set=json.dumps({PARAMETER: toggled(view, head)}))
    parts.append(html.A("unpin" if head in chosen else "pin", href="head", **pin))
    others = [html.A(str(other), href="head", **_to_head(other, view)) for other in chosen if other != head]
    if others:
        parts.append(html.Span(["pinned: ", *(part for link in others for part in (link, " "))]))
    return [*parts, *_notes(view, content)]


def _to_head(head: Head, view: View) -> dict[str, Any]:
    return attributes(data_page="head", data_head=str(head), data_run=view.run)


def _notes(view: View, content: Content) -> list[Any]:
    """The notes on a head, with their checkpoints; a file that cannot be read gives its reason."""
    try:
        notes = [note for note in read_notes(content.runs[view.run].path) if note.head == view.head]
    except WorkbenchError as error:
        return [html.Span(str(error), className="failed")]
    return [html.Span(f"note at {note.ckpt}: {note.text}", className="note") for note in notes]


def _waiting(view: View, content: Content, theme: Theme) -> go.Figure:
    """Why there is no head yet, and the command that makes scores."""
    chosen = [content.runs[name] for name in view.runs if name in content.runs]
    return message(why_empty(chosen) or WAITING.format(run=view.run or "RUN"), theme)


def framed(grid: go.Figure, run: Run, head: Head) -> go.Figure:
    """The layer-by-head grid with a frame around one head."""
    row = run.layers().loc[:, "layer"].tolist().index(head.layer)
    return grid.add_shape(
        type="rect",
        x0=head.head - 0.5,
        x1=head.head + 0.5,
        y0=row - 0.5,
        y1=row + 0.5,
        line={"color": "#E4572E", "width": 3},
        name="chosen",
    )


def _head(view: View, content: Content, step: int | None) -> pd.DataFrame:
    """All detectors' scores of one head, with ranks and onsets."""
    if not view.head:
        raise WorkbenchError("no head is chosen; open one on the Head page")
    checkpoint = view.get("seen") or ("last" if step is None else step)
    return pd.DataFrame(head_scores(content.runs[view.run], Head.parse(view.head), checkpoint, probe=view.probe))


@page(
    "head",
    register=register,
    parameters=("of", "head", "x", "mixer"),
    exports={"head": _head},
    follows_checkpoint=True,
)
def layout(content: Content) -> list[Any]:
    """One head: history, neighbours, scores and attention pattern."""
    keys = [html.Span([*map(html.Kbd, "hjkl"), " other head"], className="hint")]
    title = html.Section(
        [
            html.Span(id=TITLE, className="title"),
            dmc.Select(
                id=ids.HEAD_RUN,
                data=list(content.runs),
                size="xs",
                allowDeselect=False,
                w=170,
                **attributes(aria_label="run"),
            ),
            html.Div(id=BADGES, className="badges"),
            html.Span(className="space"),
            html.Span(id="head-in-plan", className="linked"),  # the Plan page fills it
            html.Span(id="head-on-text"),  # the Probe page fills it
            *keys,
            html.Div(id=NOTICE, className="failed", **attributes(role="status")),
            html.Div(id=LINKS, className="links-of-head"),
        ],
        className="card head-title",
    )
    history = card(
        "Score history",
        "all detectors, on the chosen probe where they were scored on it",
        graph(HISTORY, "cursor"),
    )
    lines = html.Div(
        [
            html.Div([dcc.Store(id=HISTORY_REST), dcc.Store(id=HISTORY_READ), history], className="of-training"),
            card(
                "Among the other heads",
                "at this checkpoint · click opens the head",
                graph(AMONG_HEADS, "clickable"),
            ),
        ],
        id=LINES,
        className="row two",
    )
    scores = html.Div(id=SCORES, className="table")
    numbers = html.Div(
        [
            card(
                "Scores at this checkpoint",
                "rank 1 is the highest",
                scores,
                table="head",
            ),
            card("Its place in the model", "click opens the head", graph(HEAD_GRID, "clickable grid")),
        ],
        className="row two",
    )
    return [title, html.Div(id=PATTERNS), lines, numbers]
