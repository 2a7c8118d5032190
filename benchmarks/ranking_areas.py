"""Areas under keep-top-k curves from the loss of every sequence at every k, and paired differences between rankings.

Two rankings of one model are measured on the same sequences, so their difference is more precise than either area.
Resampling draws the same sequences for all rankings and models, within each kind of question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

_DRAWS = 2000
Record = dict[str, Any]  # of one ranking of one model, as bench_rankings.py writes it


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one ranking of one model: `nats` of each held-out sequence with the first `counts` heads full."""

    counts: Float[np.ndarray, " n_counts"]
    nats: Float[np.ndarray, "n_counts n_seq"]

    @classmethod
    def of(cls, record: Record) -> Losses:
        counts = sorted(record["nats"], key=int)
        return cls(np.array([float(k) for k in counts]), np.array([record["nats"][k] for k in counts]))

    def recovered(self, weights: Float[np.ndarray, "n_draws n_seq"]) -> Float[np.ndarray, "n_counts n_draws"]:
        """Share of the loss gap that is recovered at each count, for each weighting of the sequences."""
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
    """Weights that select the sequences of one kind; kinds are in the order of `sizes`."""
    return np.repeat([float(name == kind) for name in sizes], list(sizes.values()))[None]


def drawn_again(sizes: dict[str, int], seed: int = 0) -> Float[np.ndarray, "n_draws n_seq"]:
    """How often each sequence is drawn in each resample, with replacement within its kind."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.multinomial(n, np.full(n, 1 / n), _DRAWS) for n in sizes.values()], 1).astype(float)


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of two rankings, the first less the second: of their areas, or of what is back at one count.

    `each`: one per model; `mean`, `sd` over models; `low`, `high`: the 95 % bootstrap interval of the mean over models,
    resampling sequences.
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
    first: Sequence[Losses],
    second: Sequence[Losses],
    sizes: dict[str, int],
    kind: str | None = None,
    count: float | None = None,
) -> Difference:
    """The difference for the same models in the same order, on all sequences or on those of a kind.

    `count`: of the shares that are back with so many heads, one of `Losses.counts`; None for areas.
    """
    once = all_alike(sum(sizes.values())) if kind is None else of_kind(sizes, kind)
    again = drawn_again(sizes) * once

    def of(losses: Losses, weights: Float[np.ndarray, "n_draws n_seq"]) -> Float[np.ndarray, " n_draws"]:
        return losses.areas(weights) if count is None else losses.recovered(weights)[losses.counts == count][0]

    each = [float((of(a, once) - of(b, once))[0]) for a, b in zip(first, second, strict=True)]
    drawn = np.mean([of(a, again) - of(b, again) for a, b in zip(first, second, strict=True)], 0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(tuple(each), float(low), float(high))
