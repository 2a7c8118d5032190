"""Summarise what emerged in one run or several: classes of heads, earliest heads, phase changes, lock-in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.emergence import aligned, compare, counts
from workbench.heads import Head, KVHead, WorkbenchError, brief
from workbench.runs.run import Run

# Detectors that describe a head; their scores do not rise as it emerges.
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
    """Tables `classes`, `heads`, `phase_changes`, `aligned`, `counts`, and a sentence on lock-in for each class.

    `aligned`: the heads of each class in order of onset, with a column of onsets per run. `counts`: how many heads of
    each class every run has by a given time.
    """

    tables: dict[str, pd.DataFrame]
    sentences: list[dict[str, str]]

    def __repr__(self) -> str:
        return brief(self)


def summarise(
    runs: Sequence[Run], *, detectors: Sequence[str] | None = None, probe: str | None = None, n: int = 3
) -> Summary:
    """Summarise what emerged; runs are compared by class, never head by head.

    Args:
        detectors: default those that all runs have, without entropy and mean_distance, which do not rise.
        n: heads of each class and run to list, the earliest first.

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
        {"run": run.name, "detector": detector, "probe": on, "says": _lock_in_sentence(run, detector, on)}
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
        by_run = "; ".join(f"{run.name}: {', '.join(run.detectors) or 'none'}" for run in runs)
        raise WorkbenchError(f"there is no detector that rises and that all runs have: {by_run}")
    return sorted(shared)


def _earliest(name: str, table: pd.DataFrame, n: int) -> pd.DataFrame:
    heads = table.loc[table["n50"].notna()].sort_values("n50", kind="stable").assign(run=name)
    heads = heads.groupby(["detector", "probe"], sort=True, observed=True).head(n)
    heads = heads.sort_values(["detector", "probe", "n50"], kind="stable")
    labels = [
        str(Head(layer, head) if pd.notna(head) else KVHead(layer, kv))
        for layer, head, kv in heads.loc[:, ["layer", "head", "kv_head"]].itertuples(index=False)
    ]
    return heads.assign(head=labels).loc[:, list(_HEADS)]


def _changes(run: Run) -> pd.DataFrame:
    """The phase changes of numbers that are pooled or by distance; numbers by position are too many to list."""
    changes: Any = run.phase_changes().assign(run=run.name)
    is_listed = changes["is_change"].astype(bool) & changes["position"].isna()
    return changes.loc[is_listed, list(_CHANGES)]


def _lock_in_sentence(run: Run, detector: str, probe: str) -> str:
    try:
        return run.lock_in_sentence(detector, probe=probe)
    except WorkbenchError as error:
        return f"no lock-in: {error}."
