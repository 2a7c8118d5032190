"""Runs beside each other: how many heads of a class there are, and when they came, never which index they have.

The k-th head of one model is not the k-th of another that was drawn with another seed; only runs that share a
checkpoint share heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.emergence.head_histories import VERDICTS
from workbench.emergence.rank_statistics import spearman
from workbench.emergence.score_curves import HEAD
from workbench.heads import WorkbenchError

_CLASS = ["detector", "probe"]


def compare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many heads of each class every run has, and when half of their rise was over.

    Args:
        tables: run name -> rows of `Run.emergence()`, of one or several detectors.

    Returns:
        One row per class (detector, probe) and run: n_heads, one count per verdict, share (there at the end: at_first
        and emerged, of n_heads), unit, first, q10, median, q90 (of n50 over emerged and transient heads).

    Raises:
        WorkbenchError: if there is no run, or no class that all runs have.
    """
    joined = _joined(tables)
    rows = [_summary(key, group) for key, group in joined.groupby([*_CLASS, "run"], sort=True, observed=True)]
    return pd.DataFrame(rows)


def counts(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Heads of each class that are there by a time: run, detector, probe, unit, amount, n, share (of all heads).

    Heads that were there at first stand at amount 0. A transient head counts from its onset on.
    """
    pieces: list[pd.DataFrame] = []
    for key, group in _joined(tables).groupby([*_CLASS, "run"], sort=True, observed=True):
        onset = np.sort(group.loc[group["n50"].notna(), "n50"].to_numpy(np.float64))
        n = int(np.sum(group.loc[:, "verdict"].to_numpy() == "at_first")) + np.arange(len(onset) + 1)
        amount = np.concatenate([[0.0], onset])
        place = {**_named_keys(key), "unit": group["unit"].iloc[0]}
        pieces.append(pd.DataFrame({**place, "amount": amount, "n": n, "share": n / len(group)}))
    return pd.concat(pieces, ignore_index=True)


def aligned(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The heads of each class in the order of their onsets: detector, probe, place (from 1), and n50 of each run.

    Heads meet by class and place alone. NaN where a run has fewer.
    """
    joined = _joined(tables).sort_values("n50", kind="stable")
    found = joined.loc[joined["n50"].notna()]
    place = found.groupby([*_CLASS, "run"], observed=True).cumcount() + 1
    wide = found.assign(place=place).pivot_table(index=[*_CLASS, "place"], columns="run", values="n50", observed=True)
    return wide.reindex(columns=list(tables)).reset_index().rename_axis(columns=None)


def same_heads(tables: Mapping[str, pd.DataFrame], weights: Mapping[str, set[str]]) -> pd.DataFrame:
    """Head by head, for runs of one lineage: the final scores of each pair of runs.

    Args:
        weights: run name -> digests of the checkpoints it scored; a shared one is what makes heads the same.

    Returns:
        One row per class and pair: one, other, n_heads, rho (Spearman over heads), ratio (of their mean scores).

    Raises:
        WorkbenchError: naming two runs that share no checkpoint, or no head.
    """
    names = list(tables)
    joined = _joined(tables)
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if not weights[one] & weights[other]:
                raise WorkbenchError(
                    f"{one} and {other} share no checkpoint: their heads of one number are not the same heads; "
                    "compare them by class and onset (compare, aligned)"
                )
            rows += _pair(joined, one, other)
    return pd.DataFrame(rows)


def _pair(joined: pd.DataFrame, one: str, other: str) -> list[dict[str, Any]]:
    keys = [*_CLASS, *HEAD]
    sides = [joined.loc[joined["run"] == name].drop_duplicates(keys, keep="last") for name in (one, other)]
    both = sides[0].merge(sides[1], on=keys, suffixes=("", "_other"))
    if both.empty:
        raise WorkbenchError(f"{one} and {other} have no head of the same layer, number and kind")
    return [
        {
            **dict(zip(_CLASS, key if isinstance(key, tuple) else (key,), strict=True)),
            "one": one,
            "other": other,
            "n_heads": len(group),
            "rho": spearman(group["final"].to_numpy(np.float64), group["final_other"].to_numpy(np.float64)),
            "ratio": float(group["final_other"].mean() / group["final"].mean()) if group["final"].mean() else np.nan,
        }
        for key, group in both.groupby(_CLASS, observed=True)
    ]


def _joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All tables as one, of the classes that all have."""
    if not tables:
        raise WorkbenchError("there is no run to compare; pass some from `workbench.open_run(path)`")
    classes = {name: set(table.loc[:, _CLASS].itertuples(index=False, name=None)) for name, table in tables.items()}
    shared = set.intersection(*classes.values())
    if not shared:
        said = "; ".join(f"{name}: {_named(found)}" for name, found in classes.items())
        raise WorkbenchError(f"these runs have no detector on a probe of the same name in common: {said}")
    every = pd.concat([table.assign(run=name) for name, table in tables.items()], ignore_index=True)
    units = set(every["unit"])
    if len(units) > 1:
        raise WorkbenchError(
            f"the runs count in {' and '.join(sorted(unit or 'nothing' for unit in units))}: give tokens_per_step in "
            "series.toml and scan again"
        )
    return every.loc[every.loc[:, _CLASS].apply(tuple, axis=1).isin(shared)]


def _named(classes: set[tuple[str, str]]) -> str:
    return ", ".join(sorted(f"{detector} on {probe}" for detector, probe in classes)) or "none"


def _named_keys(key: Any) -> dict[str, Any]:
    return dict(zip([*_CLASS, "run"], key, strict=True))


def _summary(key: Any, group: pd.DataFrame) -> dict[str, Any]:
    verdicts = group.loc[:, "verdict"].value_counts()
    onset = group.loc[group["n50"].notna(), "n50"].to_numpy(np.float64)
    q10, median, q90 = np.quantile(onset, (0.1, 0.5, 0.9)) if len(onset) else (np.nan,) * 3
    there = int(verdicts.get("at_first", 0)) + int(verdicts.get("emerged", 0))
    return {
        **_named_keys(key),
        "n_heads": len(group),
        **{verdict: int(verdicts.get(verdict, 0)) for verdict in VERDICTS},
        "share": there / len(group),
        "unit": group["unit"].iloc[0],
        "first": onset.min() if len(onset) else np.nan,
        "q10": q10,
        "median": median,
        "q90": q90,
    }
