"""Confidence intervals of onsets: the parametric bootstrap of a fit, with the error of each score over sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from workbench.emergence.logistic_fit import Limits, Logistics, limits, partials, refine
from workbench.emergence.onset_definitions import Breaks, breaks_of

DRAWS = 200
_LEVELS = (0.025, 0.975)
_STEPS = 4  # of each refit: a draw starts at the fit, which is close
_CURVES = 8
# Ends then differ from refits' by 1 to 2 % of half the interval (7 to 11 in 5 of 100); chance in 200 draws is 10 %.
_STRAIGHT = 0.1
_SINGULAR = 1e8
_BIN, _FLAT = 0.4, 6.0


def noise_of(
    residual: Float[np.ndarray, "heads ckpts"], se: Float[np.ndarray, "heads ckpts"], n_parameters: int
) -> Float[np.ndarray, "heads ckpts"]:
    """The standard error to draw with: `se`, enlarged where the residuals are larger than it explains.

    Where `se` is unknown or 0 for some score of a head, the residuals give the error of all of them.
    """
    has_score = np.invert(np.isnan(residual))
    freedom = np.maximum(has_score.sum(1) - n_parameters, 1)
    has_error = np.asarray(np.all(~has_score | (se > 0), axis=1))
    of_residuals = np.sqrt(np.nansum(residual**2, axis=1) / freedom)
    ratio = np.divide(residual, se, out=np.zeros_like(residual), where=has_score & has_error[:, None])
    excess = np.maximum(np.sqrt((ratio**2).sum(1) / freedom), 1)
    return np.where(has_error[:, None], se * excess[:, None], of_residuals[:, None])


def logistic_interval(
    x: Float[np.ndarray, " ckpts"],
    score: Float[np.ndarray, "heads ckpts"],
    fit: Logistics,
    se: Float[np.ndarray, "heads ckpts"],
    *,
    seed: int = 0,
) -> Float[np.ndarray, "2 heads"]:
    """The 95 % interval of the middle, in units of x: quantiles over refits of the fitted curve with new noise.

    All curves draw the same numbers, scaled by their own errors.
    """
    if not len(score):
        return np.empty((2, 0))
    points = _binned(x, score, noise_of(score - fit.values(x), se, 4), fit)
    expected = np.nan_to_num(fit.values(points.x))
    drawn = np.random.default_rng(seed).standard_normal((DRAWS, points.x.shape[1]), dtype=np.float32)
    start = np.stack([fit.middle, fit.width], axis=1)
    interval, is_straight = _straight_interval(points, drawn, fit, limits(x))
    bent = np.flatnonzero(~is_straight)
    for i in range(0, len(bent), _CURVES):
        some = bent[i : i + _CURVES]
        redrawn = expected[some, None].astype(np.float32) + points.sigma[some, None].astype(np.float32) * drawn
        n = len(redrawn)
        positions, weight, starts = (
            np.repeat(values[some], DRAWS, axis=0) for values in (points.x, points.weight.astype(np.float32), start)
        )
        refitted = refine(
            positions, redrawn.reshape(n * DRAWS, -1), weight, start=starts.T, bounds=limits(x), most=_STEPS
        )
        interval[:, some] = np.quantile(refitted[2].reshape(n, DRAWS), _LEVELS, axis=1)
    return interval


@dataclass(frozen=True, slots=True)
class _Points:
    """The points of each curve: their x, how many scores each stands for, and its standard error."""

    x: Float[np.ndarray, "heads points"]
    weight: Float[np.ndarray, "heads points"]
    sigma: Float[np.ndarray, "heads points"]


def _straight_interval(
    points: _Points, drawn: Float[np.ndarray, "draws points"], fit: Logistics, bounds: Limits
) -> tuple[Float[np.ndarray, "2 heads"], Bool[np.ndarray, " heads"]]:
    """The interval where the fit moves in proportion to the noise, and for which heads that is so.

    Around the fitted curve a refit's parameters are linear in small noise, so that each draw is one product instead
    of a descent. Small: the errors of middle and width stay below `_STRAIGHT` widths, away from the limits.
    """
    slopes = partials(points.x, fit)
    weighted = slopes * points.weight[:, None]
    normal = np.matmul(weighted, slopes.transpose(0, 2, 1))
    size = np.sqrt(np.maximum(np.einsum("hii->hi", normal), 1e-300))
    scaled = normal / size[:, :, None] / size[:, None]
    is_known = np.linalg.cond(scaled) < _SINGULAR
    scaled[~is_known] = np.eye(normal.shape[1])
    pull = np.linalg.solve(scaled, weighted / size[:, :, None])[:, 2:] / size[:, 2:, None] * points.sigma[:, None]
    error = np.minimum(np.sqrt((pull**2).sum(2)).max(1), 1)  # of middle in widths, and of ln width
    reach = 5 * error * fit.width
    is_inside = (fit.middle - reach > bounds.first) & (fit.middle + reach < bounds.last)
    is_inside &= (fit.width * np.exp(-5 * error) > bounds.narrowest) & (fit.width * np.exp(5 * error) < bounds.widest)
    moves = pull[:, 0].astype(np.float32) @ drawn.T
    return fit.middle + fit.width * np.quantile(moves, _LEVELS, axis=1), is_known & is_inside & (error < _STRAIGHT)


def break_interval(
    score: Float[np.ndarray, "heads ckpts"], fit: Breaks, se: Float[np.ndarray, "heads ckpts"], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The columns between which the change lies in 95 % of redraws: quantiles of its last before and first after."""
    expected = fit.levels(score.shape[1])
    sigma = noise_of(score - expected, se, 3)
    expected = np.where(np.isnan(score), np.nan, expected)
    drawn = np.random.default_rng(seed).standard_normal((DRAWS, score.shape[1]))
    first, last = fit.before.copy(), fit.after.copy()
    for row in range(len(score)):
        refitted = breaks_of(expected[row] + sigma[row] * drawn)
        has_break = refitted.before >= 0
        if has_break.any():
            first[row] = np.quantile(refitted.before[has_break], _LEVELS[0], method="lower")
            last[row] = np.quantile(refitted.after[has_break], _LEVELS[1], method="higher")
    return first, last


def _binned(x: Any, score: Any, sigma: Any, fit: Logistics) -> _Points:
    """The points of each curve, those close together on its own scale as one.

    Within `_BIN` widths the rise is straight, and beyond `_FLAT` widths from its middle it is flat: long series
    need not be refitted point by point.
    """
    has_score = np.invert(np.isnan(score))
    if len(x) <= 2 * _FLAT / _BIN:
        return _Points(np.broadcast_to(x, score.shape), has_score.astype(np.float64), np.where(has_score, sigma, 0))
    z = np.clip((x - fit.middle[:, None]) / fit.width[:, None], -_FLAT, _FLAT)
    bins = int(2 * _FLAT / _BIN) + 1
    bin_index = ((z + _FLAT) / _BIN).astype(np.int64) + bins * np.arange(len(z))[:, None]

    def summed(values: Any) -> Any:
        return np.bincount(bin_index[has_score], values[has_score], bins * len(z)).reshape(len(z), bins)

    n = summed(np.ones_like(z))
    full = np.maximum(n, 1)
    positions = fit.middle[:, None] + fit.width[:, None] * summed(z) / full
    return _Points(positions, n, np.sqrt(summed(sigma**2)) / full)
