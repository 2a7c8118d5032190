"""A view: the runs, detector, probe and head that the app shows, and the choices that there are for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import pandas as pd

from workbench.heads import Head, WorkbenchError

# Of a settled view: the head that was asked for, where the run has none of this name.
NO_HEAD = "no_head"
_PREFERRED_DETECTORS = ("induction", "retrieval", "window_gates")
_PREFERRED_PROBES = ("repeats", "copy_needle")


@runtime_checkable
class Scored(Protocol):
    """A run, as far as choices are made from it: a `Run` is one."""

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
    """One view; "" where nothing is chosen. `run` and `head` are the run and the head of the Head page.

    `more`: the parameters of single pages, as sorted (name, value) pairs without empty values.
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
        """The unit in which training is counted."""
        return "step" if self.get("x") == "step" else "tokens"

    def get(self, name: str) -> str:
        """A parameter of a page, "" where it is not chosen."""
        return dict(self.more).get(name, "")

    def having(self, values: Mapping[str, str]) -> View:
        """The view with other values of pages' parameters; "" removes one."""
        merged = {**dict(self.more), **values}
        return replace(self, more=tuple(sorted((name, value) for name, value in merged.items() if value)))

    def as_json(self) -> dict[str, Any]:
        """The view as the browser stores it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> View:
        """The view that the browser sent."""
        return cls(
            page=value["page"],
            runs=tuple(value["runs"]),
            detector=value["detector"],
            probe=value["probe"],
            run=value["run"],
            head=value["head"],
            more=tuple((name, text) for name, text in value.get("more", ())),
        )

    @classmethod
    def of_page(cls, name: str, value: Mapping[str, Any] | None) -> View | None:
        """The view that the browser sent, if it shows the page `name`; a page draws nothing while another is shown."""
        return None if value is None or value["page"] != name else cls.from_json(value)


def choices_of_detector(runs: Mapping[str, Scored], chosen: Sequence[str]) -> list[str]:
    """The detectors that any of the chosen runs has, by name."""
    return sorted({detector for name in chosen for detector in runs[name].detectors})


def choices_of_probe(runs: Mapping[str, Scored], chosen: Sequence[str], detector: str) -> list[str]:
    """The probes that any of the chosen runs was scored on by a detector, by name."""
    return sorted({probe for name in chosen for probe in runs[name].probes_of(detector)})


def default_detector(name: str, runs: Mapping[str, Scored], chosen: Sequence[str]) -> str:
    """The detector of this name if a chosen run has it, else a common one, else the first."""
    return first_known([name, *_PREFERRED_DETECTORS], choices_of_detector(runs, chosen))


def default_probe(name: str, runs: Mapping[str, Scored], chosen: Sequence[str], detector: str) -> str:
    """The probe of this name if a chosen run was scored on it, else the one that most chosen runs were scored on."""
    if name in choices_of_probe(runs, chosen, detector):
        return name
    return _commonest([runs[run].probes_of(detector) for run in chosen])


def default_head(view: View, run: Scored) -> str:
    """The head of the view if the run has it, else its strongest."""
    heads = heads_of(run)
    try:
        if view.head and Head.parse(view.head) in heads:
            return str(Head.parse(view.head))
    except WorkbenchError:
        pass  # a text that names no head is replaced, as every unknown name is
    if not heads:
        return ""
    if view.detector not in run.detectors:
        return str(heads[0])
    scores = run.scores(detector=view.detector, step="last", columns=("layer", "head", "score"))
    best = scores.dropna().sort_values("score").tail(1).to_dict("records")
    return str(Head(int(best[0]["layer"]), int(best[0]["head"])) if best else heads[0])


def is_named(head: str, name: str) -> bool:
    """Whether a name is that of a head, in any spelling; no name asks for any head."""
    try:
        return not name or Head.parse(name) == Head.parse(head)
    except WorkbenchError:
        return False


def heads_of(run: Scored) -> list[Head]:
    """All query heads of a run that have a score at the last checkpoint, in order."""
    scores = run.scores(step="last", columns=("layer", "head"))
    pairs = scores.dropna().drop_duplicates().itertuples(index=False)
    return sorted(Head(int(layer), int(head)) for layer, head in pairs)


def neighbour(name: str, key: str, heads: Sequence[Head]) -> str:
    """The head that a key moves to: h left, l right, j next layer, k previous layer; at the border it stays."""
    current = Head.parse(name)
    layers = sorted({head.layer for head in heads})
    if key in "jk":
        layer_slot = layers.index(current.layer) + (1 if key == "j" else -1)
        if not 0 <= layer_slot < len(layers):
            return name
        last = max(head.head for head in heads if head.layer == layers[layer_slot])
        return str(Head(layers[layer_slot], min(current.head, last)))
    beside = Head(current.layer, current.head + (1 if key == "l" else -1))
    return str(beside) if beside in heads else name


def first_known(preferred: Sequence[str], known: Sequence[str]) -> str:
    """The first preferred name that is known, else the first known one, else ""."""
    return next((name for name in preferred if name in known), (list(known) or [""])[0])


def _commonest(probes_of_runs: Sequence[Sequence[str]]) -> str:
    """The probe of most runs; of several the first preferred one, then by name; "" if there is none."""
    counts = Counter(name for probes in probes_of_runs for name in probes)
    ranks = {name: i for i, name in enumerate(_PREFERRED_PROBES)}
    return min(counts, key=lambda name: (-counts[name], ranks.get(name, len(ranks)), name), default="")
