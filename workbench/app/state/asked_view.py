"""Refuse an address whose names are not there, where the nearest view would answer with other rows.

A page shows the nearest view that there is, and names what it shows. A file has only its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from workbench.app.model_numbers import METRICS, metric_choices
from workbench.app.registry import pages
from workbench.app.state.content import Content
from workbench.app.state.head_sets import PARAMETER
from workbench.app.state.plan_mask import is_mask_of
from workbench.app.state.slider_stops import PLACE_PARAMETERS
from workbench.app.state.view import View, choices_of_detector, choices_of_probe, heads_of
from workbench.heads import Head, WorkbenchError, some_of
from workbench.store.plan_file import Plan

# `v` is the version of the scores that a permalink was copied at.
_OF_EVERY_PAGE = ("page", "run", "detector", "probe", *PLACE_PARAMETERS, "v", PARAMETER)
_CHOICES = {"x": ("tokens", "step"), "group": ("each run", "by name")}
_FEW = 12


class NotThere(WorkbenchError):
    """A parameter of an address, or its value, that the app does not have."""


def refuse_other(query: Mapping[str, Sequence[str]], view: View, content: Content) -> None:
    """Refuse a query whose settled view is not the one that it asks for; empty values ask for nothing.

    Raises:
        NotThere: naming the parameter, its value, and the values that there are.
    """
    values = {name: [value for value in listed if value] for name, listed in query.items()}
    values = {name: listed for name, listed in values.items() if listed}
    names = [page.name for page in pages()]
    known = [*_OF_EVERY_PAGE, *dict.fromkeys(name for page in pages() for name in page.parameters)]
    for name, listed in values.items():
        if name not in known:
            raise NotThere(f"there is no parameter {name!r}; expected {_some(known)}")
        if name != "run" and len(listed) > 1:
            raise NotThere(f"{name} is given {len(listed)} times; expected one value")
    one = {name: listed[0] for name, listed in values.items()}
    for name in values.get("run", []):
        _check("run", name, content.runs)
    _check("page", one.get("page"), names)
    _check("of", one.get("of"), view.runs)
    _check("detector", one.get("detector"), choices_of_detector(content.runs, view.runs))
    _check("probe", one.get("probe"), choices_of_probe(content.runs, view.runs, view.detector))
    _check_head(one.get("head"), view, content)
    for name in one.get(PARAMETER, "").split("."):
        _check_head(name or None, view, content)
    _check_step(one.get("step"), view, content)
    _check_checkpoint(one.get("at"), one.get("by"), view, content)
    for name, choices in _CHOICES.items():
        _check(name, one.get(name), choices)
    _check("base", one.get("base"), view.runs)
    for name in METRICS:
        if name in one:
            _check(name, one[name], metric_choices(view, content.runs))
    _check("plan", one.get("plan"), content.plans)
    _check_mask(one.get("keep"), view, content)
    for name in ("a", "b", "at_a", "at_b"):
        if name in one and view.get(name) != one[name]:
            raise NotThere(
                f"{name}={one[name]!r} cannot be compared here; the nearest is {view.get(name) or 'nothing'!r}"
            )


def _check(name: str, value: str | None, choices: Iterable[str]) -> None:
    if value is not None and value not in (listed := list(choices)):
        raise NotThere(f"there is no {name} {value!r} here; there is: {_some(listed) or 'none'}")


def _check_head(value: str | None, view: View, content: Content) -> None:
    if value is None or view.run not in content.runs:
        return
    try:
        head = Head.parse(value)
    except WorkbenchError as error:
        raise NotThere(str(error)) from error
    if head not in heads_of(content.runs[view.run]):
        raise NotThere(
            f"there is no head {value} in {view.run}; there is: {_some(map(str, heads_of(content.runs[view.run])))}"
        )


def _check_step(value: str | None, view: View, content: Content) -> None:
    if value is None:
        return
    steps = {int(s) for name in view.runs for s in content.runs[name].checkpoints()["step"].dropna()}
    if not re.fullmatch(r"\d{1,18}", value, re.ASCII) or int(value) not in steps:
        raise NotThere(f"there is no step {value!r} here; there is: {_some(map(str, sorted(steps))) or 'none'}")


def _check_checkpoint(value: str | None, by: str | None, view: View, content: Content) -> None:
    """A stop of the slider that is named by a checkpoint of a run, the first if none is named."""
    if value is None:
        return
    _check("by", by, view.runs)
    run = by or (view.runs or ("",))[0]
    if run in content.runs:
        _check("checkpoint", value, content.runs[run].checkpoints()["ckpt"].tolist())


def _check_mask(value: str | None, view: View, content: Content) -> None:
    path = content.plans.get(view.get("plan"))
    if value is None or path is None:
        return
    plan = Plan.load(path)
    if not is_mask_of(plan, value):
        raise NotThere(
            f"keep={value!r} names heads that plan {view.get('plan')} does not rank; expected n5 (the first five of "
            f"{len(plan.ranking)}), or heads such as {'.'.join(str(r.head) for r in plan.ranking[:2])}"
        )


def _some(names: Iterable[str]) -> str:
    return some_of(list(names), _FEW)
