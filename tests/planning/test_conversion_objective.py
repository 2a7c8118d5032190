"""A game of heads that become different things: windows and linear attention mixed, one path of gates for all."""

import numpy as np
import pytest
import torch

from tests.families import random_tokens, tiny
from tests.planning.junction import AND, OR, SUM, JunctionModel, far_answer
from workbench import KVHead, LinearAttention, WorkbenchError, open_model, probes, window_gates
from workbench.hooks.interventions.gates import gated
from workbench.planning import Game, rank
from workbench.store.conversions import Window

FORM = LinearAttention("elu", 2.0, 0.9)
MIXED = {KVHead(0, 0): Window(6, 1), KVHead(1, 1): FORM, KVHead(1, 0): Window(4)}
# One head that a window keeps from the first token, one that forgets it within a token.
BLIND = {KVHead(0, 0): Window(1), KVHead(0, 1): LinearAttention("elu", decay=1e-6)}


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("llama"))


def needles():
    return probes.copy_needle(97, 20, length=36, n_sequences=3)


def test_heads_become_each_its_own_conversion_at_once(m):
    game = Game(m, needles(), MIXED)
    assert game.heads == tuple(sorted(MIXED))
    with m.restrict([KVHead(0, 0)], 6, 1), m.restrict([KVHead(1, 0)], 4), m.linearize({KVHead(1, 1): FORM}):
        expected = m.answers(needles()).loss_nats
    np.testing.assert_allclose(game.outcome(game.heads).nats, expected.double().mean(), atol=1e-6)
    with m.linearize({KVHead(1, 1): FORM}):
        expected = m.answers(needles()).loss_nats
    np.testing.assert_allclose(game.outcome([KVHead(1, 1)]).nats, expected.double().mean(), atol=1e-6)


def test_one_path_of_gates_leads_from_all_conversions_to_the_model(m):
    tokens, heads = random_tokens(2, 30), sorted(MIXED)

    def logits():
        with torch.no_grad():
            return m.model(input_ids=tokens, use_cache=False).logits

    with m.restrict([heads[0]], 6, 1), m.restrict([heads[1]], 4), m.linearize({heads[2]: FORM}):
        converted = logits()
    for gate, expected in ((1.0, logits()), (0.0, converted)):
        with gated(m, torch.full((1, 3), gate), MIXED):
            torch.testing.assert_close(logits(), expected, atol=2e-5, rtol=0)
    with gated(m, torch.tensor([[1.0, 1.0, 0.0]]), MIXED):
        among = logits()
    with m.linearize({heads[2]: FORM}):
        torch.testing.assert_close(logits(), among, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("junction", "gates", "alone"), [(OR, (0.5, 0.5), (0, 0)), (AND, (0.5, 0.5), (1, 1)), (SUM, (0.3, 0.7), (0.3, 0.7))]
)
def test_scores_towards_different_conversions_are_known_by_hand(junction, gates, alone, monkeypatch):
    monkeypatch.setattr("workbench.planning.answer_loss.cross_entropy", lambda logits, *_, **__: -logits[:, 7] / 2)
    game = Game(open_model(JunctionModel(junction)), far_answer(), BLIND)
    for method, shares in {"window_gates": gates, "leave_one_windowed": alone}.items():
        np.testing.assert_allclose(rank(game, method).scores, 6 * np.array(shares), atol=2e-4)


def test_the_same_window_for_each_head_is_the_window_for_all(m):
    heads = [KVHead(layer, h) for layer in range(2) for h in range(2)]
    by_head = window_gates(m, needles(), dict.fromkeys(heads, Window(6, 1)), nodes=2)
    for_all = window_gates(m, needles(), 6, sink=1, nodes=2)
    assert by_head.heads == for_all.heads
    np.testing.assert_allclose(by_head.per_sequence, for_all.per_sequence, atol=1e-6)
    assert Game(m, needles(), dict.fromkeys(heads, Window(6, 1))).limits == Window(6, 1)


def test_heads_that_see_no_further_by_themselves_are_no_players():
    m = open_model(tiny("gemma3"))
    own = {i.window for i in m.layers if i.kind == "sliding"}
    (width,) = own
    full = {i.index for i in m.layers if i.kind == "full"}
    assert {head.layer for head in Game(m, needles(), width).heads} == full
    assert {head.layer for head in Game(m, needles(), width - 1).heads} == {i.index for i in m.layers}
    assert {head.layer for head in rank(Game(m, needles(), width), "far_mass").heads} == full
    with pytest.raises(WorkbenchError, match=r"no head of .* sees further back than 20 tokens by itself"):
        Game(open_model(tiny("mistral")), needles(), 20)


@pytest.mark.parametrize(
    ("conversions", "message"),
    [
        ({KVHead(0, 0): Window(0)}, "window 0, sink 0: expected a window of at least 1"),
        ({KVHead(0, 9): Window(4)}, "layer 0 has no key/value head 9"),
        ({}, "0 conversions, sink 0: expected a conversion for a head or more, and sinks in the windows"),
    ],
)
def test_conversions_that_a_head_cannot_have_are_refused(m, conversions, message):
    with pytest.raises(WorkbenchError, match=message):
        Game(m, needles(), conversions)


def test_what_is_about_one_window_is_refused_where_there_are_several(m):
    with pytest.raises(WorkbenchError, match="given windows of their own, and this is defined for one window"):
        rank(Game(m, needles(), MIXED), "far_mass")
