"""The stops of the slider: which one an address names, and how an address names one.

A stop is named by the step of the first run where that is enough (`step=256`); where another run has a checkpoint
between two of the first, by that run and checkpoint (`by=hybrid&at=step300`). Without a name it is the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# A name of a stop: parameters of an address.
Place = Mapping[str, str]
PLACE_PARAMETERS = ("step", "at", "by")


def places_of(runs: Mapping[str, Mapping[str, Any]], n_stops: int) -> list[dict[str, str]]:
    """The name of each stop, given for each run its `columns` at the stops, and its `steps` and `names` of columns."""
    first = next(iter(runs.values()), None)
    furthest = -1  # the highest step of the first run at the stops before
    places: list[dict[str, str]] = []
    for position in range(n_stops):
        column = -1 if first is None else first["columns"][position]
        step = None if first is None or column < 0 else first["steps"][column]
        if step is not None and step > furthest:
            places.append({"step": str(step)})
        else:
            places.append(_place_by_run(runs, position))
        furthest = max(furthest, -1 if step is None else step)
    return places


def stop_of(scores: Mapping[str, Any], place: Place) -> int:
    """The slider position of a place; the last for an empty one, and for what is not there.

    A step that the first run has no checkpoint at is shown at its next one.
    """
    return _position(scores["runs"], len(scores["stops"]), place)


def nearest_stop(scores: Mapping[str, Any], shown: Mapping[str, Any]) -> int:
    """The position that shows what was shown before other runs, or another detector or probe, were chosen.

    `shown`: the `place`, the `names` of the checkpoints of each run, and the amount of training, `x`, where the slider
    stood; empty if it stood at the last.
    """
    n_stops = len(scores["stops"])
    if not shown:
        return n_stops - 1
    place = shown.get("place", {})
    is_named = "at" not in place or place["at"] in scores["runs"].get(place.get("by", ""), {}).get("names", ())
    names: Mapping[str, str] = shown.get("names", {})
    first = next(iter(scores["runs"]), "")
    if is_named and ("step" not in place or first == next(iter(names), first)):
        return _position(scores["runs"], n_stops, place)
    for run, name in names.items():
        if name in scores["runs"].get(run, {}).get("names", ()):
            return _position(scores["runs"], n_stops, {"by": run, "at": name})
    before = [i for i, stop in enumerate(scores["stops"]) if stop["x"] <= shown.get("x", float("inf"))]
    return before[-1] if before else 0


def checkpoints_at(scores: Mapping[str, Any], position: int) -> dict[str, str]:
    """The checkpoint that each run shows at a stop; a run that has none yet is left out."""
    runs: Mapping[str, Mapping[str, Any]] = scores["runs"]
    return {
        name: run["names"][run["columns"][position]]
        for name, run in runs.items()
        if run["columns"] and run["columns"][position] >= 0
    }


def _place_by_run(runs: Mapping[str, Mapping[str, Any]], position: int) -> dict[str, str]:
    """The place of the first run that has another checkpoint here than at the stop before."""
    for name, run in runs.items():
        column = run["columns"][position]
        if column >= 0 and (position == 0 or run["columns"][position - 1] != column):
            return {"by": name, "at": run["names"][column]}
    return {}


def _position(runs: Mapping[str, Mapping[str, Any]], n_stops: int, place: Place) -> int:
    first = next(iter(runs), None)
    if first is None:
        return n_stops - 1
    if "at" in place:
        run = runs.get(place.get("by", first))
        names: Sequence[str] = () if run is None else run["names"]
        if run is None or place["at"] not in names:
            return n_stops - 1
        column = names.index(place["at"])
        return run["columns"].index(column) if column in run["columns"] else n_stops - 1
    if place.get("step", "").isdecimal():
        for position, column in enumerate(runs[first]["columns"]):
            step = None if column < 0 else runs[first]["steps"][column]
            if step is not None and step >= int(place["step"]):
                return position
    return n_stops - 1
