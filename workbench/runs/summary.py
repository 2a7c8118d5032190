"""What emerged in one run or several, as the command line tells it: classes, earliest heads, phase changes, lock-in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.emergence import aligned, compare, counts
from workbench.heads import Head, KVHead, WorkbenchError
from workbench.runs.run import Run

# These describe a head and do not rise as it emerges.
_DESCRIPTIVE = ("entropy", "mean_distance")
_CLASS = ("run", "detector", "probe")
_HEADS = (*_CLASS, "head", "kind", "verdict", "n50", "n50_lo", "n50_hi", "unit", "method", "final", "transience")
_CHANGES = (
    "run",
    "probe",
    "metric",
    "distance",
    "n50",
    "n50_lo",
    "n50_hi",
    "n10",
    "n90",
    "unit",
    "amplitude",
)


@dataclass(frozen=True, slots=True)
class Summary:
    """Tables `classes`, `heads`, `phase_changes`, `aligned`, `counts`; and what lock-in supports for each class.

    `aligned`: the heads of each class in the order of their onsets, a column of onsets per run. `counts`: how many
    heads of each class every run has by a time.
    """

    tables: dict[str, pd.DataFrame]
    sentences: list[dict[str, str]]


def summarise(
    runs: Sequence[Run], *, detectors: Sequence[str] | None = None, probe: str | None = None, n: int = 3
) -> Summary:
    """What emerged; runs are set beside each other by class, never head by head.

    Args:
        detectors: default those that all runs have, without those that describe a head rather than rise.
        n: how many heads of each class and run to list, the earliest first.

    Raises:
        WorkbenchError: if two runs bear one name, or have no detector or class in common.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise WorkbenchError(f"two of the runs {', '.join(names)} bear one name; rename a folder to tell them apart")
    chosen = _detectors(runs, detectors)
    traced = {run.name: pd.concat([run.emergence(d, probe=probe) for d in chosen], ignore_index=True) for run in runs}
    heads = pd.concat([_earliest(name, table, n) for name, table in traced.items()], ignore_index=True)
    changes = pd.concat([_changes(run) for run in runs], ignore_index=True)
    sentences = [
        {"run": run.name, "detector": detector, "probe": on, "says": _said(run, detector, on)}
        for run in runs
        for detector in chosen
        for on in run.probes_of(detector)
        if probe in (None, on)
    ]
    tables = {"classes": compare(traced), "heads": heads, "phase_changes": changes}
    return Summary({**tables, "aligned": aligned(traced), "counts": counts(traced)}, sentences)


def _detectors(runs: Sequence[Run], named: Sequence[str] | None) -> list[str]:
    if named:
        return list(named)
    shared = set.intersection(*(set(run.detectors) for run in runs)) - set(_DESCRIPTIVE)
    if not shared:
        said = "; ".join(f"{run.name}: {', '.join(run.detectors) or 'none'}" for run in runs)
        raise WorkbenchError(f"there is no detector that rises and that all runs have: {said}")
    return sorted(shared)


def _earliest(name: str, table: pd.DataFrame, n: int) -> pd.DataFrame:
    found = table.loc[table["n50"].notna()].sort_values("n50", kind="stable").assign(run=name)
    found = found.groupby(["detector", "probe"], sort=True, observed=True).head(n)
    found = found.sort_values(["detector", "probe", "n50"], kind="stable")
    labels = [
        str(Head(layer, head) if pd.notna(head) else KVHead(layer, kv))
        for layer, head, kv in found.loc[:, ["layer", "head", "kv_head"]].itertuples(index=False)
    ]
    return found.assign(head=labels).loc[:, list(_HEADS)]


def _changes(run: Run) -> pd.DataFrame:
    """The changes that are some, of pooled numbers and by distance; by position there would be one for each."""
    found: Any = run.phase_changes().assign(run=run.name)
    is_told = found["is_change"].astype(bool) & found["position"].isna()
    return found.loc[is_told, list(_CHANGES)]


def _said(run: Run, detector: str, probe: str) -> str:
    try:
        return run.lock_in_sentence(detector, probe=probe)
    except WorkbenchError as error:
        return f"no lock-in: {error}."
