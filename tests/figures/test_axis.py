"""The axis of training tells checkpoints apart: in tokens where they do, else in steps."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.emergence.head_trajectories import Checkpoint
from workbench.figures.axis import draw_axis, training_axis


def checkpoint(step, tokens, branch=None):
    return Checkpoint(f"step{step}{branch or ''}", branch, step, step, tokens)


@pytest.mark.parametrize(
    ("checkpoints", "unit"),
    [
        ([checkpoint(1, 10), checkpoint(2, 20)], "tokens"),
        ([checkpoint(1, 10), checkpoint(2, 10), checkpoint(3, 30)], "step"),
        ([checkpoint(1, 10), checkpoint(2, None)], "step"),
        ([checkpoint(1, 10), checkpoint(2, 20, "a"), checkpoint(2, 20, "b")], "tokens"),
    ],
    ids=["tokens rise", "two steps of equal tokens", "unknown tokens", "branches side by side"],
)
def test_the_unit_is_tokens_only_where_tokens_tell_steps_apart(checkpoints, unit):
    assert training_axis([checkpoints], "tokens").unit == unit


def one_model(name):
    return Checkpoint(name, None, None, None, None)


def test_a_model_without_a_step_stands_right_of_a_break_and_moves_no_other():
    alone, known = one_model("smollm2"), [checkpoint(0, 0), checkpoint(1, 10), checkpoint(1000, 10_000)]
    axis, without = training_axis([known, [alone]], "tokens"), training_axis([known], "tokens")
    assert axis.positions(known).tolist() == without.positions(known).tolist()
    assert axis.positions([alone])[0] > axis.positions(known).max()
    assert axis.ticks()[1] == [*without.ticks()[1], "smollm2"]
    assert axis.title == "training tokens (log) · right of //: no step known"
    figure = draw_axis(go.Figure(go.Scatter(x=[1], y=[1])), axis, "light")
    assert [note.text for note in figure.layout.annotations] == ["//", "//"]  # behind 0, and before smollm2
    assert figure.layout.xaxis.range[1] > np.log10(axis.positions([alone])[0])


def test_models_without_any_step_have_a_place_each_under_their_names():
    models = [one_model("smollm2"), one_model("gemma3")]
    axis = training_axis([models[:1], models[1:], models[:1]], "tokens")
    assert len({*axis.positions(models)}) == 2
    assert axis.ticks()[1] == ["smollm2", "gemma3"]
    assert axis.title == "checkpoints (no steps are known)"
    assert draw_axis(go.Figure(), axis, "light").layout.annotations == ()


def test_a_checkpoint_that_is_listed_often_has_one_place():
    axis = training_axis([[one_model("smollm2")] * 4], "tokens")
    assert len(axis.unplaced) == 1
    assert axis.title == "checkpoint (no step is known)"


def test_tokens_alone_place_a_checkpoint_where_the_axis_counts_tokens():
    tokens_only, both = Checkpoint("final", None, None, None, 50), checkpoint(3, 30)
    assert training_axis([[both, tokens_only]], "tokens").positions([tokens_only]).tolist() == [50]
    assert "final" in training_axis([[both, tokens_only]], "step").unplaced


def test_a_place_in_training_is_written_in_words():
    axis = training_axis([[checkpoint(8, 4096)], [one_model("main")]], "tokens")
    assert [axis.name_of(x) for x in axis.amounts([checkpoint(8, 4096), one_model("main")])] == ["4.1K tokens", "main"]


def test_a_long_name_keeps_its_beginning_and_its_end_and_stands_clear_of_the_last_step():
    name = "stage2-ingredient3-olmo-peteish13-anneal-from-928646"
    known = [checkpoint(8, None), checkpoint(3072, None)]
    axis = training_axis([known, [one_model(name)]], "step")
    assert axis.ticks()[1][-1] == "stage…8646"
    assert axis.name_of(axis.unplaced[name]) == name
    figure = draw_axis(go.Figure(go.Scatter(x=[1], y=[1])), axis, "light")
    low, high = figure.layout.xaxis.range
    last, place = np.log10(axis.last), np.log10(axis.unplaced[name])
    assert min(place - last, high - place) > 0.04 * (high - low)
    assert training_axis([[one_model(name)]], "step").ticks()[1] == ["stage2-in…m-928646"]
