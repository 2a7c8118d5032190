"""Resampled means are those of the bootstrap, and shared between measurements of the same sequences."""

import numpy as np

from workbench.detectors.bootstrap import RESAMPLES, bootstrap, percentile_interval, resampled_means


def values(seed, n_seq=12):
    return np.random.default_rng(seed).normal(size=(n_seq, 3))


def test_the_interval_of_a_mean_is_that_of_its_resamples():
    measured = values(0)
    low, high = bootstrap(measured, np.ones(measured.shape, dtype=bool), seed=4)
    resampled = resampled_means(measured, seed=4)
    assert resampled.shape == (RESAMPLES, 3)
    assert np.array_equal(np.stack(percentile_interval(resampled)), np.stack([low, high]))


def test_measurements_of_the_same_sequences_are_resampled_alike():
    first, second = values(0), values(1)
    difference = resampled_means(first, seed=2) - resampled_means(second, seed=2)
    assert np.allclose(difference, resampled_means(first - second, seed=2))
    assert not np.allclose(resampled_means(first, seed=2), resampled_means(first, seed=3))
