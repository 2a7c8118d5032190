"""Phase changes, the in-context-learning score and tables by distance and position, on numbers made for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.emergence.made_up import FEW, logistic, rows
from workbench.emergence import align, icl_score, metric_by, phase_changes, trace
from workbench.heads import WorkbenchError

X = np.log(FEW * 2048.0)


def metric(values, *, name="loss_nats", probe="text", distance=None, position=None, se=0.005, steps=FEW):
    step = pd.array(steps, dtype="Int64")
    n = len(values)
    values = np.asarray(values, dtype=float)

    def ints(x):
        return pd.array([x] * n, dtype="Int64")

    return pd.DataFrame(
        {
            "ckpt": [f"step{s}" for s in steps],
            "stage": pd.array([None] * n, dtype="str"),
            "branch": pd.array([None] * n, dtype="str"),
            "step": step,
            "step_total": step,
            "tokens": step * 2048,
            "probe": probe,
            "metric": name,
            "distance": ints(distance),
            "position": ints(position),
            "value": values,
            "half_a": values - 0.01,
            "half_b": values + 0.01,
            "ci_lo": values - 1.96 * se,
            "ci_hi": values + 1.96 * se,
        }
    )


@pytest.mark.parametrize("amplitude", [-0.8, 0.8])
def test_a_change_has_an_interval_that_holds_it_and_a_line_has_none(amplitude):
    rng = np.random.default_rng(0)
    truth, held = X[9], []
    for _ in range(40):
        changed = 4 + logistic(X, truth, 0.3, 0, amplitude) + rng.normal(0, 0.005, len(X))
        found = phase_changes(metric(changed)).iloc[0]
        assert found.is_change
        assert np.sign(found.amplitude) == np.sign(amplitude)
        assert found.n10 < np.exp(truth) < found.n90
        held.append(found.n50_lo <= np.exp(truth) <= found.n50_hi)
    assert np.mean(held) >= 0.85
    lines = [5 - 0.3 * X + rng.normal(0, 0.02, len(X)) for _ in range(200)]
    flat = pd.concat([metric(line, name=f"m{i}") for i, line in enumerate(lines)])
    assert phase_changes(flat).is_change.mean() < 0.02


def test_step_zero_does_not_make_a_line_a_change():
    steps = [0, *FEW]
    values = np.concatenate([[11.0], 5 - 0.3 * X])
    assert not phase_changes(metric(values, steps=steps)).is_change.any()


def positions():
    """Loss falls with the position only from the ninth checkpoint on."""
    learnt = np.arange(len(FEW)) >= 9
    return pd.concat([metric(3 - 0.1 * learnt * np.log(p), position=p) for p in (5, 50, 300, 500, 900)])


def test_the_icl_score_is_the_loss_at_a_late_less_that_at_an_early_position():
    table = icl_score(positions())
    assert set(zip(table.early, table.late, strict=True)) == {(50, 500)}
    assert list(table.value.round(6)) == [0.0] * 9 + [round(-0.1 * np.log(10), 6)] * (len(FEW) - 9)
    assert (table.ci_lo < table.value).all()
    assert icl_score(positions(), early=5, late=900).value.iloc[-1] == pytest.approx(-0.1 * np.log(180))
    short = positions().loc[lambda f: f.position <= 300]
    assert set(icl_score(short).late) == {300}


@pytest.mark.parametrize(("early", "late"), [(50, 51), (500, 50), (7, 500)])
def test_positions_that_are_not_known_are_refused(early, late):
    with pytest.raises(WorkbenchError, match="expected positions of 5 to 900, early first"):
        icl_score(positions(), early=early, late=late)


def test_without_a_loss_by_position_there_is_no_icl_score():
    with pytest.raises(WorkbenchError, match="no loss is known by position; scan a probe of natural text"):
        icl_score(metric(X))


def test_a_metric_can_be_spread_out_over_distances():
    both = pd.concat([metric(X / d, name="recall", distance=d) for d in (8, 64)])
    table = metric_by(both, "recall", "distance")
    assert list(table.columns) == [8, 64]
    assert list(table.index) == [f"step{s}" for s in FEW]
    assert table[64].to_numpy() == pytest.approx(X / 64)
    with pytest.raises(WorkbenchError, match="no loss_nats by distance here; by distance there is: recall"):
        metric_by(both, "loss_nats", "distance")
    with pytest.raises(WorkbenchError, match="metrics of code, text"):
        metric_by(pd.concat([both, both.assign(probe="code")]), "recall", "distance")


def test_heads_are_aligned_with_the_change_of_the_model():
    change = phase_changes(metric(4 - logistic(X, X[9], 0.2, 0, 0.8))).iloc[0]
    middles = [X[4], X[9], X[15]]
    score = np.stack([logistic(X, m, 0.25, 0, 0.8) for m in middles])
    found = align(trace(rows(score, FEW)), change)
    assert list(found.relation) == ["before", "during", "after"]
    assert found.lead.to_numpy() == pytest.approx(np.array(middles) - X[9], abs=0.05)
    flat = phase_changes(metric(0 * X + 4)).iloc[0]
    with pytest.raises(WorkbenchError, match="no phase change"):
        align(trace(rows(score, FEW)), flat)
    with pytest.raises(WorkbenchError, match="onsets are in step, the change in tokens"):
        align(trace(rows(score, FEW, tokens_per_step=None)), change)
