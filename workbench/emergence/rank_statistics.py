"""How far two sets of scores of the same heads agree: in rank, within layers, at the top, in size, beyond chance."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

FEWEST_HEADS = 4
_FLAT = 1e-9  # of the largest score: smaller differences are rounding


class Agreement(NamedTuple):
    """Of n heads that both have: Spearman's correlation over all heads and with each layer's mean taken off.

    `p_within`: how often heads shuffled within their layers agree at least so well with layers taken off.
    `jaccard`: of the top k, and `jaccard_chance` that of random choices; `amplitude`: the mean of one's scores over
    the other's on the other's top k. A correlation is 0 where one side has no differences.
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
    """Compare scores head by head; heads without both are left out, and below four there is nothing to say (NaN).

    Args:
        k: heads at the top; default a twentieth of them, at least one.
        n_permutations: of heads within layers for `p_within`; 0 gives NaN.
    """
    both = ~(np.isnan(one) | np.isnan(other))
    n = int(both.sum())
    if n < FEWEST_HEADS:
        return Agreement(n, *[float("nan")] * 6)
    one, other = one[both], other[both]
    _, layer = np.unique(layer[both], return_inverse=True)
    k = min(n, top_count(n) if k is None else k)
    within_one, within_other = within_layers(one, layer), within_layers(other, layer)
    tops = [set(top_rows(values, k)) for values in (one, other)]
    shared = k * k / n
    at_top = list(tops[1])
    size = float(other[at_top].mean())
    return Agreement(
        n=n,
        rho=spearman(one, other),
        rho_within=spearman(within_one, within_other),
        p_within=_p_within(within_one, within_other, layer, n_permutations, seed) if n_permutations else float("nan"),
        jaccard=len(tops[0] & tops[1]) / len(tops[0] | tops[1]),
        jaccard_chance=shared / (2 * k - shared),
        amplitude=float(one[at_top].mean()) / size if size else float("nan"),
    )


def spearman(one: Float[np.ndarray, " heads"], other: Float[np.ndarray, " heads"]) -> float:
    """The correlation of ranks, ties sharing theirs; 0 where one side is all ties."""
    a, b = (ranks(values) for values in (one, other))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0


def ranks(values: Float[np.ndarray, " heads"]) -> Float[np.ndarray, " heads"]:
    """Ranks around their mean, ties sharing theirs."""
    return _ranked(np.ascontiguousarray(values, dtype=np.float64).tobytes())


@lru_cache(maxsize=64)  # scores and their halves are ranked for several comparisons, a reference for all
def _ranked(values: bytes) -> Float[np.ndarray, " heads"]:
    _, place, count = np.unique(np.frombuffer(values), return_inverse=True, return_counts=True)
    shared = (np.cumsum(count) - (count - 1) / 2)[place]
    centred = shared - shared.mean()
    centred.setflags(write=False)
    return centred


def within_layers(values: Float[np.ndarray, " heads"], layer: Int[np.ndarray, " heads"]) -> Float[np.ndarray, " heads"]:
    """The scores less their layer's mean; what only rounding made differ becomes equal."""
    mean = np.bincount(layer, values) / np.bincount(layer)
    centred = values - mean[layer]
    grain = _FLAT * float(np.abs(values).max())
    return np.round(centred / grain) * grain if grain else centred


def top_count(n_heads: int) -> int:
    """A twentieth of the heads, at least one."""
    return max(1, round(n_heads / 20))


def top_rows(values: Float[np.ndarray, " heads"], k: int) -> list[int]:
    """The rows of the k highest, highest first, those without a score never."""
    order = np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")
    return [int(row) for row in order[:k] if not np.isnan(values[row])]


def _p_within(one: Any, other: Any, layer: Int[np.ndarray, " heads"], n: int, seed: int) -> float:
    """The share of shuffles of heads within their layers, this one included, that agree as well."""
    a, b = ranks(one), ranks(other)
    reached = int((_shuffled(b.tobytes(), layer.tobytes(), n, seed) @ a >= a @ b - 1e-9).sum())
    return (1 + reached) / (1 + n)


@lru_cache(maxsize=2)  # the checkpoints of a run have the same heads and, mostly, the same reference
def _shuffled(values: bytes, layer: bytes, n: int, seed: int) -> Float[np.ndarray, "shuffles heads"]:
    """The values with heads changing places within their layers only."""
    of, ranked = np.frombuffer(layer, dtype=np.int64), np.frombuffer(values)
    by_layer = np.argsort(of, kind="stable")
    keys = np.random.default_rng(seed).random((n, len(of))) + of[by_layer]
    shuffled = np.empty((n, len(of)))
    shuffled[:, by_layer] = ranked[by_layer[np.argsort(keys, axis=1)]]
    return shuffled
