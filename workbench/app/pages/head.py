"""The Head page: one head over training, among the others, and its attention pattern."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dash_mantine_components as dmc
import pandas as pd
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, html, no_update

from workbench import figures
from workbench.app import ids
from workbench.app.components import WAITING, attributes, badges, card, graph, message, theme_of
from workbench.app.head_tables import facts_of, head_scores, score_table
from workbench.app.pages.overview import overview_figure
from workbench.app.registry import page
from workbench.app.state.content import Content
from workbench.app.state.view import View
from workbench.heads import Head, WorkbenchError
from workbench.runs import Run

TITLE, BADGES, HISTORY, AMONG_HEADS, SCORES, HEAD_GRID, PATTERNS = (
    "head-title",
    "head-badges",
    "history",
    "place",
    "head-scores",
    "head-grid",
    "head-patterns",
)


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
        Output(HISTORY, "figure"),
        Output(HEAD_GRID, "figure"),
        Input(ids.VIEW, "data"),
        Input(ids.HEAD_CHANGED, "data"),
        Input(ids.THEME, "data"),
    )
    def show_head(view_json: Any, _: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("head", view_json), theme_of(is_dark)
        if view is None:
            return (no_update,) * 4
        if not view.head:
            waiting = message(WAITING.format(run=view.run or "RUN"), theme)
            return "no head yet", [], waiting, waiting
        run, head = runs[view.run], Head.parse(view.head)
        grid = overview_figure(figures.heads, replace(view, runs=(view.run,)), runs, theme=theme)
        facts = badges(facts_of(run, run.layers(), head))
        return (
            view.head,
            facts,
            figures.history(run, head, probe=view.probe, x=view.x, theme=theme),
            framed(grid, run, head),
        )

    @app.callback(
        Output(AMONG_HEADS, "figure"),
        Output(SCORES, "children"),
        Input(ids.VIEW, "data"),
        Input(ids.RUN_CHECKPOINTS, "data"),
        Input(ids.HEAD_CHANGED, "data"),
        Input(ids.THEME, "data"),
    )
    def show_among_heads(view_json: Any, checkpoints: Any, _: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("head", view_json), theme_of(is_dark)
        if view is None or not view.head:
            return no_update, no_update
        run, head, step = runs[view.run], Head.parse(view.head), (checkpoints or {}).get(view.run, "last")
        try:
            figure = figures.place(run, head, probe=view.probe, step=step, theme=theme)
        except WorkbenchError as error:
            return message(str(error), theme), []
        return figure, score_table(head_scores(run, head, step, probe=view.probe))


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
    checkpoint = "last" if step is None else step
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
        ],
        className="card head-title",
    )
    lines = html.Div(
        [
            card(
                "Score history",
                "all detectors, on the chosen probe where they were scored on it",
                graph(HISTORY, "cursor"),
            ),
            card(
                "Among the other heads",
                "at this checkpoint · click opens the head",
                graph(AMONG_HEADS, "clickable"),
            ),
        ],
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
