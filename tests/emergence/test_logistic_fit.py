"""The vectorised logistic fit against slow, independent ones."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emergence.made_up import FEW, PYTHIA, logistic
from workbench.emergence.logistic_fit import fit_logistic
from workbench.emergence.score_curves import logarithm

NAN = np.nan


def residuals(parameters, x, y):
    floor, amplitude, middle, log_width = parameters
    return y - logistic(x, middle, np.exp(log_width), floor, amplitude)


def levenberg_marquardt(x, y, start):
    """Four parameters at once, derivatives by central differences, one curve at a time."""
    at, damping = np.array(start), 1e-2
    for _ in range(400):
        r = residuals(at, x, y)
        steps = 1e-6 * np.eye(4)
        jacobian = np.stack([(residuals(at + h, x, y) - residuals(at - h, x, y)) / 2e-6 for h in steps], axis=1)
        normal = jacobian.T @ jacobian
        move = -np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), jacobian.T @ r)
        if (residuals(at + move, x, y) ** 2).sum() < (r**2).sum():
            at, damping = at + move, damping / 3
        else:
            damping *= 4
        if np.abs(move).max() < 1e-9:
            break
    return at


@pytest.mark.parametrize(("steps", "sd"), [(FEW, 0.0), (FEW, 0.02), (PYTHIA[1:], 0.02)])
@pytest.mark.parametrize("missing", [0.0, 0.15])
def test_the_logistic_is_that_of_an_independent_least_squares_fit_within_2_percent(steps, sd, missing):
    rng = np.random.default_rng([len(steps), int(100 * sd), int(100 * missing)])
    x = logarithm(steps * 2048.0)
    n = 25
    truth = np.stack(
        [rng.uniform(0, 0.2, n), rng.uniform(0.3, 0.8, n), rng.uniform(x[4], x[-4], n), rng.uniform(-1.2, 0, n)], 1
    )
    y = logistic(x, truth[:, 2], np.exp(truth[:, 3]), truth[:, 0], truth[:, 1]) + rng.normal(0, sd, (n, len(x)))
    y[rng.random(y.shape) < missing] = NAN
    fit = fit_logistic(x, y)
    for i in range(n):
        there = ~np.isnan(y[i])
        floor, amplitude, middle, log_width = levenberg_marquardt(x[there], y[i, there], truth[i])
        sse = (residuals((floor, amplitude, middle, log_width), x[there], y[i, there]) ** 2).sum()
        assert fit.sse[i] <= sse * (1 + 1e-6) + 1e-12
        if x[0] < middle < x[-1] and sse > fit.sse[i] * 0.999:
            assert np.exp(fit.middle[i] - middle) == pytest.approx(1, rel=0.02)
            assert fit.width[i] == pytest.approx(np.exp(log_width), rel=0.02)
            assert fit.amplitude[i] == pytest.approx(amplitude, rel=0.02)
            assert fit.floor[i] == pytest.approx(floor, abs=0.02 * amplitude)


def test_a_fit_matches_scipys():
    optimize = pytest.importorskip("scipy.optimize")
    x = logarithm(FEW * 2048.0)
    rng = np.random.default_rng(3)
    y = logistic(x, x[9], 0.5, 0.1, 0.6) + rng.normal(0, 0.02, len(x))
    (floor, amplitude, middle, width), _ = optimize.curve_fit(
        lambda at, b, a, m, w: logistic(at, m, w, b, a), x, y, p0=(0.1, 0.6, x[9], 0.5)
    )
    fit = fit_logistic(x, y[None])
    assert np.exp(fit.middle[0] - middle) == pytest.approx(1, rel=0.02)
    assert (fit.width[0], fit.amplitude[0], fit.floor[0]) == pytest.approx((width, amplitude, floor), rel=0.02)


def test_step_zero_is_where_no_rise_has_begun():
    x = logarithm(FEW * 2048.0)
    y = logistic(x, x[9], 0.5, 0.1, 0.6)[None]
    with_zero = fit_logistic(logarithm(np.array([0, *FEW]) * 2048.0), np.concatenate([[[0.1]], y], axis=1))
    without = fit_logistic(x, y)
    assert with_zero.middle == pytest.approx(without.middle, rel=1e-6)
    assert with_zero.floor == pytest.approx([0.1], abs=1e-4)


def test_fewer_than_six_scores_are_not_fitted():
    x = logarithm(FEW * 2048.0)
    y = np.full((2, len(FEW)), NAN)
    y[0, :5], y[1, :6] = np.linspace(0, 1, 5), np.linspace(0, 1, 6)
    assert np.isnan(fit_logistic(x, y).middle).tolist() == [True, False]
