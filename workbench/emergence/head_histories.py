"""Histories of heads: never there, there at first, emerged or lost; when, how fast; and who takes a lost role over.

Definitions and sources: docs/emergence.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from workbench.emergence.logistic_fit import TEN_TO_NINETY, Logistics, fit_logistic
from workbench.emergence.onset_definitions import (
    LOWER,
    Breaks,
    Crossings,
    breaks_of,
    crossings_of,
    half_rises,
    values_at,
)
from workbench.emergence.onset_intervals import break_interval, logistic_interval
from workbench.emergence.score_curves import HEAD, Curves, curves_of, logarithm

VERDICTS = ("at_first", "emerged", "transient", "unconfirmed", "never")
TIE = 2.0  # of BIC: "not worth more than a bare mention" in Kass and Raftery 1995
# n ln(variance / residual variance) that noise reaches in 2 to 5 of 1,000 curves, from 4 to 150 checkpoints
_EVIDENCE, _BREAK_FEW, _LOGISTIC_FEW = 18.0, 24.0, 72.0
_FEWEST = 6  # scores of which a clean rise passes these thresholds
_CLIMBING = 2.58  # standard deviations of Kendall's sum, which noise exceeds in 5 of 1,000 curves
_TINY = 1e-12  # no score is known to better than its square root
_CONTEXT = ["branch", "detector", "version", "probe", "probe_digest"]


def trace(scores: pd.DataFrame, *, min_score: float = 0.1, least: float = 0.2, seed: int = 0) -> pd.DataFrame:
    """The history of every head: the half-rise onset, the hysteresis crossing, two fits, and the verdict of them all.

    Lineages are those of `onsets`.

    Args:
        scores: rows of `Run.scores()`; `sd_seq` and `n_seq` give the errors, residuals where they are missing.
        min_score: of the half-rise onset.
        least: the lowest score that can count as "there".
        seed: of the bootstrap.

    Returns:
        The table of `onsets`, and for each lineage
        verdict: "at_first" (there at the first checkpoint), "emerged", "transient" (emerged, and below the lower mark
            at the end), "unconfirmed" (low at first, and there later, but of too few checkpoints to confirm when it
            came), "never".
        floor, plateau, high: the levels of the hysteresis.
        crossing_ckpt, crossing_step, crossing_tokens; before_ckpt: the crossing and the scored checkpoint before it.
        unit: of the next, "tokens" or "step"; "" where neither is known, and they are NaN.
        n50, n50_lo, n50_hi, method: half of the rise, by the better fit ("logistic" or "break"), with its 95 %
            interval; only for "emerged" and "transient".
        is_resolved: at least two scored checkpoints lie between 10 and 90 % of the rise; if not, the interval holds
            the checkpoints on either side of its middle.
        fit_floor, fit_amplitude, fit_n50, fit_width, fit_risen, fit_r2, fit_bic: the logistic, of a head that is lost
            up to where it was last there; the width from 10 to 90 % in factors of e, and the share of the rise that is
            over at the last checkpoint.
        break_floor, break_amplitude, break_from, break_to, break_r2, break_bic: the two-level fit.
        flat_bic: of a constant.
    """
    curves = curves_of(scores)
    x = logarithm(curves.amount)
    crossings = crossings_of(curves.score, least=least)
    is_lost = are_lost(curves.score, crossings)
    rising = _until_lost(curves.score, crossings, is_lost)
    fits = _Fits(rising, fit_logistic(x, rising), breaks_of(rising))
    verdict = _verdicts(curves.score, crossings, fits, is_lost=is_lost, least=least)
    moved = np.isin(verdict, ("emerged", "transient"))
    onset = _onsets(replace(curves, score=rising), x, fits, moved, seed=seed)
    amount = np.append(curves.amount, np.nan)  # -1 is NaN
    names, logistic, broken = curves.checkpoints.index.to_series(), fits.logistic, fits.broken
    return half_rises(curves, min_score=min_score).assign(
        verdict=verdict,
        floor=crossings.floor,
        plateau=crossings.plateau,
        high=crossings.high,
        crossing_ckpt=values_at(names, crossings.column),
        crossing_step=values_at(curves.checkpoints.loc[:, "step"], crossings.column),
        crossing_tokens=values_at(curves.checkpoints.loc[:, "tokens"], crossings.column),
        before_ckpt=values_at(names, crossings.before),
        unit=curves.unit,
        **onset,
        fit_floor=logistic.floor,
        fit_amplitude=logistic.amplitude,
        fit_n50=np.exp(logistic.middle),
        fit_width=TEN_TO_NINETY * logistic.width,
        fit_risen=1 / (1 + np.exp(-np.clip((x[-1] - logistic.middle) / logistic.width, -80, 80))),
        fit_r2=fits.r2(logistic.sse),
        fit_bic=fits.logistic_bic,
        break_floor=broken.level_before,
        break_amplitude=broken.level_after - broken.level_before,
        break_from=amount[broken.before],
        break_to=amount[broken.after],
        break_r2=fits.r2(broken.sse),
        break_bic=fits.break_bic,
        flat_bic=fits.flat_bic,
    )


def handovers(scores: pd.DataFrame, *, least: float = 0.2) -> pd.DataFrame:
    """For each head that is lost, the head whose rise mirrors its fall best.

    A head is lost if it crossed its high mark and ends below three quarters of it, by more than noise. From its peak
    on, a perfect hand-over keeps the sum of the two scores constant.

    Returns:
        One row per lost head: its lineage, peak_ckpt, fall (peak - final);
        to_layer, to_head, to_kv_head, to_kind, to_rise: the head of the same branch, detector and probe that explains
            most, and its rise over the same checkpoints; missing where none rises;
        explained: 1 - sum of squared changes of the two scores together / of the fall alone; 1 for a perfect one;
        class_sum_ratio: the sum of all heads' scores at the end over that at the peak: about 1 where the role only
            changes hands, below where it is lost to the model.

    Many heads move in training: a mirrored rise is a lead for an intervention, not a proof.
    """
    curves = curves_of(scores)
    crossings = crossings_of(curves.score, least=least)
    is_lost = are_lost(curves.score, crossings)
    context = curves.heads.groupby(_CONTEXT, dropna=False, observed=True, sort=False).ngroup().to_numpy()
    rows = [
        _handover(curves.score, np.flatnonzero(context == context[row]), int(row)) for row in np.flatnonzero(is_lost)
    ]
    matches = pd.DataFrame(rows, columns=["peak_column", "fall", "to", "to_rise", "explained", "class_sum_ratio"])
    takers = curves.heads.loc[:, list(HEAD)].add_prefix("to_").reset_index(drop=True)
    takers = takers.reindex(matches.loc[:, "to"].astype("Int64").fillna(-1).astype("int64")).reset_index(drop=True)
    peak = curves.checkpoints.index[matches.loc[:, "peak_column"].astype("int64")] if len(matches) else []
    lost = curves.heads.loc[is_lost].reset_index(drop=True).assign(peak_ckpt=peak, fall=matches["fall"])
    return pd.concat([lost, takers, matches.loc[:, ["to_rise", "explained", "class_sum_ratio"]]], axis=1)


class _Fits:
    """Both fits of every curve and their weights against each other and against a constant."""

    def __init__(self, score: Float[np.ndarray, "heads ckpts"], logistic: Logistics, broken: Breaks) -> None:
        self.logistic, self.broken = logistic, broken
        self.n, self._total = _spread(score)
        self.flat_bic = bic(self._total, self.n, 2)
        self.logistic_bic = bic(logistic.sse, self.n, 5)
        self.break_bic = bic(broken.sse, self.n, 4)

    @property
    def is_a_rise(self) -> Bool[np.ndarray, " heads"]:
        """Whether either fit explains more than it would of noise."""
        of_break = is_explained(self._total, self.broken.sse, self.n, few=_BREAK_FEW)
        return of_break | (is_explained(self._total, self.logistic.sse, self.n) & (self.logistic.amplitude > 0))

    @property
    def is_logistic(self) -> Bool[np.ndarray, " heads"]:
        """Whether the logistic is the better one, or tied."""
        better = self.logistic_bic <= self.break_bic + TIE
        return (self.logistic.amplitude > 0) & (better | np.isnan(self.break_bic))

    def r2(self, sse: Float[np.ndarray, " heads"]) -> Float[np.ndarray, " heads"]:
        """The share of the variance that a fit explains; NaN for a constant curve."""
        return np.where(self._total > 0, 1 - sse / np.where(self._total > 0, self._total, 1), np.nan)


def is_explained(sse: Any, less: Any, n: Any, *, few: float | int = _LOGISTIC_FEW) -> Any:
    """Whether residuals fall by more, from one fit to a richer one, than they do for noise; few points need more."""
    with np.errstate(invalid="ignore"):
        return bic(sse, n, 0) - bic(less, n, 0) >= _EVIDENCE + few / np.maximum(n, 1)


def bic(sse: Any, n: Any, k: int) -> Any:
    """n ln(variance of the residuals) + k ln n, the variance itself counted among the k parameters."""
    n = np.maximum(n, 1)
    return n * np.log(np.maximum(sse / n, _TINY)) + k * np.log(n)


def _spread(score: Float[np.ndarray, "heads ckpts"]) -> tuple[Any, Any]:
    """How many scores each curve has, and their squared distance from their mean."""
    n = (~np.isnan(score)).sum(1)
    mean = np.nansum(score, axis=1) / np.maximum(n, 1)
    return n, np.nansum((score - mean[:, None]) ** 2, axis=1)


def _falls(score: Float[np.ndarray, "heads ckpts"]) -> Bool[np.ndarray, " heads"]:
    """Whether a second, lower level explains more than it would of noise."""
    (n, total), broken = _spread(score), breaks_of(score, falling=True)
    is_lower = broken.level_after < broken.level_before
    return is_lower & is_explained(total, broken.sse, n, few=_BREAK_FEW)


def are_lost(score: Float[np.ndarray, "heads ckpts"], crossings: Crossings) -> Bool[np.ndarray, " heads"]:
    """Heads that crossed their high mark, end below the lower one, and fall by more than noise after the crossing."""
    is_low = (crossings.column >= 0) & (crossings.final < LOWER * crossings.high)
    since = np.where(np.arange(score.shape[1]) >= crossings.column[:, None], score, np.nan)
    return is_low & _falls(since)


def _until_lost(
    score: Float[np.ndarray, "heads ckpts"], crossings: Crossings, is_lost: Bool[np.ndarray, " heads"]
) -> Float[np.ndarray, "heads ckpts"]:
    """The scores, those of lost heads up to the last at which they are there: a rise has no fall."""
    with np.errstate(invalid="ignore"):
        is_there = score >= LOWER * crossings.high[:, None]
    last = score.shape[1] - 1 - is_there[:, ::-1].argmax(1)
    return np.where(is_lost[:, None] & (np.arange(score.shape[1]) > last[:, None]), np.nan, score)


def _verdicts(
    score: Float[np.ndarray, "heads ckpts"],
    crossings: Crossings,
    fits: _Fits,
    *,
    is_lost: Bool[np.ndarray, " heads"],
    least: float,
) -> np.ndarray:
    is_low_first = crossings.first < np.maximum(least, crossings.plateau / 2)
    has_risen = fits.is_a_rise & is_low_first & (crossings.before >= 0)
    is_high = (np.nanmedian(score, axis=1) >= least) & ~(is_low_first & _may_rise(score))
    was_high = _falls(score) & ~is_low_first
    was_high_first = np.where(fits.is_a_rise, (crossings.column >= 0) & ~is_low_first, is_high | was_high)
    is_high_later = (np.nanmedian(score, axis=1) >= least) & ~was_high_first
    unconfirmed = np.where(fits.is_a_rise, crossings.unconfirmed, is_high_later)
    return np.select(
        [has_risen & is_lost, has_risen, was_high_first, unconfirmed],
        ["transient", "emerged", "at_first", "unconfirmed"],
        "never",
    ).astype(object)


def _may_rise(score: Float[np.ndarray, "heads ckpts"]) -> Bool[np.ndarray, " heads"]:
    """Whether the scores are too few to show a rise, or climb more often than those of noise do (Mann and Kendall)."""
    n = (~np.isnan(score)).sum(1)
    climbs = np.zeros(len(score))
    for column in range(score.shape[1] - 1):
        climbs += np.nansum(np.sign(score[:, column + 1 :] - score[:, column : column + 1]), axis=1)
    spread = np.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return (n < _FEWEST) | (climbs > _CLIMBING * spread)


def _onsets(curves: Curves, x: Any, fits: _Fits, moved: Bool[np.ndarray, " heads"], *, seed: int) -> dict[str, Any]:
    """The columns n50, n50_lo, n50_hi, method and is_resolved."""
    n50, low, high = (np.full(len(moved), np.nan) for _ in range(3))
    method, resolved = np.full(len(moved), "", dtype=object), np.zeros(len(moved), dtype=bool)
    if curves.unit:
        smooth = np.flatnonzero(moved & fits.is_logistic)
        sharp = np.flatnonzero(moved & ~fits.is_logistic)
        method[smooth], method[sharp] = "logistic", "break"
        n50[smooth], low[smooth], high[smooth], resolved[smooth] = _of_logistic(curves, x, fits, smooth, seed=seed)
        n50[sharp], low[sharp], high[sharp] = _of_break(curves, fits, sharp, seed=seed)
    return {"n50": n50, "n50_lo": low, "n50_hi": high, "method": method, "is_resolved": resolved}


def _of_logistic(curves: Curves, x: Any, fits: _Fits, rows: Any, *, seed: int) -> tuple[Any, Any, Any, Any]:
    score, fit = curves.score[rows], fits.logistic.rows(rows)
    low, high = np.exp(logistic_interval(x, score, fit, curves.se[rows], seed=seed))
    n50, has_score = np.exp(fit.middle), ~np.isnan(score)
    before, after = _around(curves.amount, has_score, n50)
    is_within = np.abs(x - fit.middle[:, None]) < TEN_TO_NINETY / 2 * fit.width[:, None]
    resolved = (has_score & is_within).sum(1) >= 2
    low = np.where(resolved, low, np.fmin(low, before))
    high = np.where(resolved, high, np.fmax(high, after))
    return n50, low, high, resolved


def _of_break(curves: Curves, fits: _Fits, rows: Any, *, seed: int) -> tuple[Any, Any, Any]:
    """The middle of the gap on the log scale, half of its end where it begins at 0; all of the gap is the interval."""
    broken = fits.broken.rows(rows)
    start, end = curves.amount[broken.before], curves.amount[broken.after]
    first, last = break_interval(curves.score[rows], broken, curves.se[rows], seed=seed)
    return np.where(start > 0, np.sqrt(start * end), end / 2), curves.amount[first], curves.amount[last]


def _around(amount: Any, has_score: Bool[np.ndarray, "heads ckpts"], n50: Any) -> tuple[Any, Any]:
    """The scored amounts on either side of each onset."""
    is_before = has_score & (amount <= n50[:, None])
    is_after = has_score & (amount > n50[:, None])
    before = np.where(is_before, amount, -np.inf).max(1)
    after = np.where(is_after, amount, np.inf).min(1)
    return np.where(is_before.any(1), before, 0.0), np.where(is_after.any(1), after, n50)


def _handover(score: Float[np.ndarray, "heads ckpts"], peers: Int[np.ndarray, " peers"], row: int) -> tuple[Any, ...]:
    """Column of the row's peak, its fall, best taker, the taker's rise, the share explained, and the ratio of sums."""
    curve = score[row]
    peak = int(np.nanargmax(curve))
    since = np.flatnonzero(~np.isnan(curve) & (np.arange(len(curve)) >= peak))
    fall = curve[peak] - curve[since]
    peer_scores = score[peers][:, since]
    rise = peer_scores - peer_scores[:, :1]
    with np.errstate(invalid="ignore"):
        unexplained = np.nansum((fall - rise) ** 2, axis=1)
    is_whole = ~np.isnan(rise).any(1) & (rise[:, -1] > 0) & (peers != row)
    explained = np.where(is_whole, 1 - unexplained / (fall**2).sum(), -np.inf)
    sums = np.nansum(peer_scores[:, [0, -1]], axis=0)
    ratio = float(sums[1] / sums[0]) if sums[0] else float("nan")
    best = int(explained.argmax())
    if not np.isfinite(explained[best]):
        return peak, float(fall[-1]), None, float("nan"), float("nan"), ratio
    return peak, float(fall[-1]), int(peers[best]), float(rise[best, -1]), float(explained[best]), ratio
