"""The verdict over length: hand-built heads whose plan fails from a known length on; areas and arms computed again."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.families import tiny
from tests.planning.far_pairs import FAR, NEAR, REACH, far_pairs, model_of_two_reaches, registered_pairs
from tests.planning.plans import plan_of
from workbench import LossTolerance, WorkbenchError, open_model, verdict
from workbench.heads import KVHead
from workbench.planning import verdict_over_length
from workbench.planning.task_abilities import TaskAbility
from workbench.planning.verdict_over_length import verdict_work
from workbench.store.conversions import Window
from workbench.store.length_verdict import LengthVerdict, VerdictCell

WINDOW = 4
_DOES = TaskAbility("right", (1.0, 0.0), (0.0, 1.0), 1.0, 1.0, 1.0)
SHORT, LONG = (40, 56), (72, 96)  # pairs stand 20 and 28, then 36 and 48 tokens back
BEFORE = [(0, 0), (0, 1)]


@pytest.fixture(scope="module", autouse=True)
def pairs():
    with registered_pairs():
        yield


@pytest.fixture(scope="module")
def m():
    return model_of_two_reaches()


def plan_for(m, *keep):
    return plan_of(m.layers, [*BEFORE, *keep], window=WINDOW, context=128)


@pytest.fixture(scope="module")
def near(m):
    """The verdict on a plan that keeps the head which sees 30 tokens back, and not the one that sees everything."""
    return verdict(m, plan_for(m, NEAR), [*SHORT, *LONG], ["far_pairs"])


def cell(found, arm, length, task="far_pairs"):
    (chosen,) = [c for c in found.cells if (c.arm, c.length, c.task) == (arm, length, task)]
    return chosen


def test_a_plan_that_fails_beyond_a_known_distance_loses_from_the_first_length_beyond_it(near):
    assert SHORT[-1] // 2 <= REACH < LONG[0] // 2
    assert near.loses_from == LONG[0]
    assert near.sentence.startswith("From 72 tokens on the plan loses more than 0.05 nats per answer: at 72 tokens ")
    assert "; at 96 tokens " in near.sentence
    assert near.sentence.endswith("; at 40 and 56 tokens it does not.")
    assert [near.state(n) for n in near.lengths] == ["holds", "holds", "loses", "loses"]
    assert [cell(near, "planned", n).right for n in near.lengths] == [1, 1, 0, 0]


def test_a_plan_that_keeps_what_sees_everything_loses_nothing_up_to_the_longest_tried(m):
    found = verdict(m, plan_for(m, FAR), [40, 96], ["far_pairs"])
    assert found.loses_from is None
    assert found.sentence == (
        "The plan loses no more than 0.05 nats per answer up to 96 tokens, the longest tried, on far_pairs."
    )
    assert max(cell(found, "planned", n).lost for n in (40, 96)) < 0.05
    assert cell(found, "windowed", 40).right == 0


def test_a_tolerance_of_more_than_is_lost_is_not_exceeded(m, near):
    most = max(c.lost_hi for c in near.cells if c.arm == "planned")
    found = verdict(m, plan_for(m, NEAR), [40, 96], ["far_pairs"], tolerance=LossTolerance(most + 1))
    assert found.loses_from is None
    assert found.tolerance == most + 1


def test_an_arm_is_what_the_model_answers_under_the_windows(m, near):
    """Loss and share of right answers from the logits, sequence by sequence."""
    probe = far_pairs(m, length=96, n_sequences=4, seed=1000)
    wide = far_pairs(m, length=96, n_sequences=8, seed=1000)
    chosen = wide.tokens[torch.linspace(0, 7, 4, dtype=torch.float64).round().long()]
    assert not torch.equal(chosen, probe.tokens)
    windowed = {"full": [], "planned": [KVHead(1, 1)], "windowed": [KVHead(i, h) for i in (0, 1) for h in (0, 1)]}
    for arm, heads in windowed.items():
        nats, right = [], []
        with m.restrict(heads, WINDOW):
            for text in chosen:
                logits = m.model(input_ids=text[None]).logits[0].log_softmax(-1)
                for row in (90, 92):
                    nats.append(-float(logits[row, text[row + 1]]))
                    right.append(int(logits[row].argmax()) == int(text[row + 1]))
        found = cell(near, arm, 96)
        assert (found.n_questions, found.n_texts) == (8, 4)
        assert found.nats == pytest.approx(np.mean(nats), abs=1e-5)
        assert found.right == np.mean(right)
    assert cell(near, "planned", 96).lost == pytest.approx(cell(near, "planned", 96).nats - cell(near, "full", 96).nats)


def test_the_cost_is_said_beforehand_and_is_what_it_takes(m):
    lines, tokens = [], []
    counter = m.model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        verdict(m, plan_for(m, FAR), [40, 96], ["far_pairs"], progress=lines.append)
    finally:
        counter.remove()
    assert lines == [
        f"the verdict at 40, 96 tokens takes up to {len(tokens)} forward passes, {sum(tokens):,} tokens in all",
        "40 tokens",
        "96 tokens",
    ]
    assert sum(tokens) == 3 * 4 * (40 + 96)


def test_a_task_that_the_model_cannot_do_does_not_count_and_is_not_tried_again(m):
    found = verdict(m, plan_for(m, FAR), [40, 96], ["far_pairs", "variable_tracking:hops=2,n_chains=3,n_asked=3"])
    assert found.tasks[0] == "far_pairs"
    reason = (
        "variable_tracking:hops=2,n_chains=3,n_asked=3, 2 hops at 40 tokens is left out: the model gets 0.00 of its"
    )
    assert found.remarks[0].startswith(reason)
    assert "not tried, since the model cannot do it at 40 tokens" in found.remarks[1]
    assert "variable_tracking" not in found.sentence
    assert set(found.area.task) == {"far_pairs"}


def test_where_no_task_counts_the_verdict_is_refused_with_every_reason(m):
    with pytest.raises(WorkbenchError, match="no task counts: variable_tracking:hops=2, 2 hops at 64 tokens is left"):
        verdict(m, plan_for(m, FAR), [64], ["variable_tracking:hops=2"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (dict(lengths=[4, 64]), "a length of 4 tokens was given, and a windowed head sees 4; pass longer ones"),
        (dict(lengths=[]), "no length was given"),
        (dict(lengths=[64, 500]), r"a length of 500 tokens was given, and the model's context has 128; pass shorter"),
        (dict(tasks=[]), "no task was given; expected some of copied needles"),
        (dict(tasks=["nothing"]), "no task counts: nothing at 64 tokens is left out: unknown probe 'nothing'"),
        (dict(tasks=["far_pairs:length=9"]), "sets length; leave it out"),
        (dict(tolerance=-1), "a tolerance of -1 nats was given"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_the_reason(m, arguments, reason):
    with pytest.raises(WorkbenchError, match=reason):
        verdict(m, plan_for(m, FAR), **{"lengths": [64], "tasks": ["far_pairs"], **arguments})


def test_lengths_follow_the_window_and_end_with_the_context(m):
    found = verdict(m, plan_for(m, FAR), tasks=["far_pairs"])
    assert found.lengths == (32, 64, 128)


def test_a_quick_effort_leaves_out_a_third_length_that_is_long(m, monkeypatch):
    monkeypatch.setattr(verdict_over_length, "_QUICK", 100)
    work = partial(verdict_work, m, Window(WINDOW, 1), tasks=["far_pairs"])
    assert list(work(effort="quick").made) == [32, 64]
    assert list(work(effort="standard").made) == [32, 64, 128]
    assert list(work([32, 128], effort="quick").made) == [32, 128]


def test_lengths_beyond_the_context_are_tried_on_request_and_flagged(monkeypatch):
    m = open_model(tiny("llama"))
    monkeypatch.setattr(m.model.config, "max_position_embeddings", 40)
    plan = plan_of(m.layers, [(0, 0)], window=WINDOW)
    monkeypatch.setattr(verdict_over_length, "ability", lambda *_, **__: _DOES)
    with pytest.warns(UserWarning, match="longer than the 40 positions"):
        found = verdict(m, plan, [36, 64], ["copied needles"], beyond_context=True)
    assert found.table().groupby("length").beyond_context.all().to_dict() == {36: False, 64: True}
    assert found.remarks == ["The model's context has 40 tokens: 64 tokens lie beyond it."]


def made(lost, *, tolerance=0.05, lengths=(512, 1024, 2048), task="needles"):
    """A verdict of one task with these losses and their intervals."""
    cells = []
    for length, (low, mean, high) in zip(lengths, lost, strict=True):
        nan = (0.9, math.nan, math.nan, 0.3, math.nan, math.nan)
        cells.append(VerdictCell(task, length, "full", *nan, 0.0, 0.0, 0.0, 8, 2))
        cells.append(VerdictCell(task, length, "planned", *nan, mean, low, high, 8, 2))
    return LengthVerdict(tolerance, 8192, tuple(cells))


HOLDS, LOSES, OPEN = (0.0, 0.01, 0.04), (0.1, 0.2, 0.3), (0.0, 0.06, 0.2)


@pytest.mark.parametrize(
    ("lost", "beginning", "end"),
    [
        ([HOLDS, HOLDS, HOLDS], "The plan loses no more than 0.05 nats per answer up to 2,048", "on needles."),
        ([HOLDS, LOSES, LOSES], "From 1,024 tokens on the plan loses more", "; at 512 tokens it does not."),
        ([OPEN, LOSES, LOSES], "From 1,024 tokens on the plan loses more", "; at 512 tokens it cannot be told."),
        ([LOSES, LOSES, OPEN], "At 512 and 1,024 tokens the plan loses", "; at 2,048 tokens it cannot be told."),
        (
            [HOLDS, HOLDS, OPEN],
            "Whether the plan loses more than 0.05 nats per answer cannot be told at 2,048 tokens: at 2,048 tokens on "
            "needles the 95 % interval",
            "at 512 and 1,024 tokens it does not. More texts narrow it: effort='thorough'.",
        ),
        (
            [(math.nan, 0.01, math.nan)] * 3,
            "Whether the plan loses more than 0.05 nats per answer cannot be told at 512, 1,024 and 2,048 tokens: "
            "needles has 8 questions",
            "effort='thorough'.",
        ),
    ],
)
def test_the_sentence_says_from_where_on_or_that_it_cannot_be_told(lost, beginning, end):
    sentence = made(lost).sentence
    assert sentence.startswith(beginning)
    assert sentence.endswith(end)


def test_one_length_says_nothing_of_longer_ones():
    sentence = made([LOSES], lengths=(512,)).sentence
    assert sentence.startswith("At 512 tokens the plan loses more than 0.05 nats per answer: at 512 tokens 0.20 (")


def test_the_area_is_the_mean_height_over_doublings():
    found = made([HOLDS, HOLDS, LOSES])
    right = {512: 1.0, 1024: 0.8, 2048: 0.2}
    found = replace(found, cells=tuple(replace(c, right=right[c.length]) for c in found.cells))
    by_hand = (0.5 * (1.0 + 0.8) + 0.5 * (0.8 + 0.2)) / 2
    assert found.area.set_index("arm").right["planned"] == pytest.approx(by_hand)
    assert found.area[["shortest", "longest"]].to_numpy().tolist() == [[512, 2048]] * 2
    one = replace(found, cells=found.cells[:2])
    assert one.area.right.isna().all()


def test_a_verdict_is_read_as_it_was_written():
    found = made([HOLDS, OPEN, (math.nan, 0.1, math.nan)])
    again = LengthVerdict.read(found.document())
    assert again.sentence == found.sentence
    assert again.table().equals(found.table())
