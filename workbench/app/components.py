"""Build pages from cards, figures, selects and tables; a figure without data says how to make some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import dcc, html

from workbench.app.ids import parameter_id
from workbench.figures.style import PALETTES, Theme, styled

WAITING = "no scores yet<br>make some with<br><b>workbench scan DIR --out {run}</b><br>this page follows the scan"
# The class of what is left out of a page, as cards of training are for a model of one checkpoint.
ABSENT = "absent"
# No button and no address that sends a figure to a server of Plotly's.
_GRAPH: Any = {
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "toImage"],
}


def theme_of(is_dark: bool | None) -> Theme:
    """The theme that the browser stores as a flag."""
    return "dark" if is_dark else "light"


def message(text: str, theme: Theme, *, height: int = 220) -> go.Figure:
    """A figure that holds a text only: what is missing, and the command that makes it. The browser breaks its lines."""
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
    ).update_layout(meta={"message": text.replace("; ", ";<br>")})


def card(title: Any, about: Any, body: Any, *, table: str = "", name: str = "") -> html.Section:
    """A titled box around a figure or a table, which can fill the window and be embedded elsewhere.

    `table` names the page's export that it shows; `name` is that of `/embed/NAME`, by default its figure's id, else its
    table's name.
    """
    parts = body if isinstance(body, list) else [body]
    whole = html.Div(parts)
    graphs = [each for each in whole if isinstance(whole[each], dcc.Graph)]
    buttons = [
        html.Button(
            "⤢", className="icon maximise", title="fill the window (m)", **attributes(aria_label="fill the window (m)")
        ),
        html.Button("⤓", className="icon export", title="export (e)", **attributes(aria_label="export")),
    ]
    return html.Section(
        [html.H3([title, html.Small(about), *buttons]), *parts],
        className="card",
        **attributes(data_table=table, data_card=name or next(iter(graphs), "") or table),
    )


def controls(title: str, about: str, body: Any) -> html.Section:
    """A titled box around controls, without an export."""
    return html.Section([html.H3([title, html.Small(about)]), body], className="card")


def graph(name: str, class_name: str = "") -> dcc.Graph:
    """A figure that a callback fills.

    `class_name`, several of: `clickable`, a click on a head opens it; `cursor`, a line shows the slider's checkpoint;
    `grid`, its cells follow the slider.
    """
    return dcc.Graph(id=name, config=_GRAPH, responsive=False, className=class_name, figure=_empty_figure())


@cache
def _empty_figure() -> go.Figure:
    """The figure before the server has drawn one; shared by all, so never written into."""
    return message("", "light")


def choice(name: str, *, width: int = 190, label: str = "", choices: Sequence[str] = ()) -> html.Div:
    """A select whose value is the parameter `name` of the address; its page's callback fills `data` and `value`."""
    control = select(parameter_id(name), choices, width=width, label=label or name)
    return labelled(label, control) if label else html.Div(control)


def select(name: Any, choices: Sequence[str], *, width: int, label: str) -> dmc.Select:
    """A small select; screen readers read out `label`."""
    return dmc.Select(
        id=name, data=list(choices), size="xs", allowDeselect=False, w=width, **attributes(aria_label=label)
    )


def labelled(label: str, control: Any) -> html.Div:
    """A control with its name before it, which screen readers read out with it."""
    if isinstance(control, dmc.Select | dmc.TextInput) and not hasattr(control, "aria-label"):
        setattr(control, "aria-label", label)
    return html.Div([html.Label(label), control], className="labelled")


def badges(labels: Mapping[str, str]) -> list[html.Span]:
    """Short facts, each with its meaning as its title."""
    return [html.Span(text, className="badge", title=title) for text, title in labels.items()]


def text_table(titles: Sequence[Any], rows: Sequence[Sequence[Any]], *, numbers_from: int) -> html.Table:
    """A table of text; columns from `numbers_from` on are set as numbers."""
    head = html.Thead(html.Tr([html.Th(t, className="number" * (i >= numbers_from)) for i, t in enumerate(titles)]))
    body = [[html.Td(x, className="number" * (i >= numbers_from)) for i, x in enumerate(row)] for row in rows]
    return html.Table([head, html.Tbody([html.Tr(row) for row in body])], className="plain")


def attributes(**values: str) -> dict[str, Any]:
    """HTML attributes whose names have a dash: `data_page` stands for `data-page`."""
    return {name.replace("_", "-"): value for name, value in values.items()}
