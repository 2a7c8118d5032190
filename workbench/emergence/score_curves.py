"""Score curves: rows of scores as one curve per head over the checkpoints in order, with errors and a training axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.heads import brief

AxisUnit = Literal["tokens", "step", ""]

HEAD = ("layer", "head", "kv_head", "kind")
LINEAGE = ("branch", "detector", "version", "probe", "probe_digest", *HEAD)
_IDENTITY = ("branch", "detector", "version", "probe", "probe_digest", "layer", "head", "kv_head")


@dataclass(frozen=True, slots=True)
class Curves:
    """The curve of every lineage: one head under one detector and probe on one branch.

    `heads` has one row per curve: the columns of `LINEAGE` and the window, kind and window as they are last.
    `checkpoints` is indexed by name, in order. `score` is NaN where there is none; `se` is its standard error
    over probe sequences, NaN where unknown. `amount` is the tokens of each checkpoint, or its steps where the tokens of
    some are not known; NaN throughout, with `unit` "", where neither is known or they go back.
    """

    heads: pd.DataFrame
    checkpoints: pd.DataFrame
    score: Float[np.ndarray, "heads ckpts"]
    se: Float[np.ndarray, "heads ckpts"]
    amount: Float[np.ndarray, " ckpts"]
    unit: AxisUnit

    def __repr__(self) -> str:
        return brief(self)


def curves_of(scores: pd.DataFrame) -> Curves:
    """The curves in rows of `Run.scores()`; heads without any score are left out.

    Checkpoints are ordered by `step_total` where all have one, else as they appear. Where two mixers share a layer
    (an attention and a recurrent one, at the same checkpoint), the kind tells heads of one number apart;
    a layer that only changes its kind over training keeps its heads' curves whole.
    """
    return curves_with(scores, ())[0]


def curves_with(
    scores: pd.DataFrame, columns: Sequence[str]
) -> tuple[Curves, dict[str, Float[np.ndarray, "heads ckpts"]]]:
    """The curves of `curves_of`, and other columns of the same rows, heads by checkpoints as the score is.

    A column that the table lacks is all NaN.
    """
    mixer = _mixer(scores)
    has_score = scores.loc[:, "score"].notna().to_numpy()
    if not has_score.all():
        scores, mixer = scores.loc[has_score], mixer[has_score]
    checkpoints = in_order(scores)
    keys: list[Any] = [*(scores.loc[:, name] for name in _IDENTITY), pd.Series(mixer, scores.index, name="_mixer")]
    grouped = scores.groupby(keys, dropna=False, observed=True, sort=True)
    row = grouped.ngroup().to_numpy()
    column = _columns(checkpoints, scores)
    shape = grouped.ngroups, max(len(checkpoints), 1)

    def as_matrix(values: Any) -> Float[np.ndarray, "heads ckpts"]:
        matrix = np.full(shape, np.nan)
        matrix[row, column] = values
        return matrix

    known = {name for name in columns if name in scores.columns}
    others = {name: as_matrix(scores[name].to_numpy(np.float64) if name in known else np.nan) for name in columns}
    heads = grouped[["kind", "window"]].last().reset_index().drop(columns="_mixer")
    amount, unit = axis_of(checkpoints)
    score, se = as_matrix(scores.loc[:, "score"].to_numpy(np.float64)), as_matrix(_standard_error(scores))
    return Curves(heads, checkpoints, score, se, amount, unit), others


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The checkpoints of a table's rows, by name, in series order: stage, branch, step, step_total, tokens."""
    known = [name for name in ("stage", "branch", "step", "step_total", "tokens") if name in table.columns]
    checkpoints = table.drop_duplicates("ckpt").set_index("ckpt").loc[:, known]
    total = checkpoints.loc[:, "step_total"]
    if total.isna().any():
        return checkpoints
    return checkpoints.iloc[np.argsort(total.to_numpy(np.int64), kind="stable")]


def axis_of(checkpoints: pd.DataFrame) -> tuple[Float[np.ndarray, " ckpts"], AxisUnit]:
    """The training axis: the first of tokens, total steps, steps that all have and that never decreases."""
    measures: tuple[tuple[str, AxisUnit], ...] = (("tokens", "tokens"), ("step_total", "step"), ("step", "step"))
    for name, unit in measures:
        amount = checkpoints.loc[:, name].to_numpy(np.float64, na_value=np.nan)
        if len(amount) and not np.isnan(amount).any() and (np.diff(amount) >= 0).all():
            return amount, unit
    return np.full(max(len(checkpoints), 1), np.nan), ""


def logarithm(amount: Float[np.ndarray, " ckpts"]) -> Float[np.ndarray, " ckpts"]:
    """ln of tokens or steps; for 0 a finite number so low that no rise has begun."""
    with np.errstate(divide="ignore"):
        x = np.log(amount)
    lowest = x[np.isfinite(x)].min(initial=0.0)
    return np.where(np.isneginf(x), lowest - 1e4, x)


def _mixer(scores: pd.DataFrame) -> np.ndarray:
    """The kind of a head whose layer has two mixers, "" for others."""
    mixer = np.full(len(scores), "", dtype=object)
    kinds = scores.loc[:, ["layer", "kind"]].drop_duplicates()
    mixed = kinds.loc[kinds.loc[:, "layer"].duplicated(), "layer"]
    if mixed.empty:
        return mixer
    of_mixed = scores.loc[scores.loc[:, "layer"].isin(mixed), ["ckpt", "layer", "kind"]].drop_duplicates()
    parallel = of_mixed.loc[of_mixed.duplicated(["ckpt", "layer"]), "layer"]
    rows = scores.loc[:, "layer"].isin(parallel).to_numpy()
    mixer[rows] = scores.loc[rows, "kind"].astype(str).to_numpy()
    return mixer


def _columns(checkpoints: pd.DataFrame, scores: pd.DataFrame) -> np.ndarray:
    """The column of each row's checkpoint."""
    ckpt = scores.loc[:, "ckpt"]
    if isinstance(ckpt.dtype, pd.CategoricalDtype):
        return checkpoints.index.get_indexer(ckpt.cat.categories)[ckpt.cat.codes.to_numpy()]
    codes, names = pd.factorize(ckpt)
    return checkpoints.index.get_indexer(names)[codes]


def _standard_error(scores: pd.DataFrame) -> np.ndarray:
    """sd over sequences / sqrt of their number; NaN for fewer than two."""
    if not {"sd_seq", "n_seq"} <= set(scores.columns):
        return np.full(len(scores), np.nan)
    n = scores.loc[:, "n_seq"].to_numpy(np.float64)
    return np.where(n > 1, scores.loc[:, "sd_seq"].to_numpy(np.float64) / np.sqrt(np.maximum(n, 1)), np.nan)
