"""What became of heads whose course is known: coverage of the intervals, no onsets in noise, gaps, axes, mixers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.emergence.made_up import FEW, PYTHIA, TOKENS_PER_STEP, rising_heads, rows
from workbench.emergence import onset_intervals, trace

NAN = np.nan


def traced(score, steps=FEW, **options):
    return trace(rows(score, steps, **options))


def one(*values, **options):
    table = traced([values], steps=list(range(10, 10 * len(values) + 1, 10)), **options)
    assert len(table) == 1
    return table.iloc[0]


@pytest.mark.parametrize(
    ("steps", "n", "sd"),
    [(FEW, 500, 0.01), (FEW, 500, 0.03), (FEW[::2], 500, 0.02), (PYTHIA, 300, 0.02)],
    ids=["20", "20 noisy", "10", "154"],
)
def test_the_interval_holds_the_true_onset_of_90_to_99_percent_of_heads(steps, n, sd):
    rng = np.random.default_rng([len(steps), n, int(100 * sd)])
    score, truth = rising_heads(rng, steps, n, sd=sd)
    table = traced(score, steps, se=sd)
    known = (table.n50.notna() & table.is_resolved).to_numpy()
    holds = (table.n50_lo <= truth) & (truth <= table.n50_hi)
    assert known.mean() > 0.8
    assert 0.90 <= holds[known].mean() <= 0.99


@pytest.mark.parametrize("steps", [PYTHIA, FEW], ids=["154", "20"])
def test_heads_known_so_well_that_refits_are_straight_get_the_interval_of_refits(steps, monkeypatch):
    rng = np.random.default_rng([8, len(steps)])
    score, _ = rising_heads(rng, steps, 300, sd=0.01)
    straight = traced(score, steps, se=0.01)
    monkeypatch.setattr(onset_intervals, "_STRAIGHT", 0.0)
    refitted = traced(score, steps, se=0.01)
    compared = (refitted.is_resolved & (refitted.method == "logistic")).to_numpy()
    low, high = np.log(refitted[compared][["n50_lo", "n50_hi"]].to_numpy().T)
    moved = np.abs(np.log(straight[compared][["n50_lo", "n50_hi"]].to_numpy().T) - [low, high]) / ((high - low) / 2)
    assert (moved > 0).mean() > 0.5  # most were indeed computed the other way
    assert np.median(moved) < 0.03
    assert np.quantile(moved, 0.95) < 0.15


def test_the_interval_still_holds_the_onset_where_checkpoints_are_missing():
    rng = np.random.default_rng(5)
    score, truth = rising_heads(rng, FEW, 400, sd=0.02)
    score[rng.random(score.shape) < 0.25] = NAN
    table = traced(score, se=0.02)
    known = (table.n50.notna() & table.is_resolved).to_numpy()
    assert known.mean() > 0.7
    assert 0.90 <= ((table.n50_lo <= truth) & (truth <= table.n50_hi))[known].mean() <= 0.99


def test_noise_that_the_probe_does_not_explain_widens_the_interval():
    rng = np.random.default_rng(6)
    score, truth = rising_heads(rng, FEW, 400, sd=0.03)
    table = traced(score, se=0.003)
    assert ((table.n50_lo <= truth) & (truth <= table.n50_hi))[table.is_resolved].mean() >= 0.9


def test_a_jump_between_two_checkpoints_is_known_to_lie_between_them():
    rng = np.random.default_rng(7)
    score, truth = rising_heads(rng, FEW, 300, widths=(0.005, 0.02), sd=0.01)
    table = traced(score)
    tokens = FEW * TOKENS_PER_STEP
    before = tokens[np.searchsorted(tokens, truth) - 1]
    after = tokens[np.searchsorted(tokens, truth)]
    assert not table.is_resolved.any()
    assert ((table.n50_lo <= truth) & (truth <= table.n50_hi)).mean() > 0.98
    assert (table.n50_lo <= before * 1.001).mean() > 0.95
    assert (table.n50_hi >= after * 0.999).mean() > 0.95


@pytest.mark.parametrize("steps", [PYTHIA, FEW, FEW[::2], FEW[::3]], ids=["154", "20", "10", "7"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape: rng.normal(0.05, 0.02, shape),
        lambda rng, shape: rng.normal(0.2, 0.1, shape),
        lambda rng, shape: rng.normal(0.5, 0.1, shape),
        lambda rng, shape: rng.uniform(0, 1, shape),
        lambda rng, shape: rng.exponential(0.1, shape),
    ],
    ids=["low", "at the mark", "high", "uniform", "skewed"],
)
def test_noise_has_an_onset_in_fewer_than_2_percent_of_heads(steps, draw):
    score = draw(np.random.default_rng(len(steps)), (1000, len(steps)))
    table = traced(score, steps)
    assert table.n50.notna().mean() < 0.02
    assert (~table.verdict.isin(["never", "at_first"])).mean() < 0.02


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.0, 0.01, 0.0, 0.02, 0.8, 0.81, 0.8, 0.82), "emerged"),
        ((0.0, 0.01, 0.7, 0.72, 0.7, 0.71, 0.1, 0.11, 0.1), "transient"),
        ((0.6, 0.61, 0.6, 0.62, 0.6, 0.6), "at_first"),
        ((0.6, 0.65, 0.7, 0.72, 0.73, 0.73), "at_first"),
        ((0.7, 0.71, 0.7, 0.72, 0.1, 0.11, 0.1, 0.1), "at_first"),
        ((0.0, 0.01, 0.0, 0.02, 0.01, 0.0, 0.9, 0.9), "unconfirmed"),
        ((0.0, 0.01, 0.0, 0.02, 0.01, 0.0, 0.01, 0.02), "never"),
        ((0.0, 0.01, 0.0, 0.1, 0.11, 0.1, 0.12, 0.1), "never"),
    ],
)
def test_verdicts(values, verdict):
    found = one(*values)
    assert found.verdict == verdict
    assert pd.notna(found.n50) == (verdict in ("emerged", "transient"))


def test_a_plateau_before_the_rise_and_after_it_does_not_move_the_onset():
    found = one(*[0.02] * 8, 0.3, 0.62, *[0.64] * 8)
    assert 85 * TOKENS_PER_STEP < found.n50 < 95 * TOKENS_PER_STEP
    assert found.crossing_step == 100
    assert found.before_ckpt == "step90"


def test_failed_checkpoints_are_gaps():
    score = [(0.0, 0.0, 0.0, NAN, 0.8, 0.8, 0.8, 0.8)]
    with_rows = traced(score, steps=range(10, 90, 10)).iloc[0]
    frame = rows(score, range(10, 90, 10))
    without = trace(frame.loc[frame["score"].notna()]).iloc[0]
    assert (with_rows.n50_lo, with_rows.n50_hi) == (30 * TOKENS_PER_STEP, 50 * TOKENS_PER_STEP)
    assert (without.n50_lo, without.n50_hi) == (with_rows.n50_lo, with_rows.n50_hi)


def test_where_tokens_are_not_known_onsets_count_steps():
    rng = np.random.default_rng(1)
    score, _ = rising_heads(rng, FEW, 50)
    by_tokens, by_steps = traced(score), traced(score, tokens_per_step=None)
    assert set(by_steps.unit) == {"step"}
    assert by_steps.n50.to_numpy() * TOKENS_PER_STEP == pytest.approx(by_tokens.n50.to_numpy(), rel=1e-3)


def test_without_tokens_and_steps_there_are_crossings_but_no_invented_axis():
    frame = rows([(0.0, 0.0, 0.0, 0.0, 0.8, 0.8, 0.8, 0.8)], range(8), tokens_per_step=None)
    frame = frame.assign(step=pd.array([None] * 8, dtype="Int64"), step_total=pd.array([None] * 8, dtype="Int64"))
    found = trace(frame).iloc[0]
    assert (found.verdict, found.crossing_ckpt, found.unit) == ("emerged", "step4", "")
    assert np.isnan(found.n50)


def test_a_branch_is_a_lineage_of_its_own():
    score = [(0.0, 0.0, 0.0, 0.0, 0.8, 0.8, 0.8, 0.8)]
    trunk = rows(score, range(10, 90, 10))
    branch = rows([(0.8, 0.8, 0.1, 0.1, 0.1, 0.1)], range(90, 150, 10), branch="sliding", kind="sliding")
    table = trace(pd.concat([trunk, branch])).set_index("branch")
    assert sorted(table.verdict) == ["at_first", "emerged"]
    assert table.loc["sliding"].verdict == "at_first"
    assert table.loc["sliding"].transience == pytest.approx(1 - 0.1 / 0.8)


def test_two_mixers_of_one_layer_do_not_hide_one_another():
    attention = rows([(0.0, 0.0, 0.0, 0.0, 0.8, 0.8, 0.8, 0.8)], range(10, 90, 10))
    mamba = rows([(0.5,) * 8], range(10, 90, 10), kind="linear")
    table = trace(pd.concat([attention, mamba])).set_index("kind")
    assert table.verdict.to_dict() == {"full": "emerged", "linear": "at_first"}
    assert table.final.to_dict() == {"full": 0.8, "linear": 0.5}


def test_a_layer_whose_kind_changes_over_training_keeps_its_heads_whole():
    early = rows([(0.0, 0.0, 0.0, 0.0)], range(10, 50, 10))
    late = rows([(0.8, 0.8, 0.8, 0.8)], range(50, 90, 10), kind="sliding")
    found = trace(pd.concat([early, late]))
    assert list(found.verdict) == ["emerged"]
    assert list(found.kind) == ["sliding"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_checkpoints_can_say_there_and_not_there(n):
    table = traced([(0.8,) * n, (0.01,) * n], steps=range(1, n + 1))
    assert list(table.verdict) == ["at_first", "never"]
    assert table.n50.isna().all()


@pytest.mark.parametrize(
    "values", [(0.01, 0.8, 0.94), (0.05, 0.14, 0.8, 0.94), (0.02, 0.3, 0.2, 0.5, 0.45, 0.5, 0.8, 0.65)]
)
def test_a_head_that_is_low_at_the_first_of_a_few_checkpoints_is_not_called_there_at_first(values):
    found = one(*values)
    assert found.verdict == "unconfirmed"
    assert pd.isna(found.n50)


def test_no_rows_give_an_empty_table_with_the_same_columns():
    full = rows([(0.1, 0.2, 0.3)], range(3))
    assert list(trace(full.iloc[:0]).columns) == list(trace(full).columns)
    assert trace(full.assign(score=NAN)).empty
