"""Lock-in: since when a model's heads are those of a later checkpoint, against what the probe's noise allows.

Li(n) = rho(half a at n, half b at the reference) / rho(half a, half b at the reference), a and b disjoint halves of
the probe's sequences. Over all heads, a model whose layers differ scores high however its heads are drawn; so the same
with each layer's mean taken off stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from workbench.emergence.lineages import parents_of
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
        parents: which checkpoint each continues, where the series names it.
        seed: of the permutations.

    Returns:
        One row per checkpoint, in order: ckpt, stage, branch, step, step_total, tokens, reference, n_heads, k;
        rho, rho_within: Spearman's correlation with the reference, and with each layer's mean taken off;
        ceiling, ceiling_within: that of the reference's own two halves;
        lock_in, lock_in_within: the correlation across halves over the ceiling; NaN where that is not clear of 0, for
            then the probe itself does not tell heads apart;
        reliability_within: the ceiling of this checkpoint: low where its own scores are mostly noise;
        p_within: how often heads shuffled within their layers agree as well as `rho_within`;
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
    place = heads.checkpoints.loc[[ckpt for ckpt, _ in pairs]].reset_index()
    return pd.concat([place, pd.DataFrame(rows)], axis=1)


class _Matrices:
    """Scores, and those of each half: heads by checkpoints. A head is one on all branches."""

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
    n = scores.loc[scores["score"].notna(), "ckpt"].nunique()
    if n < 2:
        raise WorkbenchError(f"lock-in compares at least two checkpoints; there are scores of {n}")


def _pairs(checkpoints: pd.DataFrame, against: str, known: Mapping[str, str] | None) -> list[tuple[str, str]]:
    names = [str(name) for name in checkpoints.index]
    if against == "last":
        branch = checkpoints.loc[:, "branch"].astype("object").where(checkpoints["branch"].notna(), "")
        last = {of: name for name, of in zip(names, branch, strict=True)}
        return [(name, last[of]) for name, of in zip(names, branch, strict=True)]
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
    here, there, layer = heads.column[ckpt], heads.column[reference], heads.layer
    found = agreement(heads.score[:, here], heads.score[:, there], layer, k=k, n_permutations=PERMUTATIONS, seed=seed)
    across = np.mean([heads.correlation((half, here), (1 - half, there)) for half in (0, 1)], axis=0)
    ceiling = heads.correlation((0, there), (1, there))
    clear = ceiling > _CLEAR / np.sqrt(max(found.n - 1, 1))
    over = np.where(clear, across / np.where(clear, ceiling, 1), np.nan)
    return {
        "reference": reference,
        "n_heads": found.n,
        "k": top_count(found.n) if k is None else k,
        "rho": found.rho,
        "rho_within": found.rho_within,
        "ceiling": ceiling[0],
        "ceiling_within": ceiling[1],
        "lock_in": over[0],
        "lock_in_within": over[1],
        "reliability_within": heads.correlation((0, here), (1, here))[1],
        "p_within": found.p_within,
        "jaccard": found.jaccard,
        "jaccard_chance": found.jaccard_chance,
        "amplitude": found.amplitude,
    }
