"""The order of a run's checkpoints: a checkpoint without a folder stands where it stood in training."""

from __future__ import annotations

import random
from itertools import product

import pytest

from workbench.store import Origin
from workbench.store.series_order import in_training_order


def origin(name, *, stage=None, branch=None, step=None, total=None, tokens=None):
    total = step if total is None else total
    return Origin("run", name, "ab" * 16, "cd" * 16, stage, branch, step, total, tokens)


def record(name, **place):
    made = origin(name, **place)
    names = ("stage", "branch", "step", "step_total", "tokens")
    return {"name": name, **{field: getattr(made, field) for field in names}}


def names(records):
    return [record["name"] for record in records]


STEPS = [0, 61, 107, 156, 188, 274, 480]


@pytest.mark.parametrize("tokens_per_step", [2048, None])
def test_any_checkpoints_may_be_gone_and_the_order_stays_that_of_the_steps(tokens_per_step):
    places = {s: {"step": s, "tokens": tokens_per_step and s * tokens_per_step} for s in STEPS}
    every = [origin(f"checkpoint-{s}", **places[s]) for s in STEPS]
    for is_there in product([True, False], repeat=len(STEPS)):
        series = [record(f"checkpoint-{s}", **places[s]) for s, stays in zip(STEPS, is_there, strict=True) if stays]
        random.Random(0).shuffle(every)
        ordered = in_training_order(series, every)
        assert names(ordered) == [f"checkpoint-{s}" for s in STEPS]
        assert [r["is_gone"] for r in ordered] == [bool(series) and not stays for stays in is_there]


def test_a_stage_that_is_gone_stands_before_the_one_that_follows_it_even_where_that_counts_from_its_own_start():
    series = [record(f"anneal-step{s}", stage="anneal", step=s) for s in (100, 200)]
    every = [origin(f"step{s}", stage="pretrain", step=s) for s in (2000, 1000)]
    assert names(in_training_order(series, every)) == ["step1000", "step2000", "anneal-step100", "anneal-step200"]


def test_a_stage_of_no_known_rank_stands_by_the_steps_of_the_whole_lineage():
    series = [record("a-1", stage="a", step=1, total=1), record("c-1", stage="c", step=1, total=31)]
    every = [origin("b-1", stage="b", step=1, total=11), origin("b-2", stage="b", step=2, total=12)]
    assert names(in_training_order(series, every)) == ["a-1", "b-1", "b-2", "c-1"]


def test_a_checkpoint_that_was_called_otherwise_stands_at_its_step():
    series = [record("step1", step=1), record("step2", step=2), record("step3", step=3)]
    ordered = names(in_training_order(series, [origin("checkpoint-2", step=2)]))
    assert ordered in (["step1", "checkpoint-2", "step2", "step3"], ["step1", "step2", "checkpoint-2", "step3"])


def test_equal_tokens_are_told_apart_by_their_steps():
    series = [record("step1", step=1, tokens=10), record("step4", step=4, tokens=30)]
    every = [origin("step3", step=3, tokens=20), origin("step2", step=2, tokens=20)]
    assert names(in_training_order(series, every)) == ["step1", "step2", "step3", "step4"]


def test_a_gone_checkpoint_without_a_position_is_never_the_last():
    series = [record("step1", step=1), record("step2", step=2)]
    assert names(in_training_order(series, [origin("best")]))[-1] == "step2"


def test_a_run_without_a_series_is_ordered_by_steps_and_nothing_is_gone():
    ordered = in_training_order([], [origin("step10", step=10), origin("step2", step=2)])
    assert names(ordered) == ["step2", "step10"]
    assert not any(r["is_gone"] for r in ordered)
