"""Head: one head closely, over training and among the others."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, html, no_update

from workbench import figures
from workbench.app import components as p
from workbench.app.head_tables import facts_of, head_scores, score_table
from workbench.app.pages.overview import overview_figure
from workbench.app.state.view import View
from workbench.heads import Head, WorkbenchError
from workbench.runs import Run

TITLE, BADGES, HISTORY, PLACE, SCORES, HEAD_GRID, PATTERNS = (
    "head-title",
    "head-badges",
    "history",
    "place",
    "head-scores",
    "head-grid",
    "head-patterns",
)


def register(app: Dash, content: p.Content) -> None:
    """The Head page."""
    runs = content.runs
    app.clientside_callback(
        ClientsideFunction("workbench", "focused"),
        Input(p.FOCUS, "value"),
        State(p.VIEW, "data"),
        prevent_initial_call=True,
    )

    @app.callback(Output(p.FOCUS, "data"), Output(p.FOCUS, "value"), Input(p.VIEW, "data"))
    def offer_runs(kept: Any) -> Any:
        if kept is None or kept["page"] != "head":
            return no_update, no_update
        return kept["runs"], kept["run"] or None

    @app.callback(
        Output(TITLE, "children"),
        Output(BADGES, "children"),
        Output(HISTORY, "figure"),
        Output(HEAD_GRID, "figure"),
        Input(p.VIEW, "data"),
        Input(p.HEAD_CHANGED, "data"),
        Input(p.THEME, "data"),
    )
    def show_head(kept: Any, _: Any, dark: Any) -> Any:
        if kept is None or kept["page"] != "head":
            return (no_update,) * 4
        view, theme = View.from_json(kept), p.theme_of(dark)
        if not view.head:
            waiting = p.message(p.WAITING.format(run=view.run or "RUN"), theme)
            return "no head yet", [], waiting, waiting
        run, head = runs[view.run], Head.parse(view.head)
        grid = overview_figure(figures.heads, {**kept, "page": "overview", "runs": [view.run]}, dark, runs)
        facts = p.badges(facts_of(run, run.layers(), head))
        return (
            view.head,
            facts,
            figures.history(run, head, probe=view.probe, x=view.x, theme=theme),
            framed(grid, run, head),
        )

    @app.callback(
        Output(PLACE, "figure"),
        Output(SCORES, "children"),
        Input(p.VIEW, "data"),
        Input(p.STEPS, "data"),
        Input(p.HEAD_CHANGED, "data"),
        Input(p.THEME, "data"),
    )
    def show_place(kept: Any, steps: Any, _: Any, dark: Any) -> Any:
        if kept is None or kept["page"] != "head" or not kept["head"]:
            return no_update, no_update
        view, theme = View.from_json(kept), p.theme_of(dark)
        run, head, step = runs[view.run], Head.parse(view.head), (steps or {}).get(view.run, "last")
        try:
            figure = figures.place(run, head, probe=view.probe, step=step, theme=theme)
        except WorkbenchError as error:
            return p.message(str(error), theme), []
        return figure, score_table(head_scores(run, head, step, probe=view.probe))


def framed(grid: go.Figure, run: Run, head: Head) -> go.Figure:
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


def layout(content: p.Content) -> html.Div:
    """The Head page."""
    keys = [html.Span([*map(html.Kbd, "hjkl"), " other head"], className="hint")]
    title = html.Section(
        [
            html.Span(id=TITLE, className="title"),
            dmc.Select(
                id=p.FOCUS, data=list(content.runs), size="xs", allowDeselect=False, w=170, **p.extra(aria_label="run")
            ),
            html.Div(id=BADGES, className="badges"),
            html.Span(className="space"),
            *keys,
        ],
        className="card head-title",
    )
    lines = html.Div(
        [
            p.card(
                "Score history",
                "all detectors, on the chosen probe where they were scored on it",
                p.graph(HISTORY, "cursor"),
            ),
            p.card(
                "Among the other heads",
                "at this checkpoint · click opens the head",
                p.graph(PLACE, "clickable"),
            ),
        ],
        className="row two",
    )
    scores = html.Div(id=SCORES, className="table")
    numbers = html.Div(
        [
            p.card(
                "Scores at this checkpoint",
                "rank 1 is the highest",
                scores,
                table="head",
            ),
            p.card("Its place in the model", "click opens the head", p.graph(HEAD_GRID, "clickable grid")),
        ],
        className="row two",
    )
    return p.page_of("head", [title, html.Div(id=PATTERNS), lines, numbers])


PAGE = p.Page("head", layout, register, (HISTORY, PLACE, HEAD_GRID))
