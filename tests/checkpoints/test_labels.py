"""The rounding of token labels is undone, and never by more than the labels allow."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.checkpoints.labels import Label, fit_tokens_per_step

STEPS = (150, 600, 1000, 2000, 10000, 100000, 700000)
B = 10**9


def ceiled(tokens_per_step, steps=STEPS, rounding=math.ceil):
    units = [rounding(Fraction(step * tokens_per_step, B)) for step in steps]
    return [Label(step, max(0, unit - 1) * B, (unit + 1) * B) for step, unit in zip(steps, units, strict=True)]


@pytest.mark.parametrize("true", [4194304, 2097152, 2160 * 2048, 8388608, 2359296])
@pytest.mark.parametrize("rounding", [math.ceil, math.floor, round])
def test_the_true_tokens_per_step_lie_within_the_fit_to_a_thousandth(true, rounding):
    fit = fit_tokens_per_step(ceiled(true, rounding=rounding))
    assert fit.lo <= true <= fit.hi
    assert fit.hi - fit.lo < true / 500
    assert abs(fit.value - true) < true / 1000


@pytest.mark.parametrize("true", [4194304, 2097152, 8388608, 2359296])
def test_a_round_batch_is_found_exactly(true):
    assert fit_tokens_per_step(ceiled(true)).value == true


def test_a_batch_no_rounder_than_chance_stays_in_the_middle_of_what_the_labels_allow():
    fit = fit_tokens_per_step(ceiled(4_440_000))
    assert fit.value == (fit.lo + fit.hi) / 2


def test_one_coarse_label_gives_no_fit():
    assert fit_tokens_per_step([Label(1000, 2 * B, 4 * B)]) is None


def test_labels_that_contradict_each_other_give_no_fit():
    assert fit_tokens_per_step([Label(1000, 99 * B, 101 * B), Label(1000, 199 * B, 201 * B)]) is None


def test_step_zero_bounds_nothing():
    assert fit_tokens_per_step([Label(0, 0, B)]) is None


def test_an_exact_label_is_its_own_fit():
    assert fit_tokens_per_step([Label(1000, 2_000_001, 2_000_001)]).value == Fraction(2_000_001, 1000)


@given(
    st.integers(1024, 1 << 26), st.lists(st.integers(1, 10**6), min_size=1), st.sampled_from([math.ceil, math.floor])
)
def test_the_truth_is_never_excluded(true, steps, rounding):
    fit = fit_tokens_per_step(ceiled(true, steps=steps, rounding=rounding))
    assert fit is None or fit.lo <= true <= fit.hi
