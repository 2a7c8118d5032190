"""The Overview page: heads over training and at one checkpoint, beside model-level numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import dash_mantine_components as dmc
import pandas as pd
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, html, no_update

from workbench import figures
from workbench.app import grouped_runs, ids
from workbench.app.answer_card import sentences
from workbench.app.answers_of_view import answers
from workbench.app.components import (
    ABSENT,
    WAITING,
    attributes,
    card,
    choice,
    graph,
    message,
    theme_of,
)
from workbench.app.isolated_runs import of_those_that_can
from workbench.app.model_numbers import METRICS, grouped, metric_choices, numbers_table, shown_metrics, with_metrics
from workbench.app.registry import page
from workbench.app.state.content import Content, Runs
from workbench.app.state.head_sets import PARAMETER, pinned
from workbench.app.state.scan_states import why_empty, why_unreadable
from workbench.app.state.view import View
from workbench.emergence.onset_words import MEANING
from workbench.figures.head_panels import STRIP_PX
from workbench.figures.style import MOST_ABOVE, Theme, pin_run
from workbench.heads import WorkbenchError
from workbench.runs import Run

KPIS, EMERGENCE, STRIPS, RIDGES, GRID, RANKED = "kpis", "emergence", "strips", "ridges", "grid", "ranked"
ANSWER, NUMBERS = "answer", "numbers"
TRAINING, ONE_MODEL, DISTRIBUTION = "overview-training", "overview-one-model", "overview-distribution"
DRAWN: dict[str, Callable[..., go.Figure]] = {
    EMERGENCE: figures.emergence,
    STRIPS: figures.strips,
    GRID: figures.heads,
    RANKED: figures.ranked,
    RIDGES: figures.ridgelines,
}
# Figures over training, and those of a single checkpoint; the others are of either.
_OF_TRAINING, _OF_ONE_MODEL = {EMERGENCE, STRIPS, RIDGES}, {RANKED}
# The choice of no run as the baseline.
NO_BASELINE = "no baseline"
# The least width of one run's panel.
_PANEL_PX = 210
# So many strips are as wide as all their ticks need; of more, each has fewer ticks.
_WIDE_STRIPS = 4
# A number in a cell of the grid; the ticks of a panel.
_NUMBER_PX, _AXES_PX = 33, 70
_PHASE = (
    "phase change: a rise or fall of a model-level number that no straight line in ln tokens explains; the upright "
    "dotted line and ▲ stand where half of it is over"
)
# A figure with its legend beside it.
WITH_LEGEND_PX = 560
LEFT_METRIC, RIGHT_METRIC = (ids.parameter_id(name) for name in METRICS)
METRIC_FIGURES = ("figure-left", "figure-right")


def register(app: Dash, content: Content) -> None:
    """The figures of the Overview."""
    _register_answer(app, content)
    _register_figures(app, content)
    _register_metrics(app, content)


def read_ahead(view: View, content: Content) -> None:
    """Read and draw what the page shows first, in the light theme."""
    for figure_id in DRAWN:
        if is_of_view(figure_id, view, content.runs):
            _draw(figure_id, view, None, content=content)
    for metric in shown_metrics(view, content.runs):
        _draw_metric(metric, view, None, content=content)


def settle(view: View, content: Content) -> View:
    """The metrics of the address, as far as the runs have them."""
    try:
        return with_metrics(view, content.runs)
    except WorkbenchError:  # the metric's card says why a run's numbers cannot be read
        return view


def _register_answer(app: Dash, content: Content) -> None:
    @app.callback(
        Output(ANSWER, "children"),
        Output(NUMBERS, "children"),
        *(Output(name, "className") for name in (TRAINING, ONE_MODEL, DISTRIBUTION)),
        Input(ids.VIEW, "data"),
        Input(ids.SCORES_CHANGED, "data"),
        Input(ids.METRICS_CHANGED, "data"),
    )
    def show_answer(view_json: Any, _: Any, __: Any) -> Any:
        view = View.of_page("overview", view_json)
        if view is None:
            return (no_update,) * 5
        over_training, of_one_model = by_length(view, content.runs)
        is_training = bool(over_training) or not of_one_model  # a scan that begins may become one over training
        beside = "stack several" if len(of_one_model) > 1 else "stack"
        shown = [
            "stack" if is_training else ABSENT,
            beside if of_one_model else ABSENT,
            "stack" if is_training else ABSENT,
        ]
        return sentences(answers(view, content)), numbers_table(of_one_model), *shown


def by_length(view: View, runs: Runs) -> tuple[list[Run], list[Run]]:
    """The chosen runs that have scores of several checkpoints, and those of one; not those that cannot be read."""
    several: list[Run] = []
    one: list[Run] = []
    for name in view.runs:
        with suppress(WorkbenchError, KeyError):  # the run's card says why it cannot be read
            n = runs[name].n_scored
            (several if n > 1 else one if n else []).append(runs[name])
    return several, one


def is_of_view(figure_id: str, view: View, runs: Runs) -> bool:
    """Whether a figure is shown of the chosen runs: those over training not of models of one checkpoint alone."""
    over_training, of_one_model = by_length(view, runs)
    return not (
        (figure_id in _OF_TRAINING and of_one_model and not over_training)
        or (figure_id in _OF_ONE_MODEL and not of_one_model)
    )


def _register_figures(app: Dash, content: Content) -> None:
    for figure_id in DRAWN:

        @app.callback(
            Output(figure_id, "figure"),
            Input(ids.VIEW, "data"),
            Input(ids.SCORES_CHANGED, "data"),
            State(ids.THEME, "data"),
        )
        def show_figure(view_json: Any, _: Any, is_dark: Any, figure_id: Any = figure_id) -> Any:
            view = View.of_page("overview", view_json)
            if view is None or not is_of_view(figure_id, view, content.runs):
                return no_update
            return _draw(figure_id, view, is_dark, content=content)

    @app.callback(
        Output(ids.parameter_id("x"), "value"),
        Output(ids.parameter_id("group"), "value"),
        Output(ids.parameter_id("base"), "data"),
        Output(ids.parameter_id("base"), "value"),
        Input(ids.VIEW, "data"),
    )
    def show_choices(view_json: Any) -> Any:
        view = View.of_page("overview", view_json)
        if view is None:
            return (no_update,) * 4
        base = view.get("base") if view.get("base") in view.runs else NO_BASELINE
        return view.x, "by name" if grouped_runs.grouped_by_name(view) else "each run", [NO_BASELINE, *view.runs], base


def _draw(figure_id: str, view: View, is_dark: bool | None, *, content: Content) -> go.Figure:
    """One of `DRAWN`; Emergence also shows the phase changes of the left metric."""

    def draw() -> go.Figure:
        theme = theme_of(is_dark)
        runs = content.runs
        if figure_id in _OF_ONE_MODEL:
            runs = {run.name: run for run in by_length(view, runs)[1]}
        if figure_id == EMERGENCE and grouped_runs.grouped_by_name(view):
            return grouped_runs.emergence_figure(scored(view, runs), view=view, theme=theme)
        figure = overview_figure(DRAWN[figure_id], view, runs, theme=theme)
        if figure_id == GRID:
            needed = {name: answer.heads for name, answer in needed_by.items()}
            figure = figures.mark_heads(figure, needed, theme=theme)
            return figures.mark_heads(figure, {view.run: pinned(view, runs)}, mark="ring", theme=theme)
        if figure_id != EMERGENCE:
            return figure
        figure = mark(figure, scored(view, runs), metric, view=view, theme=theme)
        return pin_run(figure, view.get("base"), theme) if view.get("base") else figure

    digests = [content.runs[name].fingerprint("scores", detector=view.detector, probe=view.probe) for name in view.runs]
    key = (figure_id, view.runs, view.detector, view.probe, view.x, bool(is_dark), *digests)
    needed_by = answers(view, content) if figure_id == GRID else {}
    key += (
        view.run,
        *(view.get(name) for name in (PARAMETER, "group", "base")),
        *((name, answer.heads) for name, answer in needed_by.items()),
    )
    metric = None
    if figure_id == EMERGENCE:
        with suppress(WorkbenchError):  # a metric's card says why a run's numbers cannot be read
            metric = shown_metrics(view, content.runs)[0]
        key += (metric, *(content.runs[name].fingerprint("metrics") for name in view.runs))
    return content.made.once(key, draw)


def overview_figure(draw: Callable[..., go.Figure], view: View, runs: Runs, *, theme: Theme) -> go.Figure:
    """A figure of all chosen runs that have such scores, or the command that makes some."""
    drawn = scored(view, runs)
    if not drawn:
        waiting = WAITING.format(run=runs[view.run].path.name if view.run in runs else "RUN")
        here = [runs[name] for name in view.runs if name in runs]
        return message(why_empty(here) or _scored_elsewhere(view, runs) or waiting, theme)
    over_training = {"x": view.x} if draw in (figures.emergence, figures.strips) else {}
    options = {"detector": view.detector, "probe": view.probe, "theme": theme, **over_training}
    try:
        figure, unread = of_those_that_can(lambda some: draw(some, **options), drawn)
    except WorkbenchError as error:
        return message(str(error), theme)
    if unread:  # the run's card says why
        note = {"text": f"without {', '.join(unread)}: see the cards above", "showarrow": False}
        figure.add_annotation(note, xref="paper", yref="paper", x=1, y=1, xanchor="right", yanchor="top")
    meta = {"detector": view.detector, "probe": view.probe, "width": _least_width(draw, figure, len(drawn))}
    return figure.update_layout(meta=meta)


def _least_width(draw: Callable[..., go.Figure], figure: go.Figure, n: int) -> int:
    """The pixels below which panels of runs cannot be read; cells that show their numbers need room for them."""
    if draw is figures.emergence:
        return WITH_LEGEND_PX if n > MOST_ABOVE else 0
    if draw is figures.ranked:
        return 2 * _PANEL_PX * n
    traces: Any = figure.data
    if draw is figures.strips and n <= _WIDE_STRIPS:
        return STRIP_PX * n
    cells = sum(trace.z.shape[1] for trace in traces if trace.type == "heatmap" and trace.texttemplate)
    return max(_PANEL_PX * n, _NUMBER_PX * cells + _AXES_PX * n)


def scored(view: View, runs: Runs) -> list[Run]:
    """The chosen runs that have scores of the chosen detector on the chosen probe."""
    chosen = [runs[name] for name in view.runs if name in runs]
    return [run for run in chosen if view.detector and view.probe in run.probes_of(view.detector)]


def unscored(view: View, runs: Runs) -> dict[str, str]:
    """The chosen runs without such scores, and the probes that the detector was scored on there."""
    with_scores = {run.name for run in scored(view, runs)}
    reasons: dict[str, str] = {}
    for name in view.runs:
        if name in runs and name not in with_scores:
            probes = runs[name].probes_of(view.detector)
            reasons[name] = f"scored on {', '.join(probes)}" if probes else f"no scores of {view.detector}"
            reasons[name] = why_unreadable(runs[name]) or reasons[name]
    return reasons


def _scored_elsewhere(view: View, runs: Runs) -> str:
    """The probes that the runs were scored on where none of them is the chosen one; "" where there is no score yet."""
    if not any(run.probes_of(view.detector) for run in runs.values() if run.name in view.runs):
        return ""
    return "<br>".join(f"<b>{name}</b>: {reason}, not on {view.probe}" for name, reason in unscored(view, runs).items())


def emerged(view: View, runs: Runs) -> dict[str, pd.DataFrame]:
    """The traced heads of all chosen runs that have such scores."""
    chosen = scored(view, runs)
    return {run.name: run.emergence(view.detector, probe=view.probe) for run in chosen}


def _register_metrics(app: Dash, content: Content) -> None:
    runs = content.runs

    @app.callback(
        Output(LEFT_METRIC, "data"),
        Output(LEFT_METRIC, "value"),
        Output(RIGHT_METRIC, "data"),
        Output(RIGHT_METRIC, "value"),
        Input(ids.VIEW, "data"),
        Input(ids.METRICS_CHANGED, "data"),
    )
    def offer_metrics(view_json: Any, _: Any) -> Any:
        view = View.of_page("overview", view_json)
        if view is None:
            return (no_update,) * 4
        data = grouped(metric_choices(view, runs))
        left, right = shown_metrics(view, runs)
        return data, left, data, right

    for side, figure_id in enumerate(METRIC_FIGURES):

        @app.callback(
            Output(figure_id, "figure"),
            Input(ids.VIEW, "data"),
            Input(ids.METRICS_CHANGED, "data"),
            State(ids.THEME, "data"),
        )
        def show_metric(view_json: Any, _: Any, is_dark: Any, side: Any = side) -> Any:
            view = View.of_page("overview", view_json)
            if view is None:
                return no_update
            return _draw_metric(shown_metrics(view, runs)[side], view, is_dark, content=content)


def _draw_metric(choice: str | None, view: View, is_dark: bool | None, *, content: Content) -> go.Figure:
    """A model-level number of all chosen runs that have it."""
    theme, runs = theme_of(is_dark), content.runs
    metric, _, probe = (choice or "").partition(" on ")
    drawn = [runs[name] for name in view.runs if (metric, probe) in runs[name].metric_names()]

    def draw() -> go.Figure:
        if not drawn:
            return message("no model-level numbers yet", theme)
        # The cards and the legend of Emergence name the colours.
        if grouped_runs.grouped_by_name(view):
            return grouped_runs.metrics_figure(drawn, metric, probe, view=view, theme=theme).update_layout(
                showlegend=False
            )
        figure = figures.metrics(drawn, metric=metric, probe=probe, x=view.x, theme=theme)
        figure = mark(figure, drawn, choice, view=view, theme=theme).update_layout(showlegend=False)
        return pin_run(figure, view.get("base"), theme) if view.get("base") else figure

    digests = [run.fingerprint("metrics", probe=probe) for run in drawn]
    names = [run.name for run in drawn]
    key = (metric, probe, view.x, view.get("group"), view.get("base"), bool(is_dark), *names, *digests)
    return content.made.once(key, draw)


def mark(figure: go.Figure, drawn: list[Run], choice: str | None, *, view: View, theme: Theme) -> go.Figure:
    """The phase changes of a metric of these runs, as marks in a figure over training."""
    metric, _, probe = (choice or "").partition(" on ")
    changes: dict[str, pd.DataFrame] = {}
    for run in drawn:
        with suppress(WorkbenchError):  # the metric's card says why a run's numbers cannot be read
            changes[run.name] = run.pooled_phase_changes(metric, probe)
    return figures.mark_phases(figure, changes, x=view.x, theme=theme)


def _scores(view: View, content: Content, _: int | None) -> pd.DataFrame:
    """All scores of the chosen detector and probe, of all chosen runs."""
    tables = [
        run.scores(detector=view.detector, probe=view.probe).assign(run=run.name) for run in scored(view, content.runs)
    ]
    return _concatenated(tables)


def _emergence(view: View, content: Content, _: int | None) -> pd.DataFrame:
    return _concatenated([table.assign(run=name) for name, table in emerged(view, content.runs).items()])


def _metrics(view: View, content: Content, _: int | None) -> pd.DataFrame:
    tables = [content.runs[name].metrics().assign(run=name) for name in view.runs]
    return pd.concat(tables, ignore_index=True)


def _concatenated(tables: list[pd.DataFrame]) -> pd.DataFrame:
    if not tables:
        raise WorkbenchError("no chosen run has such scores yet; make some with `workbench scan DIR --out RUN`")
    return pd.concat(tables, ignore_index=True)


@page(
    "overview",
    register=register,
    parameters=("x", "group", "base", *METRICS),
    settle=settle,
    exports={"scores": _scores, "emergence": _emergence, "metrics": _metrics},
)
def layout(_: Content) -> list[Any]:
    """The answer, heads over training, at one checkpoint, and model-level numbers."""
    return [
        html.Section(
            [
                html.H3(["Which heads need the whole context?", html.Small("● marks them in the grids")]),
                html.Div(id=ANSWER, className="answer"),
            ],
            className="card",
        ),
        html.Div(id=KPIS, className="kpis"),
        html.Div(_one_model(), id=ONE_MODEL, className=ABSENT),
        html.Div(_over_training(), id=TRAINING, className="stack"),
        card(
            "Layer × head at this checkpoint",
            "F full · W sliding window · C chunked · K selected keys · L linear · grey: no score · "
            "● needs the whole context · □ pinned · click opens the head",
            graph(GRID, "clickable grid"),
            table="scores",
        ),
        html.Div(_distribution(), id=DISTRIBUTION, className="stack"),
    ]


def _one_model() -> list[Any]:
    """What stands in the place of training for a model of one checkpoint."""
    ranked = card(
        "The strongest heads",
        "best first, with 95 % intervals; dotted: from there on heads are counted · click opens the head",
        graph(RANKED, "clickable"),
        table="scores",
    )
    numbers = card(
        "What the model gets right and loses",
        "pooled over distances and depths, with 95 % intervals",
        html.Div(id=NUMBERS, className="table tall"),
        table="metrics",
    )
    return [html.Div([ranked, numbers], className="row halves")]


def _over_training() -> list[Any]:
    curves = html.Div(
        [
            card(
                "Emergence",
                [
                    html.Span("bold: mean of each run's 3 strongest heads; rings: onset", title=MEANING),
                    html.Span("; ▲: phase change of the first number beside", title=_PHASE),
                    choice("x", width=84, choices=("tokens", "step")),
                    choice("group", width=100, choices=("each run", "by name")),
                    choice("base", width=130),
                ],
                graph(EMERGENCE, "cursor"),
            ),
            *(
                card(
                    _metric_select(select_id),
                    html.Span("dotted curve: farthest distance; ▲: phase change", title=_PHASE),
                    graph(figure_id, "cursor"),
                    table="metrics",
                )
                for select_id, figure_id in zip((LEFT_METRIC, RIGHT_METRIC), METRIC_FIGURES, strict=True)
            ),
        ],
        className="row three",
    )
    strips = card(
        "Heads × checkpoints",
        html.Span(
            "strongest heads, earliest onset (tick) first, in each run's own order · click opens the head",
            title=MEANING,
        ),
        graph(STRIPS, "clickable cursor"),
        table="emergence",
    )
    return [curves, strips]


def _distribution() -> list[Any]:
    return [
        card(
            "Score distribution over training",
            "heights: log of 1 + heads; where a class of heads parts from the rest",
            graph(RIDGES),
            table="scores",
        )
    ]


def _metric_select(name: dict[str, str]) -> dmc.Select:
    return dmc.Select(
        id=name,
        data=[],
        size="xs",
        allowDeselect=False,
        className="metric",
        **attributes(aria_label="metric"),
    )
