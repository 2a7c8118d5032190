"""From tables to arrays: every head's score at every checkpoint, with what a reader is told when pointing at it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from workbench.figures.style import Scale
from workbench.heads import Head, KVHead, WorkbenchError

_COLUMNS = (
    *("ckpt", "branch", "step", "step_total", "tokens", "layer", "head", "kv_head", "kind", "window", "probe"),
    *("score", "ci_lo", "ci_hi", "n"),
)
# These describe a head and do not rise as it emerges: an onset says nothing of them.
DESCRIPTIVE = frozenset({"entropy", "mean_distance"})
UNITS = {
    "entropy": "nats",
    "mean_distance": "tokens",
    "window_gates": "nats",
    "leave_one_windowed": "nats",
    "restore_one": "nats",
}


@runtime_checkable
class RunLike(Protocol):
    """What figures ask of a run: `workbench.runs.run.Run` is one."""

    @property
    def name(self) -> str:
        """What the run is called in titles and legends."""
        ...

    def scores(self, **filters: Any) -> pd.DataFrame:
        """As `Run.scores`."""
        ...

    def metrics(self, **filters: Any) -> pd.DataFrame:
        """As `Run.metrics`."""
        ...

    def emergence(self, detector: str, *, probe: str | None = None) -> pd.DataFrame:
        """As `Run.emergence`."""
        ...

    def onsets(self, detector: str, *, probe: str | None = None) -> pd.DataFrame:
        """As `Run.onsets`."""
        ...


class Checkpoint(NamedTuple):
    """Where in training a score was taken."""

    name: str
    branch: str | None
    step: int | None
    step_total: int | None
    tokens: int | None

    def __str__(self) -> str:
        parts = [self.name if self.step is None else f"step {self.step:,}"]
        if self.tokens is not None:
            parts.append(f"{short_count(self.tokens)} tokens")
        return " · ".join(parts)


class LayerKind(NamedTuple):
    """What a layer is, to label it."""

    layer: int
    kind: str
    window: int | None


@dataclass(frozen=True, slots=True)
class Trajectories:
    """The scores of all heads of a run under one detector and probe.

    Columns of the arrays are `checkpoints`, in series order. Where a head has no score, `score` is NaN and `n` is 0.
    A layer that mixes in two ways at once is in `layers` once for each, with the heads of each; `places` says for
    every head which of the layers is its own.
    """

    detector: str
    probe: str
    heads: tuple[Head | KVHead, ...]
    layers: tuple[LayerKind, ...]
    places: tuple[int, ...]
    checkpoints: tuple[Checkpoint, ...]
    score: Float[np.ndarray, "heads ckpts"]
    ci_lo: Float[np.ndarray, "heads ckpts"]
    ci_hi: Float[np.ndarray, "heads ckpts"]
    n: Int[np.ndarray, "heads ckpts"]

    @property
    def width(self) -> int:
        """Heads of the widest layer."""
        return 1 + max(number for _, number in self.heads)

    def layer_of(self, row: int) -> LayerKind:
        """What the layer of a row's head is."""
        return self.layers[self.places[row]]

    def column(self, step: int | str) -> int:
        """The column of a step, of a checkpoint's name, or of the last checkpoint for "last".

        Raises:
            WorkbenchError: if there is no such checkpoint; it lists those there are.
        """
        for column in reversed(range(len(self.checkpoints))):
            if step in ("last", self.checkpoints[column].step, self.checkpoints[column].name):
                return column
        known = ", ".join(str(checkpoint.step) for checkpoint in self.checkpoints)
        raise WorkbenchError(f"step {step} is not among the checkpoints: {known}")

    def strongest(self, top: int) -> list[int]:
        """The rows of the heads with the highest score at any checkpoint, highest first."""
        peak = np.where(np.isnan(self.score), -np.inf, self.score).max(1)
        return [int(row) for row in np.argsort(-peak, kind="stable")[:top] if np.isfinite(peak[row])]

    def hover(self, row: int, column: int, unit: str) -> str:
        """What one score is: head, checkpoint, value, confidence interval, n."""
        head = self.heads[row]
        score, low, high = (float(array[row, column]) for array in (self.score, self.ci_lo, self.ci_hi))
        number = said(
            self.detector,
            (score, low, high),
            int(self.n[row, column]),
            unit=unit,
        )
        return f"<b>{head}</b> · {self.layer_of(row).kind} · {self.checkpoints[column]}<br>{number}"


@runtime_checkable
class KeepsTrajectories(Protocol):
    """A run that keeps the arrays it was asked for, such as the app's."""

    def trajectories(self, detector: str, probe: str | None) -> Trajectories:
        """As `read_trajectories`."""
        ...


def trajectories(run: RunLike, detector: str, probe: str | None) -> Trajectories:
    """A run's scores under one detector, kept or read; `probe` may be None where only one probe scored it.

    Raises:
        WorkbenchError: as `read_trajectories`.
    """
    keeps = isinstance(run, KeepsTrajectories)
    return run.trajectories(detector, probe) if keeps else read_trajectories(run, detector, probe)


def read_trajectories(run: RunLike, detector: str, probe: str | None) -> Trajectories:
    """Read a run's scores under one detector; `probe` may be None where only one probe scored it.

    Raises:
        WorkbenchError: if there are no such scores, or several probes have some.
    """
    scores = run.scores(detector=detector, probe=probe, columns=_COLUMNS)
    if scores.empty:
        raise WorkbenchError(f"run {run.name} has no scores of {detector} yet; see `workbench status`")
    probes = scores.loc[:, "probe"].unique().tolist()
    if len(probes) > 1:
        raise WorkbenchError(f"{detector} was scored on {', '.join(probes)}: pass one of them as probe=")
    return arranged(scores, detector)


def arranged(scores: pd.DataFrame, detector: str) -> Trajectories:
    """Rows of `Run.scores` of one detector and probe, head by checkpoint."""
    checkpoints = checkpoints_of(scores)
    by_kv_head = bool(scores.loc[:, "head"].isna().all())
    layers, layer = _layers(scores)
    place = scores.loc[:, "kv_head" if by_kv_head else "head"].to_numpy(np.int64, na_value=-1)
    stride = int(place.max()) + 2
    row, codes = pd.factorize(layer * stride + place + 1, sort=True)
    places = tuple(int(code) // stride for code in codes)
    column = pd.Index([c.name for c in checkpoints]).get_indexer(scores.loc[:, "ckpt"])
    shape = len(codes), len(checkpoints)

    def array(name: str, missing: Any) -> Any:
        values = np.full(shape, missing)
        values[row, column] = scores.loc[:, name].to_numpy()
        return values

    kind = KVHead if by_kv_head else Head
    return Trajectories(
        detector,
        str(scores.loc[:, "probe"].iloc[0]),
        heads=tuple(kind(layers[at].layer, int(code) % stride - 1) for at, code in zip(places, codes, strict=True)),
        layers=layers,
        places=places,
        checkpoints=checkpoints,
        score=array("score", math.nan),
        ci_lo=array("ci_lo", math.nan),
        ci_hi=array("ci_hi", math.nan),
        n=array("n", 0),
    )


def chosen_probes(pairs: Iterable[tuple[str, str]], probe: str | None) -> set[tuple[str, str]]:
    """Of (detector, probe) pairs those to show: all, or with a wanted probe one for each detector.

    A detector that was not scored on the wanted probe is shown on the first of those that it was scored on.
    """
    of: dict[str, list[str]] = {}
    for detector, scored in sorted(set(pairs)):
        of.setdefault(detector, []).append(scored)
    if probe is None:
        return {(detector, one) for detector, probes in of.items() for one in probes}
    return {(detector, probe if probe in probes else probes[0]) for detector, probes in of.items()}


def labelled(detector: str, on: str, shown: set[tuple[str, str]], probe: str | None) -> str:
    """A detector's name, with its probe where that is not the wanted one or not the only one shown."""
    only = sum(name == detector for name, _ in shown) == 1
    return detector if on == probe or (probe is None and only) else f"{detector} on {on}"


def at_step(step: int | str) -> dict[str, int | str]:
    """The filter of `Run.scores` for a step, a checkpoint's name, or "last"."""
    return {"step": step} if step == "last" or isinstance(step, int) else {"ckpt": step}


def checkpoints_of(table: pd.DataFrame) -> tuple[Checkpoint, ...]:
    """The checkpoints of a table's rows, in order of appearance."""
    first = table.drop_duplicates("ckpt")
    return tuple(checkpoint_of(row) for row in records(first, "ckpt", "branch", "step", "step_total", "tokens"))


def checkpoint_of(row: dict[str, Any]) -> Checkpoint:
    """The checkpoint of one row."""
    return Checkpoint(row["ckpt"], row["branch"], row["step"], row["step_total"], row["tokens"])


def records(table: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    """The rows as dicts of these columns; whatever is missing, NaN included, is None."""
    found = table.loc[:, list(columns)]
    return found.astype(object).where(found.notna(), None).to_dict("records")


def score_scale(detector: str, arrays: Sequence[Float[np.ndarray, "..."]]) -> Scale:
    """The range to show a detector on: 0..1, with negative scores -1..1, and its own where it has a unit."""
    finite = [array[np.isfinite(array)] for array in arrays]
    low = min((float(values.min()) for values in finite if values.size), default=0.0)
    high = max((float(values.max()) for values in finite if values.size), default=0.0)
    unit = UNITS.get(detector, "")
    if not unit and low >= -1 and high <= 1:
        return Scale(-1.0 if low < 0 else 0.0, 1.0, unit)
    if low < 0:
        reach = max(-low, high)
        return Scale(-reach, reach, unit)
    return Scale(0.0, high or 1.0, unit)


def said(what: str, values: tuple[float | None, float | None, float | None], n: int, *, unit: str) -> str:
    """A number in words: exact value, its 95 % interval (low, high) where there is one, and rows."""
    value, low, high = (None if number is None or math.isnan(number) else number for number in values)
    if value is None:
        return f"{what}: no score (no such row here)"
    interval = "" if low is None else f" · 95 % CI {low:.4f} to {high:.4f}"
    return f"{what} {value:.4f}{' ' if unit else ''}{unit}{interval} · n = {n:,}"


def short_count(count: float | int) -> str:
    """A count in three digits: 950, 8.19K, 25.2M, 1.5T."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return f"{count:g}"


def mixed_twice(scores: pd.DataFrame) -> set[int]:
    """The layers that hold heads of two kinds at one checkpoint, such as attention beside a recurrent mixer."""
    kinds = scores.drop_duplicates(["ckpt", "layer", "kind"])
    return set(kinds.loc[kinds.duplicated(["ckpt", "layer"]), "layer"].tolist())


def _layers(scores: pd.DataFrame) -> tuple[tuple[LayerKind, ...], Int[np.ndarray, "rows"]]:
    """The layers as they are last, one that mixes twice once for each kind; and which of them each row is of."""
    twice = mixed_twice(scores)
    number = scores.loc[:, "layer"]
    kind = scores.loc[:, "kind"].where(number.isin(twice), "") if twice else ""
    place = scores.assign(kind=kind).groupby(["layer", "kind"], sort=True, observed=True).ngroup().to_numpy(np.int64)
    last = scores.assign(place=place).drop_duplicates("place", keep="last").sort_values("place")
    layers = [LayerKind(row["layer"], row["kind"], row["window"]) for row in records(last, "layer", "kind", "window")]
    return tuple(layers), place
