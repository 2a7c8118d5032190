"""Rankings on junctions with known answers, gates against finite differences, and completeness on trained models."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from tests.families import random_tokens, tiny
from tests.planning.junction import AND, CERTAINTY, OR, SUM, JunctionModel, far_answer
from tests.planted import VOCABULARY
from workbench import Head, KVHead, WorkbenchError, open_model, probes
from workbench.hooks.interventions.gates import gated
from workbench.planning import METHODS, Game, conversion_objective, rank, window_gates
from workbench.planning.answer_loss import LossBatch
from workbench.planning.rankings.duo_gates import duo_gates, duo_gates_annealed
from workbench.planning.rankings.one_by_one import greedy
from workbench.planning.rankings.window_gates import gate_gradients, integrate, path_nodes
from workbench.store.conversions import Window, softmax_heads

GAP = math.log(VOCABULARY)


def scores(junction, method, **kwargs):
    return rank(Game(open_model(JunctionModel(junction)), far_answer(), 4, **kwargs), method).scores


def test_heads_that_stand_in_for_each_other_share_the_gap():
    """Either is enough: leaving one out costs nothing, putting one back brings all, and half each is the truth."""
    assert scores(OR, "leave_one_windowed") == pytest.approx([0, 0], abs=1e-3)
    assert scores(OR, "restore_one") == pytest.approx([GAP, GAP], abs=1e-3)
    assert scores(OR, "window_gates") == pytest.approx([GAP / 2, GAP / 2], rel=0.02)


def test_heads_that_only_work_together_share_the_gap():
    assert scores(AND, "leave_one_windowed") == pytest.approx([GAP, GAP], abs=1e-3)
    assert scores(AND, "restore_one") == pytest.approx([0, 0], abs=1e-3)
    assert scores(AND, "window_gates") == pytest.approx([GAP / 2, GAP / 2], rel=0.02)


def test_in_a_linear_model_gates_are_what_leaving_one_out_costs(monkeypatch):
    m, probe = open_model(JunctionModel(SUM)), far_answer()

    def minus_the_logit(*_):
        rows = probe.answer_rows[:, 1]
        nats = lambda: -m.model(probe.tokens).logits[torch.arange(3), rows, 7]  # noqa: E731
        return [LossBatch(probe.tokens.shape[1], torch.ones(3, dtype=torch.bool), nats)]

    monkeypatch.setattr(conversion_objective, "loss_batches", minus_the_logit)
    for method in ("window_gates", "leave_one_windowed", "restore_one", "first_order"):
        assert rank(Game(m, probe, 4), method).scores == pytest.approx([3.6, 8.4], rel=1e-5)
    assert rank(Game(m, probe, 4), "greedy").order == [KVHead(0, 1), KVHead(0, 0)]


def test_greedy_of_few_picks_begins_like_greedy_and_goes_on_with_the_last_rounds_order():
    m = open_model(tiny("llama"))
    g = Game(m, probes.copy_needle(97, 16, length=40, n_sequences=4), 6)
    every = greedy(g).order
    assert greedy(g, picks=4).order == greedy(g, picks=99).order == every
    first = every[0]
    rest = [head for head in g.heads if head != first]
    by_gain = sorted(rest, key=lambda head: g.without([first, head]).mean())
    assert greedy(g, picks=2).order == [first, *by_gain]
    assert greedy(g, picks=1).order == sorted(g.heads, key=lambda head: g.without([head]).mean())


@pytest.mark.parametrize(
    "family", ["llama", "gpt_oss", "gemma2", "cwm", "llama4", "minimax", "deepseek_v3", "gptj", "bloom"]
)
@pytest.mark.parametrize("place", [0.3, 1.0])
def test_a_gates_gradient_is_the_slope_of_the_loss(family, place):
    m = open_model(tiny(family))
    g = Game(m, probes.copy_needle(97, 16, length=40, n_sequences=2), 6, sink=1)
    piece = g.batches[0]
    found = gate_gradients(g, piece, place)
    eps = 2e-3

    def loss(i, by):
        gates = torch.full((1, len(g.heads)), place)
        gates[0, i] += by
        with torch.no_grad(), gated(m, gates, g.limits):
            return piece.nats().double()

    slope = torch.stack([(loss(i, eps) - loss(i, -eps)) / (2 * eps) for i in range(len(g.heads))], -1)
    assert torch.allclose(found, slope, atol=5e-3 * float(slope.abs().max()) + 1e-3)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8])
def test_gauss_nodes_are_exact_to_degree_two_m_minus_one_and_midpoints_are_the_rectangle_rule(nodes):
    places, weights = path_nodes(nodes, "gauss")
    for degree in range(2 * nodes):
        assert weights @ places**degree == pytest.approx(1 / (degree + 1))
    places, weights = path_nodes(nodes, "midpoint")
    assert places == pytest.approx([(2 * i + 1) / (2 * nodes) for i in range(nodes)])
    assert (weights @ places, weights.sum()) == pytest.approx((1 / 2, 1))
    assert weights @ places**2 == pytest.approx(1 / 3 - 1 / (12 * nodes**2))


@pytest.mark.parametrize("quadrature", ["gauss", "midpoint"])
def test_the_scores_are_the_quadrature_of_the_slope_known_by_hand(quadrature):
    """Both heads together raise the answer's logit to c·(1 − (1 − a)²): the slope of each is known at every a."""
    for nodes in (2, 3, 8):
        places, weights = path_nodes(nodes, quadrature)
        logit = CERTAINTY * (1 - (1 - places) ** 2)
        wrong = (VOCABULARY - 1) / (VOCABULARY - 1 + np.exp(logit))
        expected = weights @ (wrong * CERTAINTY * (1 - places))
        g = Game(open_model(JunctionModel(OR)), far_answer(), 4)
        assert integrate(g, nodes=nodes, quadrature=quadrature).scores == pytest.approx([expected] * 2, rel=1e-4)


def test_unless_asked_few_nodes_are_midpoints_and_many_gauss():
    for nodes in range(1, 12):
        expected = path_nodes(nodes, "midpoint" if nodes <= 4 else "gauss")
        assert all(np.array_equal(a, b) for a, b in zip(path_nodes(nodes), expected, strict=True))


@pytest.mark.parametrize("family", ["llama", "gemma3", "minimax"])
def test_gates_of_one_are_the_model_and_of_zero_the_restricted_model(family):
    m = open_model(tiny(family))
    heads = softmax_heads(m.layers)
    tokens = random_tokens(2, 40)

    def logits():
        with torch.no_grad():
            return m.model(input_ids=tokens, use_cache=False).logits

    plain = logits()
    with m.restrict(heads, 6, 2):
        restricted = logits()
    with gated(m, torch.ones(1, len(heads)), Window(6, 2)):
        assert (logits() - plain).abs().max() < 5e-5
    with gated(m, torch.zeros(1, len(heads)), Window(6, 2)):
        assert (logits() - restricted).abs().max() < 5e-5
    mixed = torch.zeros(2, len(heads))
    mixed[1] = 1
    with gated(m, mixed, Window(6, 2)):
        assert torch.allclose(logits(), torch.stack([restricted[0], plain[1]]), atol=5e-5)
    assert torch.equal(logits(), plain)
    assert all(p.requires_grad for p in m.model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "minimax"])
def test_recomputing_layers_gives_the_same_gradients_and_leaves_no_trace(family):
    m = open_model(tiny(family))
    tokens = random_tokens(2, 40)
    found = []
    for checkpointed in (False, True):
        gates = torch.full((2, len(softmax_heads(m.layers))), 0.4, requires_grad=True)
        with gated(m, gates, Window(6), checkpointed=checkpointed):
            m.model(input_ids=tokens, use_cache=False).logits[:, -1].logsumexp(-1).sum().backward()
        found.append(gates.grad)
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert not any("forward" in vars(x) for x in m.model.modules())


def test_heads_of_layers_narrower_than_the_window_have_no_worth_and_no_place():
    m, probe = open_model(tiny("cwm")), probes.copy_needle(97, 16, length=40, n_sequences=4)
    found = window_gates(m, probe, 9)
    assert found.heads == (KVHead(1, 0), KVHead(1, 1))
    assert np.abs(found.scores).max() > 1e-4
    with m.restrict([KVHead(0, 0), KVHead(0, 1)], 9):
        assert m.answers(probe).loss_nats.mean().item() == pytest.approx(found.full, abs=1e-6)


def test_the_divergence_from_the_model_itself_needs_no_right_answers():
    m = open_model(tiny("llama"))
    g = Game(m, probes.copy_needle(97, 16, length=40, n_sequences=4), 12, objective="kl")
    assert g.nats() == pytest.approx(np.zeros(4), abs=1e-5)
    assert (g.nats(g.heads) > 0).all()
    found = rank(g, "leave_one_windowed")
    assert (found.per_sequence >= -1e-5).all()


def test_every_method_ranks_every_head_and_none_leaves_a_trace(monkeypatch):
    for name, train in (("duo_gates", duo_gates), ("duo_gates_annealed", duo_gates_annealed)):
        monkeypatch.setitem(METHODS, name, partial(train, steps=5))
    m = open_model(tiny("llama"))
    g = Game(m, probes.copy_needle(97, 16, length=40, n_sequences=4), 6, sink=1)
    before = g.nats()
    for method in METHODS:
        found = rank(g, method)
        assert found.heads == g.heads
        assert np.isfinite(found.scores).all()
        assert sorted(found.order) == sorted(g.heads)
        if found.per_sequence is not None:
            assert found.per_sequence.mean(0) == pytest.approx(found.scores)
    assert np.array_equal(g.nats(), before)


def test_ablations_of_a_group_take_all_its_query_heads():
    m = open_model(tiny("llama"))
    g = Game(m, probes.copy_needle(97, 16, length=40, n_sequences=4), 6)
    found = rank(g, "ablate_zero")
    full = g.nats().mean()
    with m.ablate([Head(1, 2), Head(1, 3)]):
        expected = g.nats().mean() - full
    assert found.scores[g.heads.index(KVHead(1, 1))] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(window=0), "window 0, sink 0: expected a window of at least 1"),
        (dict(window=4, nodes=0), "nodes is 0; expected at least 1"),
    ],
)
def test_impossible_games_are_refused(kwargs, message):
    with pytest.raises(WorkbenchError, match=message):
        window_gates(open_model(JunctionModel(OR)), far_answer(), **kwargs)


def test_a_probe_without_answers_and_an_unknown_method_are_refused():
    m = open_model(tiny("llama"))
    with pytest.raises(WorkbenchError, match="has no answers"):
        window_gates(m, probes.make_probe("bare", random_tokens(1, 9)), 4)
    with pytest.raises(WorkbenchError, match="unknown method 'gates'; expected one of window_gates, leave_one"):
        rank(Game(m, probes.copy_needle(97, 16, length=40, n_sequences=2), 4), "gates")
