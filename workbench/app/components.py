"""What all pages are built from: the ids that they share, cards, figures, and what an empty one says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import Dash, dcc, html

from workbench.app.probe_processes import Probings
from workbench.app.state.view import View
from workbench.figures.style import PALETTES, Theme, styled
from workbench.runs import Run
from workbench.runs.cache import SharedCache

Runs = Mapping[str, Run]

# what the browser keeps
LOCATION, NAVIGATE, VIEW, WANTED, UNFILLED = "location", "navigate", "view", "wanted", "unfilled"
JUMP, THEME = "jump", "theme"
PLANES, SENT, AT, STEPS, SEEN = "planes", "sent", "at", "steps", "seen"
SCORES_CHANGED, METRICS_CHANGED, HEAD_CHANGED, NAMES_CHANGED, ANY_CHANGED = (
    "scores-changed",
    "metrics-changed",
    "head-changed",
    "names-changed",
    "any-changed",
)
TICK = "tick"
# around the pages
MANTINE, ROOT, STATUS = "mantine", "root", "status"
RUNS, DETECTOR, PROBE, FOCUS = "runs", "detector", "probe", "head-run"
CHECKPOINT, CHECKPOINT_LABEL = "checkpoint", "checkpoint-label"

# Of a run with 3,072 heads at 154 checkpoints a figure has 20 to 180 kB, all its scores of a detector 750.
_MOST_ANSWERS = 64

WAITING = "no scores yet<br>make some with<br><b>workbench scan DIR --out {run}</b><br>this page follows the scan"
_GRAPH: Any = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "toImage"],
}


@dataclass(frozen=True, slots=True)
class Content:
    """What the app is opened on: runs under the names that it shows, plans beside them, and models run on demand.

    `made`: figures and other answers that were made of them.
    """

    runs: Runs
    plans: Mapping[str, Path] = field(default_factory=dict[str, Path])
    probings: Probings = field(default_factory=Probings)
    made: SharedCache = field(default_factory=lambda: SharedCache(_MOST_ANSWERS))


def _as_it_is(view: View, _: Content) -> View:
    return view


class Page(NamedTuple):
    """A page: its name in the address, its layout, its callbacks, and the ids of its figures.

    `settle` fills in what the page's own parameters are where an address does not say so or cannot be meant.
    """

    name: str
    layout: Callable[[Content], html.Div]
    register: Callable[[Dash, Content], None]
    graphs: tuple[str, ...] = ()
    settle: Callable[[View, Content], View] = _as_it_is


def theme_of(dark: bool | None) -> Theme:
    """The theme that the browser keeps as a flag."""
    return "dark" if dark else "light"


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


def page_of(name: str, children: Sequence[Any]) -> html.Div:
    """The frame of a page, shown while the view is on it."""
    return html.Div(list(children), id=name, className="page", **extra(data_name=name))


def card(title: Any, about: Any, body: Any, *, table: str = "") -> html.Section:
    """A titled box around a figure or a table; `table` names what of `exports.TABLES` it shows."""
    button = html.Button("⤓", className="icon export", title="export (e)", **extra(aria_label="export"))
    return html.Section(
        [html.H3([title, html.Small(about), button]), *(body if isinstance(body, list) else [body])],
        className="card",
        **extra(data_table=table),
    )


def controls(title: str, about: str, body: Any) -> html.Section:
    """A titled box around what the reader sets, of which nothing can be taken away."""
    return html.Section([html.H3([title, html.Small(about)]), body], className="card")


def graph(name: str, class_name: str = "") -> dcc.Graph:
    """A figure's place. `clickable`: a click on a head opens it; `cursor`, `grid`: see assets/workbench.js."""
    return dcc.Graph(id=name, config=_GRAPH, responsive=False, className=class_name, figure=_nothing())


@cache
def _nothing() -> go.Figure:
    """What a figure is until the server has drawn it; made once, and nobody writes into it."""
    return message("", "light")


def choice(name: str, *, width: int = 190, label: str = "", choices: Sequence[str] = ()) -> html.Div:
    """A select whose value is the parameter `name` of the address; its page fills `data` and `value`."""
    chosen = select(choice_id(name), choices, width=width, label=label or name)
    return labelled(label, chosen) if label else html.Div(chosen)


def select(name: Any, choices: Sequence[str], *, width: int, label: str) -> dmc.Select:
    """A small select; `label` is what a screen reader calls it."""
    return dmc.Select(id=name, data=list(choices), size="xs", allowDeselect=False, w=width, **extra(aria_label=label))


def choice_id(name: str) -> dict[str, str]:
    """The id of a select that writes the address."""
    return {"type": "choice", "name": name}


def labelled(label: str, control: Any) -> html.Div:
    """A control with its name before it."""
    return html.Div([html.Label(label), control], className="labelled")


def badges(labels: Mapping[str, str]) -> list[html.Span]:
    """Short facts, each with what it means as its title."""
    return [html.Span(text, className="badge", title=title) for text, title in labels.items()]


def extra(**attributes: str) -> dict[str, Any]:
    """Attributes whose names have a dash."""
    return {name.replace("_", "-"): value for name, value in attributes.items()}
