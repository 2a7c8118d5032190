"""Spearman's correlation against scipy's, one pair at a time and as a matrix."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr

from workbench.emergence.rank_statistics import spearman, spearman_matrix, spearman_within, top_rows, within_layers

NAN = np.nan
LAYER = np.repeat(np.arange(5), 8)


def tied(rng, shape, missing):
    """Values with many ties, and NaN."""
    values = rng.integers(0, 9, shape) / 4
    values[rng.random(shape) < missing] = NAN
    return values


def scipys(one, other):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        return float(spearmanr(one, other, nan_policy="omit").statistic)


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(20))
def test_spearman_is_scipys_with_ties_and_nan(seed, missing):
    rng = np.random.default_rng(seed)
    one, other = tied(rng, (2, 40), missing)
    assert spearman(one, other) == pytest.approx(scipys(one, other), abs=1e-12)


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_the_matrix_holds_the_correlation_of_every_two_columns(missing):
    rng = np.random.default_rng(1)
    one, other = tied(rng, (40, 6), missing), tied(rng, (40, 4), missing)
    rho, within = spearman_matrix(one, other), spearman_matrix(one, other, LAYER)
    for i in range(6):
        for j in range(4):
            assert rho[i, j] == pytest.approx(scipys(one[:, i], other[:, j]), abs=1e-12)
            assert within[i, j] == pytest.approx(spearman_within(one[:, i], other[:, j], LAYER), abs=1e-12)
    assert spearman_matrix(one, one) == pytest.approx(spearman_matrix(one, one.copy()), abs=1e-12)


def test_within_layers_each_layer_loses_its_mean_over_the_heads_that_both_have():
    rng = np.random.default_rng(2)
    one, other = tied(rng, (2, 40), 0.2)
    both = ~(np.isnan(one) | np.isnan(other))
    centred = [within_layers(values[both], LAYER[both]) for values in (one, other)]
    for layer in range(5):
        assert centred[0][LAYER[both] == layer].mean() == pytest.approx(0, abs=1e-8)
    assert spearman_within(one, other, LAYER) == pytest.approx(scipys(*centred), abs=1e-12)


@pytest.mark.parametrize("constant", [np.zeros(40), np.where(np.arange(40) < 20, 0.1, NAN), np.full(40, NAN)])
def test_a_constant_has_no_correlation(constant):
    rising = np.arange(40.0)
    assert np.isnan(spearman(constant, rising))
    assert np.isnan(spearman(rising, constant))
    assert np.isnan(spearman_within(constant, rising, LAYER))
    matrix = spearman_matrix(np.stack([rising, constant], axis=1), rising[:, None])
    assert matrix.ravel() == pytest.approx([1, NAN], nan_ok=True)


def test_the_level_of_each_layer_alone_has_no_correlation_within_layers():
    rng = np.random.default_rng(3)
    level = rng.uniform(0, 0.8, 5)[LAYER]
    other = rng.random(40)
    assert np.isfinite(spearman(level, other))
    assert np.isnan(spearman_within(level, other, LAYER))


def test_top_rows_are_the_first_of_a_stable_sort_without_nan():
    rng = np.random.default_rng(4)
    for _ in range(200):
        values = tied(rng, int(rng.integers(0, 30)), 0.2)
        k = int(rng.integers(0, 35))
        order = np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")
        assert top_rows(values, k) == [row for row in order[:k] if not np.isnan(values[row])]
