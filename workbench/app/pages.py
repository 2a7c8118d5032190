"""The two pages and what is around them; the ids of all parts are constants here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import dcc, html

from workbench.figures.style import PALETTES, Theme, styled

POLL_MS = 2000

# what the browser keeps
LOCATION, NAVIGATE, VIEW, WANTED, JUMP, THEME = "location", "navigate", "view", "wanted", "jump", "theme"
PLANES, SENT, AT, STEPS, SEEN = "planes", "sent", "at", "steps", "seen"
SCORES_CHANGED, METRICS_CHANGED, HEAD_CHANGED, NAMES_CHANGED = (
    "scores-changed",
    "metrics-changed",
    "head-changed",
    "names-changed",
)
TICK = "tick"
# around the pages
MANTINE, ROOT, STATUS, NAV = "mantine", "root", "status", {"overview": "nav-overview", "head": "nav-head"}
RUNS, DETECTOR, PROBE, CHECKPOINT, CHECKPOINT_LABEL = "runs", "detector", "probe", "checkpoint", "checkpoint-label"
# Overview
OVERVIEW, KPIS, EMERGENCE, STRIPS, GRID = "overview", "kpis", "emergence", "strips", "grid"
LEFT_METRIC, RIGHT_METRIC, LEFT_FIGURE, RIGHT_FIGURE = "metric-left", "metric-right", "figure-left", "figure-right"
# Head
HEAD, TITLE, BADGES, FOCUS, HISTORY, PLACE, SCORES, HEAD_GRID = (
    "head",
    "head-title",
    "head-badges",
    "head-run",
    "history",
    "place",
    "head-scores",
    "head-grid",
)

_GRAPH: Any = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    "toImageButtonOptions": {"format": "svg", "filename": "workbench"},
}


def page(runs: Sequence[str]) -> dmc.MantineProvider:
    """The whole document: stores, header, controls and both pages, of which one is shown."""
    stores = [
        *(LOCATION, NAVIGATE, VIEW, WANTED, JUMP, PLANES, SENT, AT, STEPS, SEEN),
        *(SCORES_CHANGED, METRICS_CHANGED, HEAD_CHANGED, NAMES_CHANGED),
    ]
    body = [
        *(dcc.Store(id=name) for name in stores),
        dcc.Store(id=THEME, storage_type="local"),
        dcc.Interval(id=TICK, interval=POLL_MS),
        _header(),
        _controls(list(runs)),
        html.Main([_overview(), _head(list(runs))]),
    ]
    return dmc.MantineProvider(html.Div(body, id=ROOT, className="wb"), id=MANTINE, forceColorScheme="light")


def message(text: str, theme: Theme, *, height: int = 220) -> go.Figure:
    """A figure that only says something: what is missing, and the command that makes it."""
    figure = styled(go.Figure(), theme, height=height)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure.add_annotation(
        text=text.replace("; ", ";<br>"),
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 13, "color": PALETTES[theme].muted},
    )


def status_line(done: int, planned: int, failed: int, *, runs: int, checkpoints: int) -> list[Any]:
    """How much is scanned, for the header."""
    share = done / planned if planned else 0.0
    text = f"{runs} run{'s' * (runs != 1)} · {checkpoints} checkpoints"
    parts: list[Any] = [html.Span(text, className="muted")]
    if planned and done < planned:
        bar = html.Span(html.Span(style={"width": f"{100 * share:.1f}%"}), className="bar", role="presentation")
        parts += [html.Span(f"scan {100 * share:.0f} %", className="accent"), bar]
    elif planned:
        parts.append(html.Span("scan complete", className="muted"))
    if failed:
        title = "see `workbench status RUN`"
        parts.append(html.Span(f"{failed} unit{'s' * (failed != 1)} failed", className="failed", title=title))
    return parts


def badges(labels: Mapping[str, str]) -> list[html.Span]:
    """Short facts, each with what it means as its title."""
    return [html.Span(text, className="badge", title=title) for text, title in labels.items()]


def _header() -> html.Header:
    links = [
        html.A(name.capitalize(), id=NAV[name], href=name, className="nav", **_extra(data_page=name)) for name in NAV
    ]
    brand = html.B([html.Span("◧ ", className="accent"), "attention workbench"])
    dark = html.Button(
        "◐", id="dark", className="icon", title="dark or light (d)", **_extra(aria_label="dark or light")
    )
    return html.Header([brand, html.Nav(links), html.Span(className="space"), html.Div(id=STATUS), dark])


def _controls(runs: list[str]) -> html.Div:
    chips = dmc.ChipGroup(
        [dmc.Chip(name, value=name, size="xs", variant="light") for name in runs], id=RUNS, multiple=True, value=[]
    )
    slider = dmc.Slider(
        id=CHECKPOINT, min=0, max=0, value=0, step=1, size="sm", label=None, updatemode="drag", marks=[]
    )
    hint = html.Span([html.Kbd("["), html.Kbd("]"), " step ", html.Kbd("d"), " dark"], className="hint")
    choices = [
        _labelled("Runs", html.Div(chips, className="chips")),
        html.Span(className="space"),
        _labelled("Detector", dmc.Select(id=DETECTOR, data=[], size="xs", allowDeselect=False, w=170)),
        _labelled("Probe", dmc.Select(id=PROBE, data=[], size="xs", allowDeselect=False, w=150)),
    ]
    checkpoint = [
        html.Div([html.Label("Checkpoint"), html.Span(id=CHECKPOINT_LABEL)], className="at"),
        html.Div(slider, className="slider"),
        hint,
    ]
    return html.Div(
        [html.Div(choices, className="choices"), html.Div(checkpoint, className="checkpoint")], className="controls"
    )


def _labelled(label: str, control: Any) -> html.Div:
    return html.Div([html.Label(label), control], className="labelled")


def _overview() -> html.Div:
    curves = html.Div(
        [
            _card(
                "Emergence",
                "bold: mean of the 3 strongest heads of each run; thin: each of them; rings: half-rise onset",
                _graph(EMERGENCE),
            ),
            _card(_metric_select(LEFT_METRIC), "dotted: farthest distance", _graph(LEFT_FIGURE)),
            _card(_metric_select(RIGHT_METRIC), "dotted: farthest distance", _graph(RIGHT_FIGURE)),
        ],
        className="row three",
    )
    strips = _card(
        "Heads × checkpoints",
        "strongest heads, earliest onset (tick) first, in each run's own order · click opens the head",
        _graph(STRIPS, "clickable"),
    )
    kinds = "F full · W sliding window · C chunked · L linear · grey: no score · click opens the head"
    grid = _card("Layer × head at this checkpoint", kinds, _graph(GRID, "clickable"))
    return html.Div([html.Div(id=KPIS, className="kpis"), curves, strips, grid], id=OVERVIEW, className="page")


def _head(runs: list[str]) -> html.Div:
    keys = [html.Span([*map(html.Kbd, "hjkl"), " other head"], className="hint")]
    title = html.Section(
        [
            html.Span(id=TITLE, className="title"),
            dmc.Select(id=FOCUS, data=runs, size="xs", allowDeselect=False, w=170, **_extra(aria_label="run")),
            html.Div(id=BADGES, className="badges"),
            html.Span(className="space"),
            *keys,
        ],
        className="card head-title",
    )
    lines = html.Div(
        [
            _card(
                "Score history",
                "all detectors, on the chosen probe where they were scored on it",
                _graph(HISTORY),
            ),
            _card(
                "Among the other heads",
                "at this checkpoint · click opens the head",
                _graph(PLACE, "clickable"),
            ),
        ],
        className="row two",
    )
    numbers = html.Div(
        [
            _card("Scores at this checkpoint", "rank 1 is the highest score", html.Div(id=SCORES, className="table")),
            _card("Its place in the model", "click opens the head", _graph(HEAD_GRID, "clickable")),
        ],
        className="row two",
    )
    return html.Div([title, lines, numbers], id=HEAD, className="page")


def _card(title: Any, about: str, body: Any) -> html.Section:
    return html.Section([html.H3([title, html.Small(about)]), body], className="card")


def _metric_select(name: str) -> dmc.Select:
    return dmc.Select(
        id=name, data=[], size="xs", allowDeselect=False, className="metric", **_extra(aria_label="metric")
    )


def _extra(**attributes: str) -> dict[str, Any]:
    """Attributes whose names have a dash."""
    return {name.replace("_", "-"): value for name, value in attributes.items()}


def _graph(name: str, class_name: str = "") -> dcc.Graph:
    return dcc.Graph(id=name, config=_GRAPH, responsive=False, className=class_name, figure=message("", "light"))
