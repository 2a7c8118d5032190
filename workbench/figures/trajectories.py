"""Data of figures: runs as a protocol, their trajectories, score scales and hover texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.console import fixed
from workbench.emergence.head_trajectories import (
    LAYER_COLUMNS,
    TRAJECTORY_COLUMNS,
    Trajectories,
    layer_rows,
    trajectories_of,
)
from workbench.figures.style import Scale
from workbench.heads import Head, KVHead, WorkbenchError

# These describe a head and do not rise as it emerges, so that they have no onset.
DESCRIPTIVE = frozenset({"entropy", "normalized_entropy", "mean_distance"})
UNITS = {
    "entropy": "nats",
    "mean_distance": "tokens",
    "window_gates": "nats",
    "leave_one_windowed": "nats",
    "restore_one": "nats",
}


@runtime_checkable
class RunLike(Protocol):
    """The part of a run that figures use; `workbench.runs.Run` has it."""

    @property
    def name(self) -> str:
        """The run's name in titles and legends."""
        ...

    def scores(self, *args: Any, **filters: Any) -> pd.DataFrame:
        """As `Run.scores`."""
        ...

    def metrics(self, *args: Any, **filters: Any) -> pd.DataFrame:
        """As `Run.metrics`."""
        ...

    def emergence(self, detector: str, *, probe: str | None = None) -> pd.DataFrame:
        """As `Run.emergence`."""
        ...

    def onsets(self, detector: str, *, probe: str | None = None, head: Head | None = None) -> pd.DataFrame:
        """As `Run.onsets`."""
        ...


@runtime_checkable
class HasTrajectories(Protocol):
    """A run that reads arrays itself; `workbench.runs.Run` does."""

    def trajectories(self, detector: str, probe: str | None) -> Trajectories:
        """As `read_trajectories`."""
        ...

    def layer_scores(self, layer: int, *, head: Head | KVHead | None = None) -> pd.DataFrame:
        """As `Run.layer_scores`."""
        ...


def trajectories(run: RunLike, detector: str, probe: str | None) -> Trajectories:
    """A run's scores under one detector; `probe` may be None where only one probe scored it.

    Raises:
        WorkbenchError: as `read_trajectories`.
    """
    has_arrays = isinstance(run, HasTrajectories)
    return run.trajectories(detector, probe) if has_arrays else read_trajectories(run, detector, probe)


def read_trajectories(run: RunLike, detector: str, probe: str | None) -> Trajectories:
    """Read a run's scores under one detector; `probe` may be None where only one probe scored it.

    Raises:
        WorkbenchError: if there are no such scores, or several probes have some.
    """
    scores = run.scores(detector=detector, probe=probe, columns=TRAJECTORY_COLUMNS)
    return trajectories_of(scores, detector, run=run.name)


def scores_of_head(
    run: RunLike, head: Head | KVHead, *, detector: str | None = None, probe: str | None = None
) -> pd.DataFrame:
    """The scores of one head over all of training, of all detectors on all probes or of one: `LAYER_COLUMNS`.

    Raises:
        WorkbenchError: if the run has no such head.
    """
    column = "head" if isinstance(head, Head) else "kv_head"
    if isinstance(run, HasTrajectories) and detector is not None:
        rows = layer_rows(run.trajectories(detector, probe), head.layer, head=head)
    elif isinstance(run, HasTrajectories):
        rows = run.layer_scores(head.layer, head=head)
    else:
        of_layer = run.scores(layer=head.layer, columns=LAYER_COLUMNS)
        rows = of_layer.loc[of_layer[column] == head[1]]
    if rows.empty:
        of_layer = run.scores(layer=head.layer, columns=LAYER_COLUMNS)
        known = ", ".join(str(value) for value in sorted(of_layer.loc[:, column].dropna().unique()))
        raise WorkbenchError(f"{head} has no scores in {run.name}; layer {head.layer} has heads {known}")
    return rows


def chosen_probes(pairs: Iterable[tuple[str, str]], probe: str | None) -> set[tuple[str, str]]:
    """The (detector, probe) pairs to show: all, or with a chosen probe one for each detector.

    A detector that was not scored on the chosen probe is shown on the first of those that it was scored on.
    """
    if probe is None:
        return set(pairs)
    probes_of: dict[str, list[str]] = {}
    for detector, scored in sorted(set(pairs)):
        probes_of.setdefault(detector, []).append(scored)
    return {(detector, probe if probe in probes else probes[0]) for detector, probes in probes_of.items()}


def detector_label(detector: str, on: str, shown: set[tuple[str, str]], probe: str | None) -> str:
    """A detector's name, with its probe where that is not the chosen one or not the only one shown."""
    is_only = sum(name == detector for name, _ in shown) == 1
    return detector if on == probe or (probe is None and is_only) else f"{detector} on {on}"


def at_step(step: int | str) -> dict[str, int | str]:
    """The filter of `Run.scores` for a step, a checkpoint's name, or "last"."""
    return {"step": step} if step == "last" or isinstance(step, int) else {"ckpt": step}


def records(table: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    """The rows as dicts of these columns; a missing value, NaN included, is None."""
    chosen = table.loc[:, list(columns)]
    return chosen.astype(object).where(chosen.notna(), None).to_dict("records")


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


def hover(trajectories: Trajectories, row: int, column: int, unit: str) -> str:
    """One score in words: head, checkpoint, value, confidence interval, n."""
    head, detector = trajectories.heads[row], trajectories.detector
    arrays = (trajectories.score, trajectories.ci_lo, trajectories.ci_hi)
    score, low, high = (float(array[row, column]) for array in arrays)
    number = format_score(detector, (score, low, high), int(trajectories.n[row, column]), unit=unit)
    return f"<b>{head}</b> · {trajectories.layer_of(row).kind} · {trajectories.checkpoints[column]}<br>{number}"


def format_score(label: str, values: tuple[float | None, float | None, float | None], n: int, *, unit: str) -> str:
    """A score in words: its value, the 95 % interval (low, high) where there is one, and the number of rows."""
    value, low, high = (None if number is None or math.isnan(number) else number for number in values)
    if value is None:
        return f"{label}: no score (no such row here)"
    interval = "" if low is None or high is None else f" · 95 % CI {fixed(low, 4)} to {fixed(high, 4)}"
    return f"{label} {fixed(value, 4)}{' ' if unit else ''}{unit}{interval} · n = {n:,}"
