"""A sharp change: the split of a curve into two levels that explains most of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int

from workbench.emergence.hysteresis import compact


@dataclass(frozen=True, slots=True)
class Breaks:
    """The best two levels of each curve, the second the higher; NaN and -1 where no split rises.

    `before` and `after` are the columns of the scored checkpoints that the change lies between.
    """

    level_before: Float[np.ndarray, " heads"]
    level_after: Float[np.ndarray, " heads"]
    before: Int[np.ndarray, " heads"]
    after: Int[np.ndarray, " heads"]
    sse: Float[np.ndarray, " heads"]

    def rows(self, some: Int[np.ndarray, " some"]) -> Breaks:
        """The fits of some curves."""
        return Breaks(*(getattr(self, f.name)[some] for f in fields(self)))

    def at(self, n_ckpts: int) -> Float[np.ndarray, "heads ckpts"]:
        """The two levels at each checkpoint."""
        is_after = np.arange(n_ckpts) >= self.after[:, None]
        return np.where(is_after, self.level_after[:, None], self.level_before[:, None])


def breaks_of(score: Float[np.ndarray, "heads ckpts"], *, falling: bool = False) -> Breaks:
    """The two-segment least-squares fit of every curve; NaN scores are gaps; `falling` admits falls too."""
    y, order, n = compact(score)
    rows = np.arange(len(y))
    mean = np.nansum(y, axis=1) / n
    centred = np.where(np.isnan(y), 0, y - mean[:, None])
    total = (centred**2).sum(1)
    sums = centred.cumsum(1)
    left = np.arange(1, y.shape[1] + 1)
    right = n[:, None] - left
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = sums**2 * (1 / left + 1 / right)
    gain[(right < 1) | ((sums > 0) & (not falling))] = -1
    at = gain.argmax(1)
    found = gain[rows, at] > 0
    low = mean + sums[rows, at] / left[at]
    high = mean - sums[rows, at] / np.maximum(n - left[at], 1)
    following = np.minimum(at + 1, y.shape[1] - 1)
    return Breaks(
        level_before=np.where(found, low, np.nan),
        level_after=np.where(found, high, np.nan),
        before=np.where(found, order[rows, at], -1),
        after=np.where(found, order[rows, following], -1),
        sse=np.where(found, np.maximum(total - gain[rows, at], 0), np.nan),
    )
