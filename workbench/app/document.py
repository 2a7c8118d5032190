"""Lay out the whole document: stores, header, controls, and one frame for each registered page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, dcc, html, no_update

from workbench.app import ids
from workbench.app.components import attributes, labelled
from workbench.app.registry import Page, pages
from workbench.app.state.content import Content

POLL_MS = 2000
_STORES = (
    *(ids.LOCATION, ids.NAVIGATE, ids.VIEW, ids.ADDRESS_STEP, ids.EMPTY_PAGE, ids.JUMP),
    *(ids.PLANES, ids.PLANES_REQUEST, ids.CURRENT_STEP, ids.RUN_CHECKPOINTS, ids.FINGERPRINTS),
    *(ids.SCORES_CHANGED, ids.METRICS_CHANGED, ids.HEAD_CHANGED, ids.NAMES_CHANGED, ids.ANY_CHANGED),
)


def document(content: Content, *, laid_out: Collection[str]) -> dmc.MantineProvider:
    """The document with these pages laid out; the other frames are empty until `fill_pages` fills them."""
    frames = [frame(page, page.layout(content) if page.name in laid_out else ()) for page in pages()]
    body = [
        *(dcc.Store(id=name) for name in _STORES),
        dcc.Store(id=ids.THEME, storage_type="local"),
        dcc.Interval(id=ids.TICK, interval=POLL_MS),
        _header([page for page in pages() if content.runs or page.name == "probe"]),
        _controls(list(content.runs)),
        html.Main(frames),
    ]
    return dmc.MantineProvider(html.Div(body, id=ids.ROOT, className="wb"), id=ids.MANTINE, forceColorScheme="light")


def frame(page: Page, children: Iterable[Any]) -> html.Div:
    """The element that holds a page's components; `page_styles` shows one frame at a time."""
    data = {"data_page_name": page.name, **({"data_follows_checkpoint": "true"} if page.follows_checkpoint else {})}
    return html.Div(list(children), id=page.frame_id, className="page", **attributes(**data))


def graph_ids(page: Page, content: Content) -> list[str]:
    """The ids of a page's figures."""
    whole = frame(page, page.layout(content))
    return [name for name in whole if isinstance(whole[name], dcc.Graph)]


def page_styles() -> str:
    """The style element that shows the frame of the current page and marks its link in the header."""
    frames = ", ".join(f".wb.on-{page.name} #{page.frame_id}" for page in pages())
    links = ", ".join(f".wb.on-{page.name} #nav-{page.name}" for page in pages())
    mark = "color: var(--accent); background: color-mix(in srgb, var(--accent) 12%, transparent); font-weight: 600;"
    return f"<style>{frames} {{ display: grid; }} {links} {{ {mark} }}</style>"


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
        return [list(page.layout(content)) if page.name == name else no_update for page in pages()]


def status_line(
    done: int, planned: int, failed: int, *, runs: int, checkpoints: int, remarks: Sequence[str] = ()
) -> list[Any]:
    """The scan's progress, for the header, and that there are scores beside those shown (`remarks` say which)."""
    share = done / planned if planned else 0.0
    text = f"{runs} run{'s' * (runs != 1)} · {checkpoints} checkpoint{'s' * (checkpoints != 1)}"
    line: list[Any] = [html.Span(text, className="muted")]
    if planned and done < planned:
        bar = html.Span(html.Span(style={"width": f"{100 * share:.1f}%"}), className="bar", role="presentation")
        line += [html.Span(f"scan {100 * share:.0f} %", className="accent"), bar]
    elif planned:
        line.append(html.Span("scan complete", className="muted"))
    if failed:
        text = f"{failed} unit{'s' * (failed != 1)} failed"
        to_jobs = attributes(data_page="jobs")
        line.append(html.A(text, href="jobs", className="failed", title="see why", **to_jobs))
    if remarks:
        to_jobs = attributes(data_page="jobs")
        line.append(html.A("not all scores are shown", href="jobs", title="\n".join(remarks), **to_jobs))
    return line


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
    brand = html.B([html.Span("◧ ", className="accent"), "attention workbench"])
    theme = html.Button(
        "◐", id="dark", className="icon", title="dark or light (d)", **attributes(aria_label="dark or light")
    )
    return html.Header([brand, html.Nav(links), html.Span(className="space"), html.Div(id=ids.STATUS), theme])


def _controls(runs: list[str]) -> html.Div:
    chips = dmc.ChipGroup(
        [dmc.Chip(name, value=name, size="xs", variant="light") for name in runs], id=ids.RUNS, multiple=True, value=[]
    )
    slider = dmc.Slider(
        id=ids.CHECKPOINT, min=0, max=0, value=0, step=1, size="sm", label=None, updatemode="drag", marks=[]
    )
    hint = html.Span([html.Kbd("["), html.Kbd("]"), " step ", html.Kbd("d"), " dark"], className="hint")
    choices = [
        labelled("Runs", html.Div(chips, className="chips")),
        html.Span(className="space"),
        labelled("Detector", dmc.Select(id=ids.DETECTOR, data=[], size="xs", allowDeselect=False, w=170)),
        labelled("Probe", dmc.Select(id=ids.PROBE, data=[], size="xs", allowDeselect=False, w=150)),
    ]
    checkpoint = [
        html.Div([html.Label("Checkpoint"), html.Span(id=ids.CHECKPOINT_LABEL)], className="at"),
        html.Div(slider, className="slider"),
        hint,
    ]
    return html.Div(
        [html.Div(choices, className="choices"), html.Div(checkpoint, className="checkpoint")],
        className="controls",
        style={} if runs else {"display": "none"},
    )
