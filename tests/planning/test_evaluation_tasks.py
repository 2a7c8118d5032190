"""The evaluation that a plan gets where nobody wrote one: tasks that the model can do, and what is left out and why."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from tests.families import CONFIGS, tiny
from tests.planning.far_pairs import far_pairs
from tests.probes.models import bpe_model
from workbench import WorkbenchError, open_model, plan
from workbench.planning import Evaluation, default_evaluation, tasks_it_can_do
from workbench.planning.conversion_objective import Game
from workbench.planning.evaluation_tasks import completed
from workbench.planning.far_tasks import far_probe
from workbench.planning.question_scores import AnsweredRows, QuestionScores, mean_interval, question_scores
from workbench.planning.task_abilities import TaskAbility, ability
from workbench.store.conversions import Window

WINDOW, SINK = 24, 4
FIVE = np.arange(5)


@pytest.fixture(scope="module")
def m():
    """A model that was never trained, with a tokenizer."""
    from transformers import AutoModelForCausalLM

    config = CONFIGS["llama"]()
    config.vocab_size, config.max_position_embeddings = 1500, 8192
    config.bos_token_id, config.eos_token_id = 0, 1
    torch.manual_seed(0)
    return open_model(AutoModelForCausalLM.from_config(config).eval(), tokenizer=bpe_model().tokenizer)


def scores(right, nats=1.0, n=5):
    return QuestionScores(np.full(n, float(right)), np.full(n, float(nats)), np.arange(n), np.full(n, -1))


@cache
def probe_once(m, task, limits, **sizes):
    """Text is written once for all tests."""
    return far_probe(m, task, limits, **sizes)


@pytest.fixture
def doing(monkeypatch):
    """Give the model these shares of right answers, and nats, on the default tasks: (as it is, windowed) by name."""
    monkeypatch.setattr(tasks_it_can_do, "far_probe", probe_once)

    def give(**shares):
        arms = iter([0, 1])

        def answered(_, probes, *, on_tokens=None):
            arm = next(arms)
            return [AnsweredRows(*(np.full(len(p.answer_rows), x) for x in shares[p.name][arm])) for p in probes]

        monkeypatch.setattr(tasks_it_can_do, "answered", answered)

    return give


ALL = dict(
    niah_multiquery=[(0.9, 0.3), (0.2, 3.0)],
    variable_tracking=[(0.8, 0.3), (0.2, 3.0)],
    repeated_ngrams=[(0.7, 0.9), (0.7, 1.2)],
    common_words=[(0.6, 0.9), (0.1, 1.2)],
)


def test_heads_are_ranked_on_needles_and_chains_and_judged_on_other_seeds_and_tasks(m, doing):
    doing(**ALL)
    found = default_evaluation(m, WINDOW, SINK, n_sequences=10)
    assert (found.probe.name, len(found.probe.tokens)) == ("niah_multiquery+variable_tracking", 10)
    assert [p.name for p in found.held_out] == list(ALL)
    assert found.context == 8192
    assert found.left_out == ()
    ranked = {tuple(text) for text in found.probe.tokens.tolist()}
    assert not any(tuple(text) in ranked for p in found.held_out for text in p.tokens.tolist())
    for probe in (found.probe, *found.held_out[:3]):  # of common words no single cell is the answer
        _, row, key = probe.target_cells.unbind(-1)
        assert bool(((row - key >= WINDOW) & (key >= SINK)).all())


def test_a_task_that_the_model_cannot_do_is_left_out_with_its_sentence(m, doing):
    doing(**{**ALL, "variable_tracking": [(0.21, 2.0), (0.1, 3.0)], "common_words": [(0.9, 0.1), (0.9, 0.1)]})
    found = default_evaluation(m, WINDOW, SINK, n_sequences=10)
    assert found.probe.name == "niah_multiquery"
    assert len(found.probe.tokens) == 10
    assert [p.name for p in found.held_out] == ["niah_multiquery", "repeated_ngrams"]
    assert found.left_out == (
        "variable tracking is left out: the model gets 0.21 of its answers right, less than half (0.10 with every head "
        "windowed).",
        "common words is left out: the model gets 0.90 of its answers right and 0.90 with every head windowed, no more "
        "beyond the interval (95 % interval 0.00 to 0.00): it needs nothing far.",
    )


def test_natural_text_counts_by_its_loss_alone(m, doing):
    nothing = [(0.0, 9.0), (0.0, 9.0)]
    doing(**{**dict.fromkeys(ALL, nothing), "repeated_ngrams": ALL["repeated_ngrams"]})
    found = default_evaluation(m, WINDOW, SINK, n_sequences=10)
    assert found.probe.name == "repeated_ngrams"
    assert [p.name for p in found.held_out] == ["repeated_ngrams"]
    assert not torch.equal(found.probe.tokens[:5], found.held_out[0].tokens)


def test_what_was_measured_when_tasks_were_tried_is_what_the_curve_begins_and_ends_with(m, monkeypatch):
    monkeypatch.setattr(tasks_it_can_do, "far_probe", probe_once)
    monkeypatch.setattr(TaskAbility, "reason", "")  # it was never trained
    tried = default_evaluation(m, WINDOW, SINK, n_sequences=6)
    assert set(tried.ends) == {p.digest for p in tried.held_out}
    for probe in tried.held_out:
        game = Game(m, probe, WINDOW, sink=SINK)
        for end, heads in zip(tried.ends[probe.digest], ((), game.heads), strict=True):
            own = game.outcome(heads)
            assert (end.nats, end.accuracy) == (pytest.approx(own.nats, abs=1e-5), own.accuracy)
            assert end.sums == pytest.approx(own.sums, abs=1e-4)
        known = Game(m, probe, WINDOW, sink=SINK, ends=tried.ends[probe.digest])
        assert known.n_measured == 2
        assert (known.outcome(), known.outcome(game.heads)) == tried.ends[probe.digest]
        assert known.n_measured == 2
        assert known.outcome(game.heads[:1]) == game.outcome(game.heads[:1])
        assert known.n_measured == 3
    # An evaluation that is passed on may be of another model or another window.
    assert completed(m, tried, WINDOW + 1, SINK, n_sequences=6).ends == {}


def test_a_model_that_can_do_none_of_the_tasks_gets_no_plan_and_is_told_what_to_do(m):
    """It answers for itself here."""
    with pytest.raises(WorkbenchError) as error:
        plan(m, WINDOW, SINK, effort="quick", progress=False)
    message = str(error.value)
    assert message.startswith(f"no default task can judge a plan with window {WINDOW} and sink {SINK}: needles is left")
    for task in ("needles", "variable tracking"):
        assert f"{task} is left out: the model gets 0.0" in message
    for way in ("--probe", "--held-out", "another window", "objective='kl'"):
        assert way in message


def test_a_plan_on_a_probe_of_ones_own_that_the_model_cannot_do_says_so():
    m = open_model(tiny("llama"))
    own = Evaluation(far_pairs(m, length=40), (far_pairs(m, length=40, seed=1),), baselines=())
    made = plan(m, 6, evaluation=own, method="far_mass", effort="quick", verdict=False, progress=False)
    assert made.curve[-1].accuracy < 0.5
    assert made.remarks[-1].startswith(f"far_pairs: the model itself gets {made.curve[-1].accuracy:.2f} of the answers")


def test_an_evaluation_may_say_its_objective_alone():
    m = open_model(tiny("llama"))
    found = completed(m, Evaluation(objective="kl"), WINDOW, 0, n_sequences=2)
    assert found.objective == "kl"
    assert found.probe.name == "far_needle_0"
    assert [p.name for p in found.held_out] == ["far_needle_1"]


def test_the_divergence_from_the_model_itself_needs_no_right_answers(m):
    found = completed(m, Evaluation(objective="kl"), WINDOW, 0, n_sequences=2)
    assert found.probe.name == "niah_multiquery+variable_tracking"
    assert found.left_out == ()


def test_what_an_evaluation_says_is_taken_and_the_rest_is_completed():
    m = open_model(tiny("llama"))
    own = far_pairs(m, length=64)
    found = completed(m, Evaluation(own), 8, 0, n_sequences=2)
    assert found.probe is own
    assert [p.name for p in found.held_out] == ["far_needle_1"]
    whole = Evaluation(own, (far_pairs(m, length=64, seed=1),), context=99, baselines=())
    again = completed(m, whole, 8, 0)
    assert (again.context, again.baselines, again.held_out) == (99, (), whole.held_out)
    assert completed(m, again, 8, 0) == again
    assert completed(m, replace(whole, context=None), 8, 0).context == 8192


def test_lengths_follow_the_window_and_a_hybrid_has_needles_beyond_its_own_windows(m, monkeypatch):
    assert tasks_it_can_do.far_length(m, Window(24, 4)) == 512
    assert tasks_it_can_do.far_length(m, Window(256, 4)) == 1560
    assert tasks_it_can_do.far_length(m, Window(128, 4)) == 792
    assert tasks_it_can_do.far_length(m, Window(1024, 0)) == 2048
    with pytest.raises(WorkbenchError, match="leave nothing far in a context of 8192 tokens; pass a smaller window"):
        tasks_it_can_do.far_length(m, Window(8192, 0))
    hybrid = open_model(tiny("gemma3"))
    monkeypatch.setattr(hybrid.config, "max_position_embeddings", 8192)
    widest = max(i.window for i in hybrid.layers if i.window is not None)
    hybrid._layers = tuple(replace(i, window=700) if i.window == widest else i for i in hybrid.layers)
    assert tasks_it_can_do.far_length(hybrid, Window(24, 4)) == 1400


@pytest.mark.parametrize(
    ("full", "windowed", "verdict"),
    [
        ((0.9, 0.1), (0.2, 2.0), "does"),
        ((0.9, 0.1), (0.9, 0.1), "not far"),
        ((0.4, 0.1), (0.2, 2.0), "partly"),
        ((0.1, 0.1), (0.1, 2.0), "cannot"),
    ],
)
def test_half_of_the_answers_and_more_than_windowed_make_it_can(full, windowed, verdict):
    found = ability("right", scores(*full), scores(*windowed))
    assert found.verdict == verdict
    assert bool(found.reason) == (verdict != "does")


def test_more_by_less_than_the_interval_is_not_more():
    full = QuestionScores(np.array([1.0, 1, 1, 0.5, 0.5, 1]), np.ones(6), np.arange(6), np.full(6, -1))
    windowed = replace(full, right=np.array([1.0, 0.9, 1, 1, 0.2, 0.9]))
    found = ability("right", full, windowed)
    assert found.gain == pytest.approx(0)
    assert found.verdict == "not far"


def test_a_question_is_a_run_of_answer_rows_and_its_scores_are_means_over_them():
    m = open_model(tiny("llama"))
    probe = far_pairs(m, length=40, n_sequences=3)
    (found,) = question_scores(m, [probe])
    answers = m.answers(probe)
    assert found.text.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.nats == pytest.approx(answers.loss_nats.double().numpy(), abs=1e-6)
    several, alone = question_scores(m, [probe, far_pairs(m, length=40, seed=5)])
    assert several.nats == pytest.approx(found.nats, abs=1e-5)
    assert alone.nats == pytest.approx(question_scores(m, [far_pairs(m, length=40, seed=5)])[0].nats, abs=1e-5)


def test_an_interval_is_over_texts_where_there_are_five_and_else_over_questions():
    values = np.array([0.0, 0, 1, 1, 0, 0, 1, 1, 0, 1])
    together = np.repeat(FIVE, 2)
    low, high = mean_interval(values, together, seed=0)
    # Texts hold equal questions but the last, so that drawing texts is wider than drawing questions.
    narrow_low, narrow_high = mean_interval(values, np.zeros(10, dtype=int), seed=0)
    assert high - low > narrow_high - narrow_low
    assert all(np.isnan(mean_interval(values[:4], FIVE[:4], seed=0)))


def test_where_no_task_can_be_written_needles_of_tokens_take_its_place_and_it_is_said(m, monkeypatch):
    def fails(*_arguments, **_settings):
        raise WorkbenchError("the tokenizer cannot spell the task")

    monkeypatch.setattr(tasks_it_can_do, "far_probe", fails)
    evaluation = default_evaluation(m, 8, 0, n_sequences=6)
    assert evaluation.probe.name == "far_needle_0"
    assert [probe.name for probe in evaluation.held_out] == ["far_needle_1"]
    assert "take the place of text: needles is left out: the tokenizer cannot spell" in evaluation.left_out[0]
