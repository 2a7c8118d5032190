"""Comparison of runs: how many heads of a class each has, and when they emerged.

Heads of the same index are the same heads only in runs that share a checkpoint: another seed gives other heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.emergence.head_histories import VERDICTS
from workbench.emergence.probe_forms import refuse_two_forms
from workbench.emergence.rank_statistics import spearman
from workbench.emergence.score_curves import HEAD
from workbench.heads import WorkbenchError

_CLASS = ["detector", "probe"]


def compare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The number of heads of each class in every run, and the quantiles of their n50.

    Args:
        tables: run name -> rows of `Run.emergence()`, of one or several detectors.

    Returns:
        One row per class (detector, probe) and run: n_heads, one count per verdict, share (at_first and emerged, which
        are there at the end, of n_heads), unit, first, q10, median, q90 (of n50 over emerged and transient heads).

    Raises:
        WorkbenchError: if there is no run, or no class that all runs have.
    """
    joined = _joined(tables)
    rows = [_summary(key, group) for key, group in joined.groupby([*_CLASS, "run"], sort=True, observed=True)]
    return pd.DataFrame(rows)


def counts(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The number of heads of each class over training: run, detector, probe, unit, amount, n, share (of all heads).

    Heads with the verdict at_first stand at amount 0. A transient head counts from its onset on.
    """
    pieces: list[pd.DataFrame] = []
    for key, group in _joined(tables).groupby([*_CLASS, "run"], sort=True, observed=True):
        onset = np.sort(group.loc[group["n50"].notna(), "n50"].to_numpy(np.float64))
        n = int(np.sum(group.loc[:, "verdict"].to_numpy() == "at_first")) + np.arange(len(onset) + 1)
        amount = np.concatenate([[0.0], onset])
        keys = {**_named_keys(key), "unit": group["unit"].iloc[0]}
        pieces.append(pd.DataFrame({**keys, "amount": amount, "n": n, "share": n / len(group)}))
    return pd.concat(pieces, ignore_index=True)


def aligned(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The heads of each class in the order of their onsets: detector, probe, place (from 1), and n50 of each run.

    Heads meet by class and place in that order, not by index. NaN where a run has fewer.
    """
    joined = _joined(tables).sort_values("n50", kind="stable")
    emerged = joined.loc[joined["n50"].notna()]
    emerged = emerged.assign(place=emerged.groupby([*_CLASS, "run"], observed=True).cumcount() + 1)
    wide = emerged.pivot_table(index=[*_CLASS, "place"], columns="run", values="n50", observed=True)
    return wide.reindex(columns=list(tables)).reset_index().rename_axis(columns=None)


def same_heads(tables: Mapping[str, pd.DataFrame], weights: Mapping[str, set[str]]) -> pd.DataFrame:
    """The final scores of each pair of runs of one lineage, compared head by head.

    Args:
        weights: run name -> digests of the checkpoints it scored; runs with a shared one have the same heads.

    Returns:
        One row per class and pair: one, other, n_heads, rho (Spearman over heads), ratio (of their mean scores).

    Raises:
        WorkbenchError: naming two runs that share no checkpoint, or no head.
    """
    names = list(tables)
    joined = _joined(tables)
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            if not weights[name] & weights[other]:
                raise WorkbenchError(
                    f"{name} and {other} share no checkpoint: their heads of one number are not the same heads; "
                    "compare them by class and onset (compare, aligned)"
                )
            rows += _pair(joined, name, other)
    return pd.DataFrame(rows)


def _pair(joined: pd.DataFrame, name: str, other: str) -> list[dict[str, Any]]:
    keys = [*_CLASS, *HEAD]
    sides = [joined.loc[joined["run"] == run].drop_duplicates(keys, keep="last") for run in (name, other)]
    both = sides[0].merge(sides[1], on=keys, suffixes=("", "_other"))
    if both.empty:
        raise WorkbenchError(f"{name} and {other} have no head of the same layer, number and kind")
    return [
        {
            **dict(zip(_CLASS, key if isinstance(key, tuple) else (key,), strict=True)),
            "one": name,
            "other": other,
            "n_heads": len(group),
            "rho": spearman(group["final"].to_numpy(np.float64), group["final_other"].to_numpy(np.float64)),
            "ratio": float(group["final_other"].mean() / group["final"].mean()) if group["final"].mean() else np.nan,
        }
        for key, group in both.groupby(_CLASS, observed=True)
    ]


def _joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of all tables, of the classes that all tables have."""
    if not tables:
        raise WorkbenchError("there is no run to compare; pass some from `workbench.open_run(path)`")
    for table in tables.values():
        refuse_two_forms(table)
    classes = {name: set(table.loc[:, _CLASS].itertuples(index=False, name=None)) for name, table in tables.items()}
    shared = set.intersection(*classes.values())
    if not shared:
        listed = "; ".join(f"{name}: {_format_classes(of_run)}" for name, of_run in classes.items())
        raise WorkbenchError(f"these runs have no detector on a probe of the same name in common: {listed}")
    rows = pd.concat([table.assign(run=name) for name, table in tables.items()], ignore_index=True)
    units = set(rows["unit"])
    if len(units) > 1:
        raise WorkbenchError(
            f"the runs count in {' and '.join(sorted(unit or 'nothing' for unit in units))}: give tokens_per_step in "
            "series.toml and scan again"
        )
    return rows.loc[rows.loc[:, _CLASS].apply(tuple, axis=1).isin(shared)]


def _format_classes(classes: set[tuple[str, str]]) -> str:
    return ", ".join(sorted(f"{detector} on {probe}" for detector, probe in classes)) or "none"


def _named_keys(key: Any) -> dict[str, Any]:
    return dict(zip([*_CLASS, "run"], key, strict=True))


def _summary(key: Any, group: pd.DataFrame) -> dict[str, Any]:
    verdicts = group.loc[:, "verdict"].value_counts()
    onset = group.loc[group["n50"].notna(), "n50"].to_numpy(np.float64)
    q10, median, q90 = np.quantile(onset, (0.1, 0.5, 0.9)) if len(onset) else (np.nan,) * 3
    n_at_end = int(verdicts.get("at_first", 0)) + int(verdicts.get("emerged", 0))
    return {
        **_named_keys(key),
        "n_heads": len(group),
        **{verdict: int(verdicts.get(verdict, 0)) for verdict in VERDICTS},
        "share": n_at_end / len(group),
        "unit": group["unit"].iloc[0],
        "first": onset.min() if len(onset) else np.nan,
        "q10": q10,
        "median": median,
        "q90": q90,
    }
