"""Half-rise onsets and crossings on curves whose onset can be read off, breaks against all splits."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.emergence import onsets
from workbench.emergence.onset_definitions import breaks_of, crossings_of

NAN = math.nan


def curve(values, *, steps=None, head=0, detector="induction", branch=None):
    steps = list(range(0, 100 * len(values), 100)) if steps is None else steps
    step = pd.array(steps, dtype="Int64")
    return pd.DataFrame(
        {
            "ckpt": [f"{branch or 'main'}-step{s}" for s in steps],
            "branch": pd.array([branch] * len(values), dtype="str"),
            "step": step,
            "step_total": step,
            "tokens": step * 1000,
            "layer": 0,
            "head": pd.array([head] * len(values), dtype="Int64"),
            "kv_head": head,
            "kind": "full",
            "window": pd.array([None] * len(values), dtype="Int64"),
            "detector": detector,
            "version": 1,
            "probe": "repeats",
            "probe_digest": "p",
            "score": np.asarray(values, dtype=float),
        }
    )


def only(table):
    assert len(table) == 1
    return table.iloc[0]


def test_onset_is_the_first_checkpoint_that_stays_at_half_of_the_final_score():
    row = only(onsets(curve([0.0, 0.1, 0.39, 0.4, 0.7, 0.8])))
    assert (row.onset_step, row.onset_tokens) == (300, 300_000)
    assert (row.previous_step, row.previous_tokens) == (200, 200_000)
    assert not row.at_first
    assert row.final == 0.8


def test_a_rise_that_is_lost_again_is_no_onset():
    row = only(onsets(curve([0.0, 0.9, 0.1, 0.1, 0.6, 0.8])))
    assert row.onset_step == 400


def test_a_head_that_ends_below_min_score_has_no_onset_but_keeps_its_peak():
    row = only(onsets(curve([0.0, 0.9, 0.3, 0.05])))
    assert row.onset_step is pd.NA
    assert row.previous_step is pd.NA
    assert (row.peak, row.peak_step) == (0.9, 100)
    assert row.transience == pytest.approx(1 - 0.05 / 0.9)
    assert not row.at_first


def test_min_score_can_be_lowered():
    assert only(onsets(curve([0.0, 0.02, 0.05]), min_score=0.01)).onset_step == 200 - 100 * (0.02 >= 0.025)


def test_a_head_that_is_there_from_the_first_checkpoint_is_censored_on_the_left():
    row = only(onsets(curve([0.5, 0.6, 0.7])))
    assert row.onset_step == 0
    assert row.previous_step is pd.NA
    assert row.at_first


def test_gaps_neither_fulfil_nor_break_the_condition():
    row = only(onsets(curve([0.0, NAN, 0.8, NAN, 0.9, NAN])))
    assert row.onset_step == 200
    assert row.previous_step == 0
    assert row.final == 0.9


def test_a_head_without_any_score_is_left_out():
    both = pd.concat([curve([NAN, NAN, NAN]), curve([0.0, 0.5, 0.5], head=1)])
    assert list(onsets(both)["head"]) == [1]


def test_no_rows_give_an_empty_table_with_all_columns():
    table = onsets(curve([0.0]).iloc[:0])
    assert table.empty
    assert {"final", "onset_step", "transience", "at_first"} <= set(table.columns)


def test_branches_are_lineages_of_their_own():
    table = onsets(pd.concat([curve([0.0, 0.8]), curve([0.8, 0.2], branch="sliding", steps=[100, 200])]))
    main, branch = table[table.branch.isna()].iloc[0], table[table.branch == "sliding"].iloc[0]
    assert main.onset_step == 100
    assert branch.transience == pytest.approx(0.75)


def test_order_is_by_total_steps_not_by_row():
    shuffled = curve([0.0, 0.1, 0.5, 0.9]).iloc[[3, 1, 0, 2]]
    assert only(onsets(shuffled)).onset_step == 200


@given(st.lists(st.one_of(st.floats(-1, 1), st.just(NAN)), min_size=1, max_size=12))
def test_from_the_onset_on_no_score_is_below_half_of_the_final_one(values):
    table = onsets(curve(values))
    scored = [(step, v) for step, v in zip(range(0, 1200, 100), values, strict=False) if not math.isnan(v)]
    if not scored:
        assert table.empty
        return
    row, final = only(table), scored[-1][1]
    assert row.final == final
    assert row.peak == max(v for _, v in scored)
    if final < 0.1:
        assert row.onset_step is pd.NA
        return
    assert all(v >= final / 2 for step, v in scored if step >= row.onset_step)
    earlier = [v for step, v in scored if step < row.onset_step]
    assert row.at_first == (not earlier)
    assert not earlier or earlier[-1] < final / 2


def test_the_break_is_the_best_of_all_splits():
    rng = np.random.default_rng(0)
    y = rng.normal(0, 1, (60, 12)) + np.linspace(0, 2, 12)
    y[rng.random(y.shape) < 0.2] = NAN
    found = breaks_of(y)
    for row in range(len(y)):
        there = np.flatnonzero(~np.isnan(y[row]))
        splits = [(y[row, there[:k]], y[row, there[k:]], there[k - 1], there[k]) for k in range(1, len(there))]
        rises = [(a.var() * len(a) + b.var() * len(b), i, j) for a, b, i, j in splits if b.mean() > a.mean()]
        sse, before, after = min(rises)
        assert (found.before[row], found.after[row]) == (before, after)
        assert found.sse[row] == pytest.approx(sse)


def test_a_curve_that_only_falls_has_no_break_upwards_but_one_downwards():
    y = np.array([[0.9, 0.9, 0.1, 0.1]])
    assert breaks_of(y).before.tolist() == [-1]
    assert breaks_of(y, falling=True).before.tolist() == [1]


def crossing(*values, **options):
    found = crossings_of(np.array([values], dtype=float), **options)
    return int(found.column[0]), int(found.before[0])


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ((0.0, 0.0, 0.3, 0.8, 0.8, 0.8), (3, 2)),
        ((0.0, 0.6, 0.0, 0.0, 0.7, 0.8, 0.8), (4, 3)),  # one high checkpoint is no crossing
        ((0.0, 0.0, 0.5, 0.35, 0.8, 0.8), (2, 1)),  # above the lower mark is enough to stay
        ((0.0, NAN, NAN, 0.8, NAN, 0.8, 0.8), (3, 0)),  # gaps neither fulfil nor break
        ((0.0, 0.05, 0.1, 0.15, 0.15, 0.15), (-1, -1)),  # below the least mark
        ((0.8, 0.8, 0.8, 0.8), (0, -1)),
        ((0.0, 0.0, 0.0, 0.9, 0.9), (-1, -1)),  # not yet confirmed
    ],
)
def test_a_crossing_is_above_the_high_mark_and_stays_above_the_lower_one(values, at):
    assert crossing(*values) == at


def test_the_least_mark_can_be_set():
    assert crossing(0.0, 0.05, 0.1, 0.15, 0.15, 0.15, least=0.1) == (2, 1)
