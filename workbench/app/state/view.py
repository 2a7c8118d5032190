"""What the reader looks at: runs, detector, probe, head. It lives in the page's address, so that links carry it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import parse_qs, urlencode

import pandas as pd

from workbench.heads import Head, WorkbenchError

# The pages, and the parameters of the address that each has for itself.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "overview": ("x",),
    "head": ("x", "mixer"),
    "compare": ("x", "a", "b", "at_a", "at_b"),
    "plan": ("plan", "keep"),
    "jobs": (),
    "probe": (),
}
PAGES = tuple(PARAMETERS)
_PREFERRED = ("induction", "retrieval", "window_gates")
_PREFERRED_PROBES = ("repeats", "copy_needle")


@runtime_checkable
class Shown(Protocol):
    """What choices are made from: a `Run` is one."""

    @property
    def detectors(self) -> tuple[str, ...]:
        """The detectors that have scores."""
        ...

    def probes_of(self, detector: str) -> tuple[str, ...]:
        """The probes that a detector has scores on."""
        ...

    def scores(self, *args: Any, **filters: Any) -> pd.DataFrame:
        """As `Run.scores`."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """One view; "" where nothing was chosen. `run` and `head` are what the Head page is about.

    `more`: the parameters that pages have for themselves, as sorted (name, value) pairs without empty values.
    """

    page: str = "overview"
    runs: tuple[str, ...] = ()
    detector: str = ""
    probe: str = ""
    run: str = ""
    head: str = ""
    more: tuple[tuple[str, str], ...] = ()

    @property
    def x(self) -> Literal["tokens", "step"]:
        """What training is counted in."""
        return "step" if self.get("x") == "step" else "tokens"

    def get(self, name: str) -> str:
        """A parameter of a page, "" where it was not chosen."""
        return dict(self.more).get(name, "")

    def having(self, values: Mapping[str, str]) -> View:
        """The view with other values of pages' parameters; "" takes one away."""
        merged = {**dict(self.more), **values}
        return replace(self, more=tuple(sorted((name, value) for name, value in merged.items() if value)))

    def as_json(self) -> dict[str, Any]:
        """As the browser keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> View:
        """As the browser sent it."""
        return cls(
            page=value["page"],
            runs=tuple(value["runs"]),
            detector=value["detector"],
            probe=value["probe"],
            run=value["run"],
            head=value["head"],
            more=tuple((name, text) for name, text in value.get("more", ())),
        )


def view_of(address: Mapping[str, str]) -> tuple[View, int | None]:
    """The view that an address (pathname, search) asks for, and its step; None asks for the last one.

    Whatever cannot be read is left to `settled`.
    """
    query = parse_qs(address.get("search", "").lstrip("?"))

    def one(name: str) -> str:
        return query.get(name, [""])[0]

    page = address.get("pathname", "").rstrip("/").rpartition("/")[2]
    step = int(one("step")) if one("step").isdecimal() else None
    runs = tuple(query.get("run", ()))
    view = View(page, runs, one("detector"), one("probe"), one("of") or (runs or ("",))[0], one("head"))
    own = {name for names in PARAMETERS.values() for name in names}
    return view.having({name: one(name) for name in own}), step


def address_of(view: View) -> str:
    """The relative address of a view, without its step."""
    query = [("run", run) for run in view.runs] + [("detector", view.detector), ("probe", view.probe)]
    if view.page == "head":
        query += [("of", view.run), ("head", view.head)]
    query += [(name, view.get(name)) for name in PARAMETERS.get(view.page, ())]
    return f"{view.page}?{urlencode([(name, value) for name, value in query if value])}"


def settled(view: View, runs: Mapping[str, Shown]) -> View:
    """The nearest view that can be shown: unknown names give way to the first that are there, or to the probe that most
    of the chosen runs were scored on.
    """
    chosen = tuple(name for name in view.runs if name in runs) or tuple(runs)
    detector = _first([view.detector, *_PREFERRED], choices_of_detector(runs, chosen))
    probe = view.probe
    if probe not in choices_of_probe(runs, chosen, detector):
        probe = _commonest([runs[name].probes_of(detector) for name in chosen])
    run = _first([view.run], chosen)
    page = view.page if view.page in PAGES else PAGES[0]
    settled_view = View(page, chosen, detector, probe, run, view.head, view.more)
    return replace(settled_view, head=_head(settled_view, runs[run])) if page == "head" else settled_view


def choices_of_detector(runs: Mapping[str, Shown], chosen: Sequence[str]) -> list[str]:
    """The detectors that any of the chosen runs has, by name."""
    return sorted({detector for name in chosen for detector in runs[name].detectors})


def choices_of_probe(runs: Mapping[str, Shown], chosen: Sequence[str], detector: str) -> list[str]:
    """The probes that any of the chosen runs was scored on by a detector, by name."""
    return sorted({probe for name in chosen for probe in runs[name].probes_of(detector)})


def neighbour(head: str, key: str, there: Sequence[Head]) -> str:
    """The head that a key moves to: h left, l right, j next layer, k previous layer; at the border it stays."""
    here = Head.parse(head)
    layers = sorted({one.layer for one in there})
    if key in "jk":
        at = layers.index(here.layer) + (1 if key == "j" else -1)
        if not 0 <= at < len(layers):
            return head
        widest = max(one.head for one in there if one.layer == layers[at])
        return str(Head(layers[at], min(here.head, widest)))
    beside = Head(here.layer, here.head + (1 if key == "l" else -1))
    return str(beside) if beside in there else head


def heads_of(run: Shown) -> list[Head]:
    """All query heads of a run that have a score at the last checkpoint, in order."""
    scores = run.scores(step="last", columns=("layer", "head"))
    pairs = scores.dropna().drop_duplicates().itertuples(index=False)
    return sorted(Head(int(layer), int(head)) for layer, head in pairs)


def _first(wanted: Sequence[str], there: Sequence[str]) -> str:
    return next((name for name in wanted if name in there), (list(there) or [""])[0])


def _commonest(probes_of_runs: Sequence[Sequence[str]]) -> str:
    """What most runs were scored on; of several the first that is preferred, then by name; "" if there is nothing."""
    counts = Counter(name for probes in probes_of_runs for name in probes)
    ranks = {name: i for i, name in enumerate(_PREFERRED_PROBES)}
    return min(counts, key=lambda name: (-counts[name], ranks.get(name, len(ranks)), name), default="")


def _head(view: View, run: Shown) -> str:
    """The head asked for if the run has it, else its strongest."""
    there = heads_of(run)
    try:
        if view.head and Head.parse(view.head) in there:
            return str(Head.parse(view.head))
    except WorkbenchError:
        pass  # what an address cannot mean is answered with the default, as for all other names
    if not there:
        return ""
    if view.detector not in run.detectors:
        return str(there[0])
    scores = run.scores(detector=view.detector, step="last", columns=("layer", "head", "score"))
    best = scores.dropna().sort_values("score").tail(1).to_dict("records")
    return str(Head(int(best[0]["layer"]), int(best[0]["head"])) if best else there[0])
