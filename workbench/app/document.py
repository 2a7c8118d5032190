"""The pages there are, and the whole document around them: stores, header, controls."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, dcc, html, no_update

from workbench.app import components as p
from workbench.app import pattern_routes
from workbench.app.pages import compare, head, jobs, overview, plan, probe

POLL_MS = 2000
# A page that is added here, and whose parameters are in `view.PARAMETERS`, is in the header and has an address.
PAGES = (overview.PAGE, head.PAGE, compare.PAGE, plan.PAGE, jobs.PAGE, probe.PAGE)
# What fills parts of pages that other files lay out.
EXTRAS: tuple[Callable[[Dash, p.Content], None], ...] = (pattern_routes.register,)


def document(content: p.Content, *, pages: Collection[str] = ("overview",)) -> dmc.MantineProvider:
    """The whole document: stores, header, controls and all pages, of which one is shown.

    Only these `pages` are laid out; the others are filled when they are first looked at, see `fill_pages`.
    """
    mains = [page.layout(content) for page in PAGES]
    for page, main in zip(PAGES, mains, strict=True):
        if page.name not in pages:
            main.children = []
    stores = [
        *(p.LOCATION, p.NAVIGATE, p.VIEW, p.WANTED, p.UNFILLED, p.JUMP, p.PLANES, p.SENT, p.AT, p.STEPS, p.SEEN),
        *(p.SCORES_CHANGED, p.METRICS_CHANGED, p.HEAD_CHANGED, p.NAMES_CHANGED, p.ANY_CHANGED),
    ]
    body = [
        *(dcc.Store(id=name) for name in stores),
        dcc.Store(id=p.THEME, storage_type="local"),
        dcc.Interval(id=p.TICK, interval=POLL_MS),
        _header(),
        _controls(list(content.runs)),
        html.Main(mains),
    ]
    return dmc.MantineProvider(html.Div(body, id=p.ROOT, className="wb"), id=p.MANTINE, forceColorScheme="light")


def fill_pages(app: Dash, content: p.Content) -> None:
    """Lay out a page when it is first looked at: figures that nobody sees would delay those that somebody does."""
    layouts: list[Any] = [page.layout(content) for page in PAGES]
    app.clientside_callback(
        ClientsideFunction("workbench", "unfilled"), Output(p.UNFILLED, "data"), Input(p.VIEW, "data")
    )

    filled = [Output(layout.id, "children") for layout in layouts]

    @app.callback(*filled, Input(p.UNFILLED, "data"), prevent_initial_call=True)
    def lay_out(name: Any) -> Any:
        return [page.layout(content).children if page.name == name else no_update for page in PAGES]


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
        text = f"{failed} unit{'s' * (failed != 1)} failed"
        parts.append(html.A(text, href="jobs", className="failed", title="see why", **p.extra(data_page="jobs")))
    return parts


def _header() -> html.Header:
    links = [
        html.A(
            page.name.capitalize(),
            id=f"nav-{page.name}",
            href=page.name,
            className="nav",
            **p.extra(data_page=page.name),
        )
        for page in PAGES
    ]
    brand = html.B([html.Span("◧ ", className="accent"), "attention workbench"])
    dark = html.Button(
        "◐", id="dark", className="icon", title="dark or light (d)", **p.extra(aria_label="dark or light")
    )
    return html.Header([brand, html.Nav(links), html.Span(className="space"), html.Div(id=p.STATUS), dark])


def _controls(runs: list[str]) -> html.Div:
    chips = dmc.ChipGroup(
        [dmc.Chip(name, value=name, size="xs", variant="light") for name in runs], id=p.RUNS, multiple=True, value=[]
    )
    slider = dmc.Slider(
        id=p.CHECKPOINT, min=0, max=0, value=0, step=1, size="sm", label=None, updatemode="drag", marks=[]
    )
    hint = html.Span([html.Kbd("["), html.Kbd("]"), " step ", html.Kbd("d"), " dark"], className="hint")
    choices = [
        p.labelled("Runs", html.Div(chips, className="chips")),
        html.Span(className="space"),
        p.labelled("Detector", dmc.Select(id=p.DETECTOR, data=[], size="xs", allowDeselect=False, w=170)),
        p.labelled("Probe", dmc.Select(id=p.PROBE, data=[], size="xs", allowDeselect=False, w=150)),
    ]
    checkpoint = [
        html.Div([html.Label("Checkpoint"), html.Span(id=p.CHECKPOINT_LABEL)], className="at"),
        html.Div(slider, className="slider"),
        hint,
    ]
    return html.Div(
        [html.Div(choices, className="choices"), html.Div(checkpoint, className="checkpoint")], className="controls"
    )
