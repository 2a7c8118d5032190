"""Rank statistics of head scores: Spearman's correlation over all heads and within layers, and the top heads.

Spearman's correlation leaves out pairs with a NaN and is NaN where one side is constant, as `scipy.stats.spearmanr` is.
Ranks come from pandas, which is as fast as `scipy.stats.rankdata`; the import of `scipy.stats` takes 0.6 s.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from workbench.emergence.probe_forms import refuse_two_forms
from workbench.heads import WorkbenchError

FEWEST_HEADS = 4
_FLAT = 1e-9  # of the largest score: smaller differences are rounding


class Agreement(NamedTuple):
    """How far the scores of n heads agree: Spearman's correlation over all heads, and less each layer's mean.

    `p_within`: the share of shuffles of heads within their layers that agree as well as `rho_within`.
    `jaccard`: of the top k. `jaccard_chance`: that of random choices. `amplitude`: the mean of one's scores over the
    other's on the other's top k. A correlation is NaN where one side is constant.
    """

    n: int
    rho: float
    rho_within: float
    p_within: float
    jaccard: float
    jaccard_chance: float
    amplitude: float


def agreement(
    one: Float[np.ndarray, " heads"],
    other: Float[np.ndarray, " heads"],
    layer: Int[np.ndarray, " heads"],
    *,
    k: int | None = None,
    n_permutations: int = 0,
    seed: int = 0,
) -> Agreement:
    """Compare scores head by head. Heads without both are left out; below four heads all is NaN.

    Args:
        k: heads at the top; default a twentieth of them, at least one.
        n_permutations: of heads within layers for `p_within`; 0 gives NaN.
    """
    both = has_both(one, other)
    n = int(both.sum())
    if n < FEWEST_HEADS:
        return Agreement(n, *[float("nan")] * 6)
    one, other, layer = one[both], other[both], layer[both]
    k = min(n, top_count(n) if k is None else k)
    within_one, within_other = within_layers(one, layer), within_layers(other, layer)
    top, top_of_other = top_rows(one, k), top_rows(other, k)
    n_shared = len(set(top) & set(top_of_other))
    expected = k * k / n
    size = float(other[top_of_other].mean())
    return Agreement(
        n=n,
        rho=_correlation(one, other),
        rho_within=_correlation(within_one, within_other),
        p_within=_p_within(within_one, within_other, layer, n=n_permutations, seed=seed),
        jaccard=n_shared / (2 * k - n_shared),
        jaccard_chance=expected / (2 * k - expected),
        amplitude=float(one[top_of_other].mean()) / size if size else float("nan"),
    )


def chosen_at(
    scores: pd.DataFrame, ckpt: str, *, k: int | None = None, share: float | None = None, least: float | None = None
) -> pd.DataFrame:
    """The heads with the highest scores at one checkpoint, best first: layer, head, kv_head, kind, score.

    Args:
        scores: rows of `Run.scores(detector=..., probe=...)`: one detector on one probe.
        ckpt: the name of the checkpoint.
        k, share: how many heads, or what share of those that have a score (at least one); one of the two.
        least: leave out heads below this score, so that there may be fewer.

    Raises:
        WorkbenchError: if there is no such checkpoint, several detectors or probes, or not one of `k` and `share`.
    """
    if (k is None) == (share is None):
        raise WorkbenchError(f"k is {k} and share is {share}; give one of them")
    if (k is not None and k < 1) or (share is not None and not 0 < share <= 1):
        raise WorkbenchError(f"k is {k}, share is {share}; expected k of at least 1, or a share above 0 up to 1")
    pairs = scores.loc[:, ["detector", "probe"]].drop_duplicates()
    if len(pairs) > 1:
        named = ", ".join(f"{detector} on {probe}" for detector, probe in pairs.itertuples(index=False))
        raise WorkbenchError(f"these are scores of {named}: choose by one detector on one probe")
    refuse_two_forms(scores.loc[scores["ckpt"] == ckpt])
    rows = scores.loc[(scores["ckpt"] == ckpt) & scores["score"].notna()]
    if rows.empty:
        known = ", ".join(map(str, scores.loc[:, "ckpt"].unique())) or "none"
        raise WorkbenchError(f"checkpoint {ckpt!r} has no scores here; there are scores of {known}")
    values = rows.loc[:, "score"].to_numpy(np.float64)
    count = k if k is not None else max(1, round((share or 0) * len(values)))
    heads = rows.iloc[top_rows(values, count)].loc[:, ["layer", "head", "kv_head", "kind", "score"]]
    if least is not None:
        heads = heads.loc[heads["score"] >= least]
    return heads.reset_index(drop=True)


def spearman(one: Float[np.ndarray, " heads"], other: Float[np.ndarray, " heads"]) -> float:
    """Spearman's correlation of two vectors."""
    both = has_both(one, other)
    return _correlation(one[both], other[both])


def spearman_within(
    one: Float[np.ndarray, " heads"], other: Float[np.ndarray, " heads"], layer: Int[np.ndarray, " heads"]
) -> float:
    """Spearman's correlation of two vectors, each less the mean of its layer over the heads that have both."""
    both = has_both(one, other)
    one, other, layer = one[both], other[both], layer[both]
    return _correlation(within_layers(one, layer), within_layers(other, layer))


def spearman_matrix(
    one: Float[np.ndarray, "heads a"],
    other: Float[np.ndarray, "heads b"],
    layer: Int[np.ndarray, " heads"] | None = None,
) -> Float[np.ndarray, "a b"]:
    """`spearman` of every column of one matrix with every column of the other; with layers, `spearman_within`."""
    rho = np.full((one.shape[1], other.shape[1]), np.nan)
    groups = _columns_by_heads(one)
    groups_of_other = groups if other is one else _columns_by_heads(other)
    for columns, has_one in groups:  # mostly one group: then all is one matrix product
        for columns_of_other, has_other in groups_of_other:
            both = has_one & has_other
            if not both.any():
                continue
            shared_layer = None if layer is None else layer[both]
            unit = unit_ranks(one[np.ix_(both, columns)], shared_layer)
            is_same = other is one and columns is columns_of_other
            unit_of_other = unit if is_same else unit_ranks(other[np.ix_(both, columns_of_other)], shared_layer)
            rho[np.ix_(columns, columns_of_other)] = unit.T @ unit_of_other
    return rho


def unit_ranks(
    scores: Float[np.ndarray, "heads columns"], layer: Int[np.ndarray, " heads"] | None = None
) -> Float[np.ndarray, "heads columns"]:
    """Ranks of each column without NaN, centred and of length one: Spearman's correlation is the product of two.

    With layers, of the scores less their layer's mean. NaN where a column is constant.
    """
    if layer is not None:
        scores = np.stack([within_layers(column, layer) for column in scores.T], axis=1)
    ranks = pd.DataFrame(scores).rank(method="average").to_numpy()
    centred = ranks - ranks.mean(0)
    length = np.linalg.norm(centred, axis=0)
    return centred / np.where(length > 0, length, np.nan)


def has_both(one: Float[np.ndarray, " heads"], other: Float[np.ndarray, " heads"]) -> Bool[np.ndarray, " heads"]:
    """Which heads have a score in both vectors."""
    return ~(np.isnan(one) | np.isnan(other))


def within_layers(values: Float[np.ndarray, " heads"], layer: Int[np.ndarray, " heads"]) -> Float[np.ndarray, " heads"]:
    """The scores less their layer's mean. Values that differ by rounding alone become equal."""
    if not len(values):
        return values
    mean = np.bincount(layer, values) / np.maximum(np.bincount(layer), 1)
    centred = values - mean[layer]
    grain = _FLAT * float(np.abs(values).max())
    return np.round(centred / grain) * grain if grain else centred


def top_count(n_heads: int) -> int:
    """A twentieth of the heads, at least one."""
    return max(1, round(n_heads / 20))


def top_rows(values: Float[np.ndarray, " heads"], k: int) -> list[int]:
    """The rows of the k highest scores, highest first; fewer where fewer heads have a score."""
    scored = np.flatnonzero(~np.isnan(values))
    if 0 < k < len(scored):  # sort only those that reach the k-th highest
        n_below = len(scored) - k
        scored = scored[values[scored] >= np.partition(values[scored], n_below)[n_below]]
    return scored[np.argsort(-values[scored], kind="stable")][:k].tolist()


def _correlation(one: Float[np.ndarray, " heads"], other: Float[np.ndarray, " heads"]) -> float:
    """Spearman's correlation of two vectors without NaN."""
    a, b = _centred_ranks(one), _centred_ranks(other)
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else float("nan")


def _centred_ranks(values: Float[np.ndarray, " heads"]) -> Float[np.ndarray, " heads"]:
    """Ranks less their mean; ties share the mean of their ranks."""
    return _cached_ranks(np.ascontiguousarray(values, dtype=np.float64).tobytes())


@lru_cache(maxsize=64)  # scores and their halves are ranked for several comparisons, a reference for all
def _cached_ranks(values: bytes) -> Float[np.ndarray, " heads"]:
    ranks = pd.Series(np.frombuffer(values)).rank(method="average").to_numpy()
    centred = ranks - ranks.mean() if len(ranks) else ranks
    centred.setflags(write=False)
    return centred


def _columns_by_heads(scores: Float[np.ndarray, "heads columns"]) -> list[tuple[Any, Bool[np.ndarray, " heads"]]]:
    """Columns grouped by the heads that they have, with those heads."""
    patterns, group = np.unique(~np.isnan(scores), axis=1, return_inverse=True)
    return [(np.flatnonzero(group.ravel() == i), patterns[:, i]) for i in range(patterns.shape[1])]


def _p_within(one: Any, other: Any, layer: Int[np.ndarray, " heads"], *, n: int, seed: int) -> float:
    """The share of n shuffles within layers, and of the scores themselves, that agree as well; NaN without shuffles."""
    if not n:
        return float("nan")
    a, b = _centred_ranks(one), _centred_ranks(other)
    reached = int((_shuffled(b.tobytes(), layer.tobytes(), n, seed) @ a >= a @ b - 1e-9).sum())
    return (1 + reached) / (1 + n)


@lru_cache(maxsize=2)  # the checkpoints of a run have the same heads and, mostly, the same reference
def _shuffled(values: bytes, layer: bytes, n: int, seed: int) -> Float[np.ndarray, "shuffles heads"]:
    """The values, shuffled within layers n times."""
    layers, ranked = np.frombuffer(layer, dtype=np.int64), np.frombuffer(values)
    by_layer = np.argsort(layers, kind="stable")
    keys = np.random.default_rng(seed).random((n, len(layers))) + layers[by_layer]
    shuffled = np.empty((n, len(layers)))
    shuffled[:, by_layer] = ranked[by_layer[np.argsort(keys, axis=1)]]
    return shuffled
