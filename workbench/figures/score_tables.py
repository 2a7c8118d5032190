"""Tables of scores as runs of one checkpoint, so that figures draw what `wb.score` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.emergence.head_trajectories import CHECKPOINT_COLUMNS
from workbench.emergence.onset_words import COLUMNS as ONSET_COLUMNS
from workbench.heads import WorkbenchError, some_of

_NEEDED = ("layer", "head", "kind", "detector", "probe", "score")
_MISSING = {"ckpt": "", "branch": None, "step": None, "step_total": None, "tokens": None, "window": None}
_NUMBERS = ("step", "step_total", "tokens", "window", "n")
_MANY = 20


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """A score table of one model or of a run's checkpoints; a `RunLike` without metrics and onsets."""

    table: pd.DataFrame
    name: str = ""

    def scores(self, *_: Any, columns: Any = None, **filters: Any) -> pd.DataFrame:
        """The rows that have these values; "last" is the step of the last row."""
        rows = self.table
        for column, value in filters.items():
            if value is not None and (column, value) != ("step", "last"):
                rows = rows.loc[rows[column] == value]
        if filters.get("step") == "last" and len(rows):
            rows = rows.loc[rows["ckpt"] == rows["ckpt"].iloc[-1]]
        return rows if columns is None else rows.loc[:, list(columns)]

    def metrics(self, *_: Any, **__: Any) -> pd.DataFrame:
        """None: a table of scores has no metrics."""
        return pd.DataFrame()

    def emergence(self, *_: Any, **__: Any) -> pd.DataFrame:
        """None: a table of scores has no onsets."""
        return pd.DataFrame()

    def onsets(self, *_: Any, **__: Any) -> pd.DataFrame:
        """None: a table of scores has no onsets."""
        columns = ("layer", "head", "kv_head", "kind", *ONSET_COLUMNS)
        return pd.DataFrame({name: [] for name in columns})


def score_table(table: pd.DataFrame) -> ScoreTable:
    """A table as `wb.score` and `Run.scores` return it.

    Raises:
        WorkbenchError: for a table without rows or without the columns of scores.
    """
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing or table.empty:
        lacks = f"no {', '.join(missing)}" if missing else "no rows"
        raise WorkbenchError(f"the table has {lacks}; expected one as wb.score(m) or run.scores() returns it")
    added = {name: value for name, value in _MISSING.items() if name not in table.columns}
    added |= {name: float("nan") for name in ("ci_lo", "ci_hi", "kv_head") if name not in table.columns}
    added |= {} if "n" in table.columns else {"n": 0}
    whole = table.assign(**added)
    return ScoreTable(whole.astype({name: "Int64" for name in _NUMBERS if bool(whole[name].isna().to_numpy().all())}))


def only_detector(run: Any) -> str:
    """The detector of a run or table that has one alone.

    Raises:
        WorkbenchError: if there are several, with their names.
    """
    names = [str(name) for name in run.scores(columns=("detector", *CHECKPOINT_COLUMNS))["detector"].unique()]
    if len(names) != 1:
        raise WorkbenchError(f"there are scores of {some_of(names, _MANY)}; pass one of them as detector=")
    return names[0]
