"""The bootstrap over sequences: resampled means and their percentile intervals, for scores, curves and plans."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.emergence.thresholds import MIN_SEQUENCES

RESAMPLES = 1000
_LEVELS = (2.5, 97.5)
_FEW = 512  # sequences, whose draws are 4 MiB at most


def bootstrap(
    value: Float[np.ndarray, "n_seq ..."], counted: Bool[np.ndarray, "n_seq ..."], *, seed: int
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The 95 % percentile interval of the mean over the first axis; NaN where fewer than 5 entries are counted."""
    shape = value.shape[1:]
    flat, flags = value.reshape(len(value), -1), counted.reshape(len(value), -1)
    low, high = np.full(flat.shape[1], np.nan), np.full(flat.shape[1], np.nan)
    # Columns counted on the same sequences share their resamples, so that nearly always one product does them all.
    if (flags == flags[:, :1]).all():
        patterns, member = flags[:, :1], np.zeros(flags.shape[1], dtype=int)
    else:
        patterns, member = np.unique(flags, axis=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        columns = np.flatnonzero(member.reshape(-1) == p)
        sequences = np.flatnonzero(patterns[:, p])
        if len(sequences) >= MIN_SEQUENCES:
            means = resampled_means(flat[np.ix_(sequences, columns)], seed=seed)
            low[columns], high[columns] = percentile_interval(means)
    return low.reshape(shape), high.reshape(shape)


def resampled_means(values: Float[np.ndarray, "n_seq n"], *, seed: int) -> Float[np.ndarray, "resamples n"]:
    """Means over sequences of 1000 bootstrap resamples.

    The draws depend on `seed` and the number of sequences alone, so the means of two measurements of the same sequences
    can be subtracted, resample by resample, for the interval of their difference.
    """
    n = len(values)
    times_drawn = _drawn_before(seed, n) if n <= _FEW else _times_drawn(seed, n)
    return times_drawn @ values / n


def _times_drawn(seed: int, n: int) -> Float[np.ndarray, "resamples n"]:
    """How often each resample has each of n sequences."""
    draws: Int[np.ndarray, "r n"] = np.random.default_rng([seed, n]).integers(n, size=(RESAMPLES, n))
    codes = draws + n * np.arange(RESAMPLES)[:, None]
    return np.bincount(codes.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(np.float64)


@lru_cache(maxsize=16)
def _drawn_before(seed: int, n: int) -> Float[np.ndarray, "resamples n"]:
    """The same, drawn once: every detector and probe of a scan asks for a few of them."""
    times_drawn = _times_drawn(seed, n)
    times_drawn.flags.writeable = False
    return times_drawn


def percentile_interval(
    resampled: Float[np.ndarray, "resamples n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The ends of the 95 % percentile interval.

    Reference:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    low, high = np.percentile(resampled, _LEVELS, axis=0)
    return low, high
