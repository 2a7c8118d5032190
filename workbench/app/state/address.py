"""Read a view from an address and write it into one; parameters are those that the registered pages declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qs, urlencode

from workbench.app.registry import pages
from workbench.app.state.head_sets import PARAMETER
from workbench.app.state.scan_states import is_there
from workbench.app.state.slider_stops import PLACE_PARAMETERS
from workbench.app.state.view import (
    NO_HEAD,
    Scored,
    View,
    default_detector,
    default_head,
    default_probe,
    first_known,
    is_named,
)
from workbench.heads import WorkbenchError
from workbench.runs import Run

# Parameters of pages that are the fields `run` and `head` of `View`.
_FIELDS = {"of", "head"}
# Every page carries the heads that are pinned, and the run that they are of.
_PINNED = ("of", PARAMETER)


def view_of(address: Mapping[str, str]) -> tuple[View, int | None]:
    """The view of an address (pathname, search), and its step; None stands for the last one.

    Names that are not there are replaced by `settled`.
    """
    query = query_of(address)

    def first(name: str) -> str:
        return query.get(name, [""])[0]

    page = address.get("pathname", "").rstrip("/").rpartition("/")[2]
    step = int(first("step")) if first("step").isdecimal() else None
    runs = tuple(query.get("run", ()))
    view = View(page, runs, first("detector"), first("probe"), first("of") or (runs or ("",))[0], first("head"))
    parameters = {PARAMETER, *(name for page in pages() for name in page.parameters)} - _FIELDS
    return view.having({name: first(name) for name in parameters}), step


def query_of(address: Mapping[str, str]) -> dict[str, list[str]]:
    """The values of each parameter of an address; empty ones are left out."""
    return parse_qs(address.get("search", "").lstrip("?"))


def place_in(address: Mapping[str, str]) -> dict[str, str]:
    """The stop of the slider that an address names; see `slider_stops`."""
    query = query_of(address)
    return {name: query[name][0] for name in PLACE_PARAMETERS if name in query}


def address_of(view: View) -> str:
    """The relative address of a view, without the place of the slider."""
    fields = {"of": view.run, "head": view.head}
    query = [("run", run) for run in view.runs] + [("detector", view.detector), ("probe", view.probe)]
    names = dict.fromkeys((*_parameters(view.page), *(_PINNED if view.get(PARAMETER) else ())))
    query += [(name, fields.get(name) or view.get(name)) for name in names]
    return f"{view.page}?{urlencode([(name, value) for name, value in query if value])}"


def settled(view: View, runs: Mapping[str, Scored]) -> View:
    """The nearest view that can be shown.

    Unknown names are replaced by the first that are there, an unknown probe by the one that most of the chosen runs
    were scored on. Runs that cannot be read are left out, unless all chosen ones are such: then every card says why.
    Without runs, as where the app is opened on a model, it is the Probe page.
    """
    if not runs:
        return View("probe", more=view.more)
    named = tuple(name for name in view.runs if name in runs) or tuple(runs)
    chosen = tuple(name for name in named if can_be_read(runs[name]))
    page = view.page if view.page in [page.name for page in pages()] else pages()[0].name
    if not chosen:
        return replace(view, page=page, runs=named, run=first_known([view.run], named))
    detector = default_detector(view.detector, runs, chosen)
    probe = default_probe(view.probe, runs, chosen, detector)
    run = first_known([view.run], chosen)
    nearest = View(page, chosen, detector, probe, run, view.head, view.more)
    if "head" not in _parameters(page):
        return nearest
    try:
        head = default_head(nearest, runs[run])
    except WorkbenchError:  # a damaged part: the page's cards say so
        return nearest
    return replace(nearest, head=head).having({NO_HEAD: "" if is_named(head, view.head) else view.head})


def can_be_read(run: Run | Scored) -> bool:
    """Whether a run's folder is there and its parts can be listed; one that is not whole keeps all from being read."""
    try:
        _ = run.detectors
    except (WorkbenchError, OSError):
        return False
    return not isinstance(run, Run) or is_there(run)


def _parameters(page_name: str) -> tuple[str, ...]:
    return next((page.parameters for page in pages() if page.name == page_name), ())
