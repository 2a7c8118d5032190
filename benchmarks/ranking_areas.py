"""Areas under keep-top-k curves from what every sequence lost at every k, and paired differences between rankings.

Two rankings of one model are judged on the same sequences, so that their difference is known far better than either
area: sequences are drawn again together, within each kind of question, the same ones for all models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

_DRAWS = 2000
Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one ranking of one model: `nats` of each held-out sequence with the first `counts` heads full."""

    counts: Float[np.ndarray, " n_counts"]
    nats: Float[np.ndarray, "n_counts n_seq"]

    @classmethod
    def of(cls, found: Found) -> Losses:
        counts = sorted(found["nats"], key=int)
        return cls(np.array([float(k) for k in counts]), np.array([found["nats"][k] for k in counts]))

    def recovered(self, weights: Float[np.ndarray, "n_draws n_seq"]) -> Float[np.ndarray, "n_counts n_draws"]:
        """Share of the loss gap that is back at each count, for each weighting of the sequences."""
        mean = self.nats @ weights.T / weights.sum(1)
        return (mean[0] - mean) / (mean[0] - mean[-1])

    def areas(
        self, weights: Float[np.ndarray, "n_draws n_seq"], up_to: float = np.inf
    ) -> Float[np.ndarray, " n_draws"]:
        """The mean of that share over the number of heads, from none to `up_to`."""
        few = self.counts <= up_to
        counts = self.counts[few]
        return np.trapezoid(self.recovered(weights)[few], counts, axis=0) / (counts[-1] - counts[0])


def all_alike(n_seq: int) -> Float[np.ndarray, "1 n_seq"]:
    """Every sequence once."""
    return np.ones((1, n_seq))


def of_kind(sizes: dict[str, int], kind: str) -> Float[np.ndarray, "1 n_seq"]:
    """The sequences of one kind, which lie one after the other in the order of `sizes`."""
    return np.repeat([float(name == kind) for name in sizes], list(sizes.values()))[None]


def drawn_again(sizes: dict[str, int], seed: int = 0) -> Float[np.ndarray, "n_draws n_seq"]:
    """How often each sequence is drawn, with replacement within its kind."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.multinomial(n, np.full(n, 1 / n), _DRAWS) for n in sizes.values()], 1).astype(float)


@dataclass(frozen=True, slots=True)
class Difference:
    """Of the areas of two rankings, the first less the second.

    `each`: one per model; `mean`, `sd` over models; `low`, `high`: 95 % of the mean over models when sequences are
    drawn again.
    """

    each: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.each))

    @property
    def sd(self) -> float:
        return float(np.std(self.each, ddof=1)) if len(self.each) > 1 else float("nan")

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def difference(
    first: Sequence[Losses], second: Sequence[Losses], sizes: dict[str, int], kind: str | None = None
) -> Difference:
    """Of the same models in the same order, on all sequences or on those of a kind."""
    once = all_alike(sum(sizes.values())) if kind is None else of_kind(sizes, kind)
    again = drawn_again(sizes) * once
    each = [float((a.areas(once) - b.areas(once))[0]) for a, b in zip(first, second, strict=True)]
    drawn = np.mean([a.areas(again) - b.areas(again) for a, b in zip(first, second, strict=True)], 0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(tuple(each), float(low), float(high))
