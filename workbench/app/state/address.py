"""Read a view from an address and write it into one; parameters are those that the registered pages declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qs, urlencode

from workbench.app.registry import pages
from workbench.app.state.view import Scored, View, default_detector, default_head, default_probe, first_known

# Parameters of pages that are the fields `run` and `head` of `View`.
_FIELDS = {"of", "head"}


def view_of(address: Mapping[str, str]) -> tuple[View, int | None]:
    """The view of an address (pathname, search), and its step; None stands for the last one.

    Names that are not there are replaced by `settled`.
    """
    query = parse_qs(address.get("search", "").lstrip("?"))

    def first(name: str) -> str:
        return query.get(name, [""])[0]

    page = address.get("pathname", "").rstrip("/").rpartition("/")[2]
    step = int(first("step")) if first("step").isdecimal() else None
    runs = tuple(query.get("run", ()))
    view = View(page, runs, first("detector"), first("probe"), first("of") or (runs or ("",))[0], first("head"))
    parameters = {name for page in pages() for name in page.parameters} - _FIELDS
    return view.having({name: first(name) for name in parameters}), step


def address_of(view: View) -> str:
    """The relative address of a view, without its step."""
    fields = {"of": view.run, "head": view.head}
    query = [("run", run) for run in view.runs] + [("detector", view.detector), ("probe", view.probe)]
    query += [(name, fields.get(name) or view.get(name)) for name in _parameters(view.page)]
    return f"{view.page}?{urlencode([(name, value) for name, value in query if value])}"


def settled(view: View, runs: Mapping[str, Scored]) -> View:
    """The nearest view that can be shown.

    Unknown names are replaced by the first that are there, an unknown probe by the one that most of the chosen runs
    were scored on. Without runs, as where the app is opened on a model, it is the Probe page.
    """
    if not runs:
        return View("probe")
    chosen = tuple(name for name in view.runs if name in runs) or tuple(runs)
    detector = default_detector(view.detector, runs, chosen)
    probe = default_probe(view.probe, runs, chosen, detector)
    names = [page.name for page in pages()]
    page = view.page if view.page in names else names[0]
    run = first_known([view.run], chosen)
    nearest = View(page, chosen, detector, probe, run, view.head, view.more)
    return replace(nearest, head=default_head(nearest, runs[run])) if "head" in _parameters(page) else nearest


def _parameters(page_name: str) -> tuple[str, ...]:
    return next((page.parameters for page in pages() if page.name == page_name), ())
