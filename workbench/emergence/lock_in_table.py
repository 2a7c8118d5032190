"""Lock-in, as a table and in a sentence: since when a model's heads are those of a later checkpoint.

lock_in(n) = rho(half a at n, half b at the reference) / rho(half a, half b at the reference): a and b are disjoint
halves of the probe's sequences, and the denominator is the probe's noise ceiling. Over all heads, a model whose layers
differ scores high however its heads are drawn. So each correlation is also taken with each layer's mean taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from workbench.emergence.lineages import parents_of
from workbench.emergence.probe_forms import refuse_two_forms
from workbench.emergence.rank_statistics import (
    FEWEST_HEADS,
    agreement,
    has_both,
    top_count,
    unit_ranks,
    within_layers,
)
from workbench.emergence.score_curves import curves_with
from workbench.heads import WorkbenchError

PERMUTATIONS = 199
LOCKED = 0.9  # of the noise ceiling
EARLY = 0.25  # of training
MOVED = 0.7  # of the noise ceiling
SIZE = 0.8  # the amplitude ratio, or its inverse, down to which heads keep their strength
_SIGNIFICANT = 0.05  # of p_within
# A ceiling this many standard errors of a chance correlation above 0 is one that can be divided by.
_CLEAR = 3.0


def lock_in(
    scores: pd.DataFrame,
    *,
    against: str = "last",
    k: int | None = None,
    parents: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Each checkpoint's head scores against those of a reference.

    Args:
        scores: rows of `Run.scores()` of one detector on one probe.
        against: "last": the last checkpoint of the same branch; "parent": what the stage or branch continues, which
            leaves only rows of those that continue something; or the name of a checkpoint.
        k: heads at the top; default a twentieth of them, at least one.
        parents: checkpoint -> the one it continues, where the series names it.
        seed: of the permutations.

    Returns:
        One row per checkpoint, in order: ckpt, stage, branch, step, step_total, tokens, reference, n_heads, k;
        rho, rho_within: Spearman's correlation with the reference, and with each layer's mean taken off;
        ceiling, ceiling_within: that of the reference's own two halves;
        lock_in, lock_in_within: the correlation across halves over the ceiling; NaN where that is not clear of 0, as
            then the probe itself does not tell heads apart;
        reliability_within: the ceiling of this checkpoint: low where its own scores are mostly noise;
        p_within: the share of shuffles of heads within their layers that agree as well as `rho_within`;
        jaccard, jaccard_chance: of the top k; amplitude: mean score of the reference's top k over theirs there.

    Raises:
        WorkbenchError: for several detectors or probes, one checkpoint only, no such reference, no stage or branch
            that continues another, or fewer than four heads with scores at both checkpoints throughout.
    """
    _check_single(scores)
    heads = _Matrices(scores)
    pairs = _pairs(heads.checkpoints, against, parents)
    rows = [_row(heads, ckpt, reference, k=k, seed=seed) for ckpt, reference in pairs]
    if all(row["n_heads"] < FEWEST_HEADS for row in rows):
        raise WorkbenchError(
            f"no two checkpoints share {FEWEST_HEADS} heads with scores; lock-in needs the same heads at both"
        )
    checkpoints = heads.checkpoints.loc[[ckpt for ckpt, _ in pairs]].reset_index()
    return pd.concat([checkpoints, pd.DataFrame(rows)], axis=1)


def lock_in_sentence(over_training: pd.DataFrame, since_parent: pd.DataFrame | None = None) -> str:
    """What the numbers support, in one sentence with a clause on training and one for each continuation.

    Args:
        over_training: `lock_in(..., against="last")`; only the branch of its last row counts.
        since_parent: `lock_in(..., against="parent")` where training was continued; the last row of each branch counts.
    """
    on_branch = over_training.loc[_equals(over_training.loc[:, "branch"], over_training["branch"].iloc[-1])]
    clauses = [_formed_clause(on_branch)]
    if since_parent is not None and len(since_parent):
        ends = since_parent.drop_duplicates(["stage", "branch"], keep="last")
        clauses += [_moved_clause(row) for row in ends.to_dict("records")]
    return "; ".join(clauses) + "."


def locked_since(table: pd.DataFrame, column: str = "lock_in_within") -> int:
    """The row from which the column never falls below `LOCKED` again; -1 where it does at the end, or is unknown."""
    is_locked = table.loc[:, column].to_numpy(np.float64) >= LOCKED
    stays_locked = np.logical_and.accumulate(is_locked[::-1])[::-1]
    return int(stays_locked.argmax()) if stays_locked.any() else -1


class _Matrices:
    """Scores and those of each half as matrices. A head is the same head on all branches."""

    def __init__(self, scores: pd.DataFrame) -> None:
        trunk = pd.Series(pd.NA, scores.index, dtype="str")
        curves, of_halves = curves_with(scores.assign(branch=trunk), ("half_a", "half_b"))
        self.checkpoints = curves.checkpoints.assign(branch=_branches(scores, curves.checkpoints))
        self.layer: Int[np.ndarray, " heads"] = curves.heads.loc[:, "layer"].to_numpy(np.int64)
        self.score = curves.score
        self.halves = tuple(np.ascontiguousarray(of_halves[name].T) for name in ("half_a", "half_b"))
        self.column = {str(name): i for i, name in enumerate(curves.checkpoints.index)}
        self._unit_ranks = lru_cache(maxsize=16)(self._ranked)  # a reference is ranked once

    def correlation(self, half: tuple[int, int], other: tuple[int, int]) -> Float[np.ndarray, "2"]:
        """Spearman's correlation, over all heads and within layers, of two (half, column)."""
        both = has_both(self.halves[half[0]][half[1]], self.halves[other[0]][other[1]])
        if both.sum() < FEWEST_HEADS:
            return np.full(2, np.nan)
        heads = both.tobytes()
        return np.einsum("kh,kh->k", self._unit_ranks(*half, heads), self._unit_ranks(*other, heads))

    def _ranked(self, half: int, column: int, heads: bytes) -> Float[np.ndarray, "2 heads"]:
        """Unit ranks of some heads' scores, and of the scores less their layer's mean."""
        rows = np.frombuffer(heads, dtype=bool)
        scores = self.halves[half][column, rows]
        return unit_ranks(np.stack([scores, within_layers(scores, self.layer[rows])], axis=1)).T


def _branches(scores: pd.DataFrame, checkpoints: pd.DataFrame) -> Any:
    first = scores.drop_duplicates("ckpt").set_index("ckpt").loc[:, "branch"]
    return first.astype("str").reindex(checkpoints.index.astype("str")).to_numpy()


def _check_single(scores: pd.DataFrame) -> None:
    pairs = scores.loc[:, ["detector", "probe"]].drop_duplicates()
    if len(pairs) > 1:
        named = ", ".join(sorted(f"{detector} on {probe}" for detector, probe in pairs.itertuples(index=False)))
        raise WorkbenchError(f"these are scores of {named}: lock-in is of one detector on one probe; pass probe=")
    refuse_two_forms(scores)
    n = scores.loc[scores["score"].notna(), "ckpt"].nunique()
    if n < 2:
        raise WorkbenchError(f"lock-in compares at least two checkpoints; there are scores of {n}")


def _pairs(checkpoints: pd.DataFrame, against: str, known: Mapping[str, str] | None) -> list[tuple[str, str]]:
    names = [str(name) for name in checkpoints.index]
    if against == "last":
        branches = checkpoints.loc[:, "branch"].astype("object").where(checkpoints["branch"].notna(), "")
        last = {branch: name for name, branch in zip(names, branches, strict=True)}
        return [(name, last[branch]) for name, branch in zip(names, branches, strict=True)]
    if against == "parent":
        parents = parents_of(checkpoints.reset_index(), known)
        if not any(parent in names for parent in parents.values()):
            raise WorkbenchError(
                "no stage or branch here continues another checkpoint that has scores; compare with against='last'"
            )
        return [(name, parents[name]) for name in names if parents.get(name) in names]
    if against not in names:
        raise WorkbenchError(f"checkpoint {against!r} has no scores here; there are scores of {', '.join(names)}")
    return [(name, against) for name in names]


def _row(
    heads: _Matrices,
    ckpt: str,
    reference: str,
    *,
    k: int | None,
    seed: int,
) -> dict[str, Any]:
    column, of_reference = heads.column[ckpt], heads.column[reference]
    sides = heads.score[:, column], heads.score[:, of_reference]
    whole = agreement(*sides, heads.layer, k=k, n_permutations=PERMUTATIONS, seed=seed)
    across = np.mean([heads.correlation((half, column), (1 - half, of_reference)) for half in (0, 1)], axis=0)
    ceiling = heads.correlation((0, of_reference), (1, of_reference))
    is_clear = ceiling > _CLEAR / np.sqrt(max(whole.n - 1, 1))
    locked = np.where(is_clear, across / np.where(is_clear, ceiling, 1), np.nan)
    return {
        "reference": reference,
        "n_heads": whole.n,
        "k": top_count(whole.n) if k is None else k,
        "rho": whole.rho,
        "rho_within": whole.rho_within,
        "ceiling": ceiling[0],
        "ceiling_within": ceiling[1],
        "lock_in": locked[0],
        "lock_in_within": locked[1],
        "reliability_within": heads.correlation((0, column), (1, column))[1],
        "p_within": whole.p_within,
        "jaccard": whole.jaccard,
        "jaccard_chance": whole.jaccard_chance,
        "amplitude": whole.amplitude,
    }


def _formed_clause(on_branch: pd.DataFrame) -> str:
    last = on_branch.iloc[-1]
    if len(on_branch) < 2:
        return f"{last['ckpt']} is the only checkpoint of its branch: nothing can be said about when heads formed"
    if np.isnan(last["lock_in_within"]):
        halves = f"{last['n_heads']} heads, of which two halves of the probe agree to {last['ceiling_within']:.2f}"
        return f"{halves} within layers, do not stand clear of chance: nothing can be said about single heads"
    row, over_all = locked_since(on_branch), locked_since(on_branch, "lock_in")
    since, share = _checkpoint_and_share(on_branch, row)
    if row in (-1, len(on_branch) - 1):
        formed = f"within layers heads reach {LOCKED:.0%} of the noise ceiling only at the last checkpoint"
        claim = "which does not support 'formed early'"
    else:
        formed = f"within layers heads stay at {LOCKED:.0%} of the noise ceiling or above from {since}"
        is_early = share is not None and share <= EARLY
        claim = f"which {'supports' if is_early else 'does not support'} 'formed early'"
        if share is None:
            claim = "of unknown share of training, so that 'formed early' cannot be judged"
        elif on_branch["p_within"].iloc[row] > _SIGNIFICANT:
            claim = f"but no better than heads shuffled within layers (p = {on_branch['p_within'].iloc[row]:.2f})"
    if 0 <= over_all < (row if row >= 0 else len(on_branch)):
        since_over_all, _ = _checkpoint_and_share(on_branch, over_all)
        claim += f" (over all heads from {since_over_all}: until then a difference between layers only)"
    return f"{formed}, {claim}"


def _moved_clause(row: dict[str, Any]) -> str:
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


def _checkpoint_and_share(on_branch: pd.DataFrame, row: int) -> tuple[str, float | None]:
    """A checkpoint in words, and the share of training that has passed by then."""
    ckpt = on_branch["ckpt"].iloc[row]
    for name in ("tokens", "step_total", "step"):
        amount = on_branch.loc[:, name].to_numpy(np.float64, na_value=np.nan)
        if not np.isnan(amount).any() and amount[-1] > 0:
            share = float(amount[row] / amount[-1])
            return f"{ckpt} on ({share:.0%} of {'tokens' if name == 'tokens' else 'steps'})", share
    return f"{ckpt} on", None


def _equals(values: pd.Series, value: Any) -> pd.Series:
    return values.isna() if pd.isna(value) else values == value
