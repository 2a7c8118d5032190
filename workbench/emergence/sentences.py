"""One sentence on what lock-in says about heads that form early and are hard to move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

LOCKED = 0.9  # of the noise ceiling
EARLY = 0.25  # of training
MOVED = 0.7  # of the noise ceiling
SIZE = 0.8  # the amplitude ratio, or its inverse, down to which heads are said to keep their strength
_SURE = 0.05


def lock_in_sentence(over_training: pd.DataFrame, since_parent: pd.DataFrame | None = None) -> str:
    """What the numbers support, in one sentence of up to two clauses.

    Args:
        over_training: `lock_in(..., against="last")`; only the branch of its last row is spoken of.
        since_parent: `lock_in(..., against="parent")` where training was continued; the last row of each branch counts.
    """
    line = over_training.loc[_same(over_training.loc[:, "branch"], over_training["branch"].iloc[-1])]
    clauses = [_formed(line)]
    if since_parent is not None and len(since_parent):
        ends = since_parent.drop_duplicates(["stage", "branch"], keep="last")
        clauses += [_moved(row) for row in ends.to_dict("records")]
    return "; ".join(clauses) + "."


def locked_since(table: pd.DataFrame, column: str = "lock_in_within") -> int:
    """The row from which the column never falls below `LOCKED` again; -1 where it does at the end, or is unknown."""
    holds = table.loc[:, column].to_numpy(np.float64) >= LOCKED
    from_here_on = np.logical_and.accumulate(holds[::-1])[::-1]
    return int(from_here_on.argmax()) if from_here_on.any() else -1


def _formed(line: pd.DataFrame) -> str:
    last = line.iloc[-1]
    if len(line) < 2:
        return f"{last['ckpt']} is the only checkpoint of its branch: nothing can be said about when heads formed"
    if np.isnan(last["lock_in_within"]):
        halves = f"{last['n_heads']} heads, of which two halves of the probe agree to {last['ceiling_within']:.2f}"
        return f"{halves} within layers, do not stand clear of chance: nothing can be said about single heads"
    row, over_all = locked_since(line), locked_since(line, "lock_in")
    where, share = _place(line, row)
    if row in (-1, len(line) - 1):
        formed = f"within layers heads reach {LOCKED:.0%} of the noise ceiling only at the last checkpoint"
        claim = "which does not support 'formed early'"
    else:
        formed = f"within layers heads stay at {LOCKED:.0%} of the noise ceiling or above from {where}"
        is_early = share is not None and share <= EARLY
        claim = f"which {'supports' if is_early else 'does not support'} 'formed early'"
        if share is None:
            claim = "of unknown share of training, so that 'formed early' cannot be judged"
        elif line["p_within"].iloc[row] > _SURE:
            claim = f"but no better than heads shuffled within layers (p = {line['p_within'].iloc[row]:.2f})"
    if 0 <= over_all < (row if row >= 0 else len(line)):
        claim += f" (over all heads from {_place(line, over_all)[0]}: until then a difference between layers only)"
    return f"{formed}, {claim}"


def _moved(row: dict[str, Any]) -> str:
    name = row["branch"] if isinstance(row["branch"], str) else row["stage"]
    since = f"{row['reference']} to {row['ckpt']} ({name})"
    value, size = row["lock_in_within"], row["amplitude"]
    if np.isnan(value):
        return f"from {since} nothing can be said: the probe does not tell the heads of a layer apart"
    numbers = f"{value:.2f} of the ceiling within layers, top-{row['k']} Jaccard {row['jaccard']:.2f}, size {size:.2f}"
    if value < MOVED:
        return f"from {since} heads were moved ({numbers}), which speaks against 'hard to move'"
    if value < LOCKED:
        return f"from {since} heads were partly moved ({numbers}), which leaves 'hard to move' open"
    if not SIZE <= size <= 1 / SIZE:
        return f"from {since} heads kept their order but not their strength ({numbers})"
    return f"from {since} heads hardly moved ({numbers}), which supports 'hard to move'"


def _place(line: pd.DataFrame, row: int) -> tuple[str, float | None]:
    """A checkpoint in words, and how much of training had passed."""
    for name in ("tokens", "step_total", "step"):
        amount = line.loc[:, name].to_numpy(np.float64, na_value=np.nan)
        if not np.isnan(amount).any() and amount[-1] > 0:
            share = float(amount[row] / amount[-1])
            return f"{line['ckpt'].iloc[row]} on ({share:.0%} of {'tokens' if name == 'tokens' else 'steps'})", share
    return f"{line['ckpt'].iloc[row]} on", None


def _same(values: pd.Series, value: Any) -> pd.Series:
    return values.isna() if pd.isna(value) else values == value
