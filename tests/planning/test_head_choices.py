"""Plans with two conversions: what each head gets, by hand and on a trained model, and what is lost together."""

from dataclasses import replace

import numpy as np
import pytest

from tests.families import tiny
from tests.planning.junction import SUM, JunctionModel, far_answer
from tests.planning.test_completeness import last_checkpoint, needles
from workbench import KVHead, LinearAttention, LossTolerance, Plan, WorkbenchError, open_model, plan, probes, score
from workbench.planning import Evaluation, Game, LinearFit, head_choices, rank
from workbench.planning.head_choices import Costs, choose
from workbench.store.conversions import Window

EVEN, BLIND = LinearAttention("elu", 1e-3), LinearAttention("elu", decay=1e-6)
FIRST, SECOND = KVHead(0, 0), KVHead(0, 1)


def fit_of(**forms):
    """A fit by hand: forms of the heads of layer 0 as `h0`, `h1`, usable unless flagged."""
    by_head = {KVHead(0, int(name[1:])): form for name, form in forms.items()}
    return LinearFit(by_head, dict.fromkeys(by_head, 0.1), dict.fromkeys(by_head, ""))


@pytest.fixture
def linear_nats(monkeypatch):
    """Nats that are the missing logit of the answer, so that what heads lose is known by hand."""
    monkeypatch.setattr("workbench.planning.answer_loss.cross_entropy", lambda logits, *_, **__: -logits[:, 7] / 2)


@pytest.mark.parametrize(
    ("costs", "is_smaller", "gets_linear"),
    [
        (Costs(0.5, 0.001), False, True),  # the only safe one
        (Costs(0.001, 0.5), True, False),
        (Costs(0.001, 0.002), True, True),  # both are safe: the smaller
        (Costs(0.002, 0.001), False, False),
        (Costs(0.5, 0.2), False, True),  # neither is: the one that costs less
        (Costs(0.2, 0.5), True, False),
        (Costs(0.5), True, False),  # no usable form
    ],
)
def test_the_cheaper_safe_conversion_is_taken_or_else_the_one_that_costs_less(costs, is_smaller, gets_linear):
    assert costs.prefers_linear(0.01, is_smaller=is_smaller) == gets_linear


@pytest.mark.usefixtures("linear_nats")
def test_a_flagged_fit_and_a_state_larger_than_the_cache_are_never_chosen():
    game = Game(open_model(JunctionModel(SUM)), far_answer(), 1)
    good = fit_of(h0=EVEN, h1=EVEN)
    settings = dict(nodes=None, context=4096)
    assert set(choose(game, ("window", good), 0.25, **settings).linear) == {FIRST, SECOND}
    flagged = replace(good, flags={FIRST: "ladder_end", SECOND: ""})
    chosen = choose(game, ("window", flagged), 0.25, **settings)
    assert set(chosen.linear) == {SECOND}
    assert {c.head: c.linear_flags for c in chosen.costs} == {FIRST: "ladder_end", SECOND: ""}
    assert np.isnan(next(c for c in chosen.costs if c.head == FIRST).linear_nats)
    assert "1 of 2 heads get no linear attention whatever it costs" in chosen.remarks[0]
    short = choose(game, ("window", good), 0.25, nodes=None, context=20)
    assert short.linear == {}
    assert "its state is larger than their whole cache" in short.remarks[0]


@pytest.mark.usefixtures("linear_nats")
def test_costs_are_those_of_gates_towards_either():
    game = Game(open_model(JunctionModel(SUM)), far_answer(), 1)
    chosen = choose(game, ("window", fit_of(h0=BLIND, h1=EVEN)), 0.25, nodes=None, context=4096)
    windowed = rank(game, "window_gates").scores
    linear = rank(game.towards({FIRST: BLIND, SECOND: EVEN}), "window_gates").scores
    np.testing.assert_allclose([c.window_nats for c in chosen.costs], windowed, atol=1e-9)
    np.testing.assert_allclose([c.linear_nats for c in chosen.costs], linear, atol=1e-9)
    np.testing.assert_allclose(windowed, [1.8, 4.2], atol=2e-4)


@pytest.mark.usefixtures("linear_nats")
def test_too_much_lost_together_lowers_the_worst_first_and_is_said(monkeypatch):
    """Each head alone is safe by its gates; the tolerance does not hold both."""
    game = Game(open_model(JunctionModel(SUM)), far_answer(), 1)
    monkeypatch.setattr(head_choices, "SAFE_NATS", 10.0)
    fit = fit_of(h0=BLIND, h1=BLIND)
    monkeypatch.setattr(head_choices.Costs, "prefers_linear", lambda *_, **__: True)
    free = choose(game, ("window", fit), 0.25, nodes=None, context=4096)
    lost = 6 * (0.3 + 0.7)
    assert free.evidence["linear_lowered"] == 0
    tight = choose(game, ("window", fit), LossTolerance(2 * 0.4 * lost), nodes=None, context=4096)
    assert set(tight.linear) == {FIRST}  # whose loss is .3 of the whole
    assert tight.conversions[SECOND] == Window(1)
    assert tight.evidence["linear_lowered"] == 1
    assert tight.evidence["linear_lost_nats"] == pytest.approx(
        game.towards(dict.fromkeys([FIRST, SECOND], BLIND)).outcome([FIRST]).nats - game.outcome().nats
    )
    assert any("1 of 2 heads get a window and not the linear attention" in remark for remark in tight.remarks)
    none = choose(game, ("window", fit), LossTolerance(0.0), nodes=None, context=4096)
    assert none.linear == {}
    assert none.evidence["linear_lost_nats"] == 0


@pytest.fixture(scope="module")
def trained(demo):
    return open_model(last_checkpoint(demo / "checkpoints" / "full"))


@pytest.fixture(scope="module")
def evaluation():
    probe = needles()
    ranked, held_out = (
        replace(probes.part(probe, *rows), name=name) for name, rows in (("ranked", (12, 24)), ("held_out", (0, 12)))
    )
    return Evaluation(ranked, (held_out,), context=4096, baselines=())


@pytest.fixture(scope="module")
def made(trained, evaluation):
    settings = dict(evaluation=evaluation, choices=("window", "linear"), progress=False, verdict=False)
    return plan(trained, 8, 0, 0.25, **settings)


def test_a_plan_has_windows_linear_heads_and_full_ones_and_says_what_they_lose(trained, made, evaluation, tmp_path):
    assert set(made.table().choice) == {"full", "window", "linear"}
    assert set(made.keep) | set(made.windowed) | set(made.linear) == {r.head for r in made.ranking}
    with trained.apply(made):
        nats = trained.answers(evaluation.held_out[0]).loss_nats.double().mean().item()
    full = trained.answers(evaluation.held_out[0]).loss_nats.double().mean().item()
    assert made.evidence["lost_nats"] == pytest.approx(nats - full, abs=1e-5)
    point = next(p for p in made.curve if p.n_kept == len(made.keep))
    assert point.nats == pytest.approx(nats, abs=1e-5)
    assert point.kv_saved == pytest.approx(made.kv_saved)
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").choices == made.choices


def test_no_head_with_a_flag_is_linear_and_every_linear_head_is_the_safe_one(made):
    table = made.table().set_index(["layer", "kv_head"])
    linear = table[table.choice == "linear"]
    assert (linear.linear_flags == "").all()
    assert (linear.linear_error <= 1).all()
    assert ((linear.linear_nats <= 0.01) | (linear.linear_nats < linear.window_nats)).all()


def test_the_head_that_looks_one_token_back_gets_a_window_and_not_linear_attention(trained, made, evaluation):
    back = score(trained, ["previous_token"], probes=[evaluation.probe]).set_index(["layer", "head"]).score.idxmax()
    assert KVHead(*back) in made.windowed


def test_a_plan_of_windows_alone_is_the_same_with_either_choice_where_none_is_linear(monkeypatch):
    m = open_model(tiny("llama"))
    probe = [probes.copy_needle(97, 20, length=36, n_sequences=3, seed=s, name=f"needles_{s}") for s in range(2)]
    evaluation = Evaluation(probe[0], (probe[1],), context=20, baselines=("far_mass",))
    settings = dict(evaluation=evaluation, effort="quick", progress=False, verdict=False)
    both = plan(m, 6, 1, 0.5, choices=("window", "linear"), **settings)  # a state is larger than 20 tokens
    alone = plan(m, 6, 1, 0.5, **settings)
    assert both.linear == {}
    assert (both.keep, both.windowed) == (alone.keep, alone.windowed)
    np.testing.assert_array_equal([r.score for r in both.ranking], [r.score for r in alone.ranking])
    assert len(both.costs) == 4
    assert alone.costs == ()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (("linear",), r"choices are \('linear',\); expected \('window',\) or \('window', 'linear'\)"),
        ((), r"choices are \(\); expected"),
        (("window", "window"), "expected"),
        (("window", "linear", "linear"), "expected"),
    ],
)
def test_choices_that_are_none_are_refused(choices, message):
    with pytest.raises(WorkbenchError, match=message):
        plan(open_model(tiny("llama")), 6, choices=choices)


def test_a_model_whose_layers_all_slide_has_no_linear_heads():
    m = open_model(tiny("mistral"))
    probe = [probes.copy_needle(97, 20, length=36, n_sequences=3, seed=s, name=f"needles_{s}") for s in range(2)]
    evaluation = Evaluation(probe[0], (probe[1],), context=64, baselines=())
    with pytest.raises(WorkbenchError, match=r"no layer of the model sees its whole past.*choices=\('window',\)"):
        plan(m, 4, evaluation=evaluation, choices=("window", "linear"), progress=False)
