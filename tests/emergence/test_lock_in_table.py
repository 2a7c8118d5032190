"""Lock-in: a layer effect is told from one of heads, noise is allowed for, branches are held against their parents."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.emergence.made_up import FEW, rows
from workbench.emergence import agreement, chosen_at, handovers, lock_in, lock_in_sentence, parents_of, trace, with_past
from workbench.heads import WorkbenchError

NAN = np.nan


def ranks(values):
    """Average ranks, one pair at a time."""
    return np.array([np.sum(values < v) + (np.sum(values == v) + 1) / 2 for v in values])


def test_correlations_are_those_of_ranks_by_hand():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, 40) / 4, rng.integers(0, 9, 40) / 4
    layer = np.repeat(np.arange(5), 8)
    found = agreement(one, other, layer, k=6)

    def centred(v):
        return np.array([v[i] - v[layer == layer[i]].mean() for i in range(40)])

    assert found.rho == pytest.approx(np.corrcoef(ranks(one), ranks(other))[0, 1])
    within = [ranks(np.round(centred(v), 9)) for v in (one, other)]
    assert found.rho_within == pytest.approx(np.corrcoef(*within)[0, 1])
    tops = [set(np.argsort(-v, kind="stable")[:6]) for v in (one, other)]
    assert found.jaccard == len(tops[0] & tops[1]) / len(tops[0] | tops[1])
    assert found.amplitude == pytest.approx(one[list(tops[1])].mean() / other[list(tops[1])].mean())


def layered(rng, n_ckpts=20, spread=0.05, n_layers=10, per_layer=32):
    """Layers that keep their level; what distinguishes heads of a layer is drawn anew at every checkpoint."""
    level = np.repeat(rng.uniform(0, 0.8, n_layers), per_layer)
    return level[:, None] + rng.normal(0, spread, (len(level), n_ckpts))


def test_what_only_layers_keep_is_lock_in_over_all_heads_but_none_within_layers():
    rng = np.random.default_rng(1)
    table = lock_in(rows(layered(rng), FEW, se=0.005, noise=rng)).iloc[:-1]
    assert (table.lock_in > 0.9).all()
    assert (table.lock_in_within.abs() < 0.2).all()
    assert abs(table.lock_in_within.mean()) < 0.05
    assert (table.p_within > 0.05).mean() > 0.8


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_where_the_probe_does_not_tell_heads_of_a_layer_apart_nothing_is_claimed(spread):
    rng = np.random.default_rng(2)
    level = layered(rng, spread=0.0)
    frame = rows(level, FEW, se=spread, noise=rng if spread else None)
    table = lock_in(frame)
    assert table.lock_in_within.isna().all()
    assert (table.lock_in > 0.9).all()
    assert "nothing can be said about single heads" in lock_in_sentence(table)


def test_noise_of_the_probe_is_divided_out():
    rng = np.random.default_rng(3)
    truth = rng.uniform(0, 0.5, (640, 1)) * np.ones((1, len(FEW)))
    halves = truth.T.ravel() + rng.normal(0, 0.08, (2, truth.size))
    frame = rows(truth, FEW).assign(half_a=halves[0], half_b=halves[1], score=halves.mean(0))
    table = lock_in(frame).iloc[:-1]
    assert (table.ceiling_within < 0.85).all()
    assert (table.rho_within < 0.95).all()
    assert table.lock_in_within.mean() == pytest.approx(1, abs=0.05)


def locked_from(column, rng, n_heads=320):
    """Heads drawn anew until a column, and the same from there on."""
    score = rng.uniform(0, 1, (n_heads, len(FEW)))
    score[:, column:] = score[:, [column]]
    return score + rng.normal(0, 0.005, score.shape)


@pytest.mark.parametrize(("column", "says"), [(4, "which supports 'formed early'"), (18, "does not support 'formed")])
def test_the_sentence_says_since_when_and_what_that_supports(column, says):
    rng = np.random.default_rng(4)
    table = lock_in(rows(locked_from(column, rng), FEW, noise=rng, se=0.005))
    assert (table.lock_in_within.iloc[column:] > 0.95).all()
    assert (table.lock_in_within.iloc[:column] < 0.3).all()
    assert (table.p_within.iloc[column:] <= 0.01).all()
    sentence = lock_in_sentence(table)
    assert says in sentence
    assert f"step{FEW[column]} on" in sentence
    assert sentence.count(".") - sentence.count("0.") == 1


@pytest.fixture
def continued():
    """A trunk, a branch that keeps its heads, and one that draws them anew."""
    rng = np.random.default_rng(5)
    trunk = locked_from(5, rng)
    last = trunk[:, [-1]]
    steps = [3100, 3200, 3300]
    kept = last + rng.normal(0, 0.005, (320, 3))
    moved = rng.uniform(0, 1, (320, 1)) + rng.normal(0, 0.005, (320, 3))
    return pd.concat(
        [
            rows(trunk, FEW, noise=rng, se=0.005),
            rows(kept, steps, branch="kept", noise=rng, se=0.005, kind="sliding"),
            rows(0.5 * kept, steps, branch="weak", noise=rng, se=0.005),
            rows(moved, steps, branch="moved", noise=rng, se=0.005),
        ]
    )


def test_branches_are_held_against_their_parent(continued):
    table = lock_in(continued, against="parent").set_index("branch")
    assert set(table.reference) == {"step3072"}
    assert (table.loc["kept"].lock_in_within > 0.95).all()
    assert (table.loc["kept"].amplitude.round(1) == 1).all()
    assert (table.loc["weak"].amplitude.round(1) == 0.5).all()
    assert (table.loc["moved"].lock_in_within.abs() < 0.3).all()
    sentence = lock_in_sentence(lock_in(continued), lock_in(continued, against="parent"))
    assert "(kept) heads hardly moved" in sentence
    assert "(weak) heads kept their order but not their strength" in sentence
    assert "(moved) heads were moved" in sentence


def test_a_checkpoint_can_be_the_reference(continued):
    table = lock_in(continued, against=f"step{FEW[5]}").set_index("ckpt")
    assert table.loc[f"step{FEW[5]}"].rho == 1
    assert table.loc["step3072"].lock_in_within > 0.9
    with pytest.raises(WorkbenchError, match="checkpoint 'step5' has no scores here; there are scores of step8"):
        lock_in(continued, against="step5")


def test_a_branch_with_its_past_shows_what_it_lost():
    trunk = rows([(0.0, 0.0, 0.0, 0.8, 0.8, 0.8, 0.8)], range(10, 80, 10))
    branch = rows([(0.05, 0.05, 0.05, 0.05)], range(70, 110, 10), branch="linear", kind="linear")
    both = pd.concat([trunk, branch])
    assert trace(both).set_index("branch").loc["linear"].verdict == "never"
    found = trace(with_past(both)).set_index("branch").loc["linear"]
    assert (found.verdict, found.kind, found.crossing_ckpt) == ("transient", "linear", "step40")


def test_parents_follow_the_rules_of_the_series():
    first = rows(np.zeros((1, 2)), [10, 20], stage="stage1")
    second = [rows(np.zeros((1, 1)), [25], stage="stage2", branch=b) for b in ("ingredient1", "ingredient2")]
    third = rows(np.zeros((1, 1)), [30], stage="stage3", branch="ingredient2", names=["end"])
    every = pd.concat([first, *second, third])
    assert parents_of(every) == {
        "ingredient1step25": "stage1step20",
        "ingredient2step25": "stage1step20",
        "end": "ingredient2step25",
    }
    assert parents_of(every, {"end": "stage1step10"})["end"] == "stage1step10"


def test_what_cannot_be_compared_is_refused():
    one = rows(np.random.default_rng(0).random((8, 1)), [1])
    with pytest.raises(WorkbenchError, match="at least two checkpoints; there are scores of 1"):
        lock_in(one)
    two = rows(np.random.default_rng(0).random((8, 2)), [1, 2])
    with pytest.raises(WorkbenchError, match="no stage or branch here continues"):
        lock_in(two, against="parent")
    with pytest.raises(WorkbenchError, match=r"induction on repeats, sink on repeats.*one detector on one probe"):
        lock_in(pd.concat([two, two.assign(detector="sink")]))
    few = rows(np.random.default_rng(0).random((3, 2)), [1, 2])
    with pytest.raises(WorkbenchError, match="no two checkpoints share 4 heads"):
        lock_in(few)


def test_heads_without_a_score_at_both_checkpoints_are_left_out():
    rng = np.random.default_rng(6)
    score = locked_from(0, rng, 64)
    score[:10, 0], score[60:, -1] = NAN, NAN
    table = lock_in(rows(score, FEW, noise=rng, se=0.005))
    assert list(table.n_heads.iloc[[0, 1, -1]]) == [50, 60, 60]
    assert table.rho.iloc[0] > 0.99


def test_chosen_at_takes_the_top_by_score():
    rng = np.random.default_rng(7)
    score = rng.random((40, 3))
    frame = rows(score, [1, 2, 3])
    best = chosen_at(frame, "step2", k=5)
    order = np.argsort(-score[:, 1])[:5]
    assert list(best["layer"] * 32 + best["head"]) == list(order)
    assert len(chosen_at(frame, "step2", share=0.1)) == 4
    assert (chosen_at(frame, "step2", k=40, least=0.5).score >= 0.5).all()
    with pytest.raises(WorkbenchError, match="give one of them"):
        chosen_at(frame, "step2")
    with pytest.raises(WorkbenchError, match="there are scores of step1, step2, step3"):
        chosen_at(frame, "step9", k=1)


def test_a_hand_over_names_the_head_that_takes_the_role_up():
    up = np.array([0.0, 0.2, 0.5, 0.8, 0.8, 0.8, 0.8, 0.8])
    steps = range(10, 170, 10)
    old = np.concatenate([up, 0.8 - up])
    new = np.concatenate([0 * up, up])
    other = np.full(16, 0.1)
    found = handovers(rows([old, new, other], steps))
    assert len(found) == 1
    row = found.iloc[0]
    assert (row["head"], row.to_head) == (0, 1)
    assert row.explained == pytest.approx(1)
    assert row.class_sum_ratio == pytest.approx(1)
    lost = handovers(rows([old, other], steps)).iloc[0]
    assert pd.isna(lost.to_head)
    assert lost.class_sum_ratio < 0.2
