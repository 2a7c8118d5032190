"""Lay out the whole document: stores, header, controls, and one frame for each registered page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import dash_mantine_components as dmc
import flask
from dash import ClientsideFunction, Dash, Input, Output, dcc, html, no_update

from workbench.app import ids
from workbench.app.components import attributes, labelled, select
from workbench.app.definitions import DEFINITIONS
from workbench.app.registry import CONTROLS, Page, pages
from workbench.app.state.content import Content
from workbench.figures.style import paired_colours

POLL_MS = 2000
_FEW_RUNS = 6
_STORES = (
    *(ids.LOCATION, ids.NAVIGATE, ids.VIEW, ids.ADDRESS_STEP, ids.EMPTY_PAGE, ids.JUMP, ids.NOTICE),
    *(ids.PLANES, ids.PLANES_REQUEST, ids.CURRENT_STEP, ids.RUN_CHECKPOINTS, ids.FINGERPRINTS),
    *(ids.SCORES_CHANGED, ids.METRICS_CHANGED, ids.HEAD_CHANGED, ids.NAMES_CHANGED, ids.ANY_CHANGED),
)


def document(content: Content, *, laid_out: Collection[str]) -> dmc.MantineProvider:
    """The document with these pages laid out; the other frames are empty until `fill_pages` fills them."""
    frames = [frame(page, filled(page, content) if page.name in laid_out else ()) for page in pages()]
    body = [
        *(dcc.Store(id=name) for name in _STORES),
        dcc.Store(id=ids.THEME),
        dcc.Store(id=ids.THEME_COLOURS, data=paired_colours()),
        dcc.Store(id=ids.CARDS, data=_pages_of_cards(content)),
        dcc.Interval(id=ids.TICK, interval=POLL_MS),
        _header([page for page in pages() if content.runs or page.name == "probe"]),
        html.Div(id=ids.BANNERS),
        _controls(list(content.runs)),
        html.Main(frames),
        html.Div(id="announced", className="unseen", role="status", **attributes(aria_live="polite")),
    ]
    return dmc.MantineProvider(html.Div(body, id=ids.ROOT, className="wb"), id=ids.MANTINE, forceColorScheme="light")


class LayoutOfPage:
    """The layout as a function: the document with the page laid out that the browser shows, which its Referer names."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._names = [page.name for page in pages()]
        self._pages_of_cards = _pages_of_cards(content)
        self._made: dict[str, dmc.MantineProvider] = {}

    def __call__(self) -> dmc.MantineProvider:
        name = self.page_of(flask.request.referrer or "") if flask.has_request_context() else self._names[0]
        if name not in self._made:
            self._made[name] = document(self._content, laid_out=[name])
        return self._made[name]

    def page_of(self, address: str) -> str:
        """The page that an address shows; that of a card, where it is one alone; the first for unknown addresses."""
        parts = urlsplit(address)
        *_, before, name = ["", "", *parts.path.rstrip("/").split("/")]
        if not self._content.runs:
            return "probe"
        if before == "embed":
            named = parse_qs(parts.query).get("page", [""])[0]
            name = named or self._pages_of_cards.get(unquote(name), "")
        return name if name in self._names else self._names[0]


def _pages_of_cards(content: Content) -> dict[str, str]:
    """The page of each card, by the name under which it is embedded."""
    pages_of: dict[str, str] = {}
    for page in pages():
        for name in _cards_in(page.layout(content)):
            pages_of.setdefault(name, page.name)
    return pages_of


def _cards_in(parts: Any) -> Iterable[str]:
    """The names of the cards among these components and inside them."""
    for part in parts if isinstance(parts, list | tuple) else [parts]:
        if name := getattr(part, "data-card", ""):
            yield name
        yield from _cards_in(getattr(part, "children", ()))


def frame(page: Page, children: Iterable[Any]) -> html.Div:
    """The element that holds a page's components; `page_styles` shows one frame at a time."""
    data = {"data_page_name": page.name, **({"data_follows_checkpoint": "true"} if page.follows_checkpoint else {})}
    return html.Div(list(children), id=page.frame_id, className="page", **attributes(**data))


def filled(page: Page, content: Content) -> list[Any]:
    """A page's components under a heading that screen readers read out."""
    return [html.H2(page.title, className="unseen"), *page.layout(content)]


def graph_ids(page: Page, content: Content) -> list[str]:
    """The ids of a page's figures."""
    whole = frame(page, filled(page, content))
    return [name for name in whole if isinstance(whole[name], dcc.Graph)]


def page_styles() -> str:
    """The style element that shows the current page's frame and the controls it follows, and marks its link."""
    unused = [f".wb.on-{page.name} .controls" for page in pages() if not page.controls]
    unused += [
        f".wb.on-{page.name} .control-{name}" for page in pages() for name in CONTROLS if name not in page.controls
    ]
    hidden = ", ".join(unused)
    frames = ", ".join(f".wb.on-{page.name} #{page.frame_id}" for page in pages())
    links = ", ".join(f".wb.on-{page.name} #nav-{page.name}" for page in pages())
    mark = "color: var(--accent); background: color-mix(in srgb, var(--accent) 12%, transparent); font-weight: 600;"
    hide = f"{hidden} {{ display: none; }}" if hidden else ""
    return f"<style>{frames} {{ display: grid; }} {links} {{ {mark} }} {hide}</style>"


def fill_pages(app: Dash, content: Content) -> None:
    """Lay out a page when it is first shown: figures out of sight would delay those in sight."""
    app.clientside_callback(
        ClientsideFunction("workbench", "findEmptyPage"), Output(ids.EMPTY_PAGE, "data"), Input(ids.VIEW, "data")
    )

    @app.callback(
        *(Output(page.frame_id, "children") for page in pages()),
        Input(ids.EMPTY_PAGE, "data"),
        prevent_initial_call=True,
    )
    def lay_out(name: Any) -> Any:
        return [filled(page, content) if page.name == name else no_update for page in pages()]


def _header(shown: Sequence[Page]) -> html.Header:
    links = [
        html.A(
            page.title,
            id=f"nav-{page.name}",
            href=page.name,
            className="nav",
            **attributes(data_page=page.name),
        )
        for page in shown
    ]
    brand = html.H1([html.Span("◧ ", className="accent"), "attention workbench"])
    buttons = [
        _button("jump-head", "/", "jump to a head (/)"),
        _button("export", "⤓", "export: figures, tables, a permalink (e)"),
        _button("help", "?", "all keys (?)"),
        _button("dark", "◐", "dark or light (d)"),
    ]
    return html.Header(
        [
            brand,
            html.Nav(links, **attributes(aria_label="pages")),
            html.Span(className="space"),
            html.Div(id=ids.STATUS),
            html.Div(buttons, className="buttons"),
        ]
    )


def _button(name: str, sign: str, title: str) -> html.Button:
    return html.Button(sign, id=name, className="icon", title=title, **attributes(aria_label=title))


def _run_filter(runs: list[str]) -> list[Any]:
    """Of many runs: a text that the names of those shown contain, all of these, and one alone; see assets/runs.js."""
    if len(runs) <= _FEW_RUNS:
        return []
    text = attributes(aria_label="filter runs by name", data_run_filter="")
    few = "one run alone: the baseline where one is chosen, else the first that the filter shows"
    return [
        dmc.TextInput(placeholder=f"filter {len(runs)} runs", size="xs", w=130, className="run-filter", **text),
        html.Button("all", className="text", title="all runs that the filter shows", **attributes(data_runs="all")),
        html.Button("one", className="text", title=few, **attributes(data_runs="one")),
    ]


def _chips(group: dmc.ChipGroup) -> list[html.Div]:
    return [html.Div(group, className="chips", role="group", **attributes(aria_label="runs"))]


def _controls(runs: list[str]) -> html.Section:
    chips = dmc.ChipGroup(
        [dmc.Chip(name, value=name, size="xs", variant="light") for name in runs], id=ids.RUNS, multiple=True, value=[]
    )
    slider = dmc.Slider(
        id=ids.CHECKPOINT,
        min=0,
        max=0,
        value=0,
        step=1,
        size="sm",
        label=None,
        updatemode="drag",
        marks=[],
        thumbLabel="checkpoint",
    )
    steps = [html.Span([html.Kbd("["), html.Kbd("]"), " step"], className="hint control-checkpoint")]
    choices = [
        _control("runs", "Runs", html.Div([*_run_filter(runs), *_chips(chips)], className="runs")),
        html.Span(className="space"),
        _control("detector", "Detector", select(ids.DETECTOR, (), width=170, label="detector")),
        _control("probe", "Probe", select(ids.PROBE, (), width=150, label="probe")),
    ]
    checkpoint = [
        html.Div([html.Span("Checkpoint", className="muted"), html.Span(id=ids.CHECKPOINT_LABEL)], className="at"),
        html.Div(slider, className="slider"),
        *steps,
    ]
    return html.Section(
        [
            html.Div(choices, className="choices"),
            html.Div(id=DEFINITIONS, className="definitions muted control-detector"),
            html.Div(checkpoint, className="checkpoint control-checkpoint"),
        ],
        className="controls",
        style={} if runs else {"display": "none"},
        **attributes(aria_label="what is shown"),
    )


def _control(name: str, label: str, control: Any) -> html.Div:
    """A control that pages without it do not show."""
    return html.Div(labelled(label, control), className=f"control-{name}")
