"""The rankings that window gates are compared with: each against what it says it is, computed another way."""

from functools import partial

import numpy as np
import pytest
import torch

from tests.families import tiny
from tests.planning.junction import AND, OR, JunctionModel, far_answer
from workbench import KVHead, WorkbenchError, open_model, probes, score
from workbench.hooks.interventions.gates import gated
from workbench.planning import METHODS, Game, rank
from workbench.planning.rankings.duo_gates import duo_gates, duo_gates_annealed
from workbench.probes import make_probe

WINDOW, SINK = 6, 1


def needles(**others):
    return probes.copy_needle(97, 20, length=36, **{"n_sequences": 3, **others})


def game_of(family, probe=None, **others):
    return Game(open_model(tiny(family)), probe or needles(), WINDOW, sink=SINK, **others)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "deepseek_v3", "bloom", "gptj", "minimax"])
@pytest.mark.parametrize("rows", ["answers", "all"])
def test_output_error_is_what_a_window_changes_of_what_the_layer_writes(family, rows):
    """Of the first softmax layer, whose input no window changes: its own output with and without the restriction."""
    g = game_of(family)
    found = rank(g, "output_error" if rows == "answers" else "output_error_all")
    layer = g.heads[0].layer
    blocks = next(x for x in g.m.model.modules() if isinstance(x, torch.nn.ModuleList) and len(x) == 2)
    names = ("self_attn", "attn", "attention", "self_attention")
    attention = next(getattr(blocks[layer], name) for name in names if hasattr(blocks[layer], name))

    def written(heads):
        seen = []
        handle = attention.register_forward_hook(
            lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.no_grad(), g.m.restrict(heads, WINDOW, SINK):
            g.m.model(input_ids=g.probe.tokens, use_cache=False)
        handle.remove()
        return seen[0]

    for head in [h for h in g.heads if h.layer == layer]:
        norms = (written([head]) - written([])).norm(dim=-1)
        expected = norms[tuple(g.probe.answer_rows.T)].mean() if rows == "answers" else norms.mean()
        assert found.scores[g.heads.index(head)] == pytest.approx(float(expected), rel=1e-3)


def test_output_error_is_refused_where_a_gate_stands_before_the_projection():
    g = Game(open_model(_gated()), needles(), WINDOW)
    with pytest.raises(WorkbenchError, match=r"does not hand its heads' outputs.*use far_mass or window_gates"):
        rank(g, "output_error")
    assert not any(module._forward_pre_hooks for module in g.m.model.modules())


def _gated():
    from tests.linear_families import tiny as linear_tiny

    return linear_tiny("qwen3_next")


@pytest.mark.parametrize(("method", "place"), [("first_order", 1.0), ("gradient_at_zero", 0.0)])
def test_slopes_are_those_of_the_loss_at_the_ends(method, place):
    g = game_of("llama")
    found, eps = rank(g, method), 1e-2

    def loss(i, by):
        gates = torch.full((1, len(g.heads)), place)
        gates[0, i] += by
        with torch.no_grad(), gated(g.m, gates, g.limits):
            return float(torch.cat([p.nats() for p in g.batches]).double().mean())

    slopes = [-(loss(i, eps) - loss(i, -eps)) / (2 * eps) for i in range(len(g.heads))]
    assert found.scores == pytest.approx(slopes, abs=5e-3 * max(map(abs, slopes)) + 1e-3)


def test_slopes_see_only_one_of_two_junctions():
    def slopes(junction, method):
        return rank(Game(open_model(JunctionModel(junction)), far_answer(), 4), method).scores

    assert slopes(OR, "first_order") == pytest.approx([0, 0], abs=1e-3)
    assert slopes(AND, "gradient_at_zero") == pytest.approx([0, 0], abs=1e-3)
    assert (slopes(AND, "first_order") > 1e-5).all()
    assert (slopes(OR, "gradient_at_zero") > 1).all()


@pytest.mark.parametrize("name", ["mean_distance", "retrieval", "induction"])
def test_a_prior_is_the_largest_score_of_the_groups_query_heads(name):
    g = game_of("llama")
    table = score(g.m, [name], probes=g.probe)
    best = table.groupby(["layer", "kv_head"]).score.max()
    found = rank(g, name)
    assert found.scores == pytest.approx([best[h] for h in g.heads])
    assert found.units == ("tokens" if name == "mean_distance" else "probability")


def test_far_mass_is_of_each_sequences_own_answer_rows():
    g = game_of("llama")
    mixed = g.probe.answer_rows.clone()
    mixed[mixed[:, 0] == 1, 1] -= 9  # one sequence is asked elsewhere
    probe = make_probe("mixed", g.probe.tokens, answer_rows=mixed)
    found = rank(Game(g.m, probe, WINDOW, sink=SINK), "far_mass")
    expected = np.zeros(len(g.heads))
    for i, (layer, kv_head) in enumerate(g.heads):
        means = []
        for head in (2 * kv_head, 2 * kv_head + 1):
            by_sequence = []
            for s in range(3):
                pattern = g.m.pattern(probe.tokens[s], layer, head)
                rows = mixed[mixed[:, 0] == s, 1].tolist()
                by_sequence.append(np.mean([float(pattern[r, SINK : r - WINDOW + 1].sum()) for r in rows]))
            means.append(np.mean(by_sequence))
        expected[i] = max(means)
    assert found.scores == pytest.approx(expected, rel=1e-4)


def test_a_head_that_sees_no_more_than_the_window_has_no_gate_and_a_needed_one_stays_open_until_the_price_is_high():
    """CWM's sliding layer of 8 is not changed by a window of 9, and only what is changed is ranked."""
    g = Game(open_model(tiny("cwm")), needles(), 9)
    by_kind = {i.kind: i.index for i in g.m.layers}
    assert {head.layer for head in g.heads} == {by_kind["full"]}
    found = duo_gates(g, steps=60)
    assert found.evidence["mean_gate"] == pytest.approx(found.scores.mean(), abs=1e-5)
    assert min(found.scores) > 0.5
    assert max(duo_gates(g, steps=60, price=50.0).scores) < 0.05
    assert (duo_gates(g, steps=5, price=0.0).scores >= 1).all()


def test_a_smaller_budget_anneals_to_a_higher_price_and_shuts_more_gates():
    g = game_of("llama")
    strict, lenient = (duo_gates_annealed(g, steps=30, budget=budget) for budget in (0.25, 0.75))
    assert strict.evidence["price"] > lenient.evidence["price"] > 0.05
    assert strict.evidence["mean_gate"] < lenient.evidence["mean_gate"] < 1
    assert strict.scores.mean() < lenient.scores.mean()
    assert len(set(strict.scores)) == len(g.heads)


@pytest.mark.parametrize("train", [duo_gates, duo_gates_annealed])
def test_training_gates_leaves_no_trace_and_is_refused_without_steps(train):
    g = game_of("gpt2")
    before = g.nats()
    first, second = (train(g, steps=4).scores for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(g.nats(), before)
    assert all(p.grad is None for p in g.m.model.parameters())
    with pytest.raises(WorkbenchError, match="steps is 0; expected at least 1"):
        train(g, steps=0)


def test_gates_need_a_final_state_and_a_budget_that_is_a_share():
    with pytest.raises(WorkbenchError, match="JunctionModel has no output embedding"):
        duo_gates(Game(open_model(JunctionModel(OR)), far_answer(), 4), steps=2)
    with pytest.raises(WorkbenchError, match=r"budget is 0\.0; expected a share"):
        duo_gates_annealed(game_of("llama"), budget=0.0)


def test_chance_in_a_layer_keeps_as_many_heads_of_each_layer_as_window_gates(monkeypatch):
    g = game_of("llama")
    by_gates, by_chance = rank(g, "window_gates").order, rank(g, "random_in_layer").order
    assert [h.layer for h in by_gates] == [h.layer for h in by_chance]


@pytest.mark.parametrize("family", ["minimax", "falcon_h1"])
def test_every_method_scores_exactly_the_softmax_heads_of_a_hybrid(family, monkeypatch):
    from tests.linear_families import tiny as linear_tiny

    for name, train in (("duo_gates", duo_gates), ("duo_gates_annealed", duo_gates_annealed)):
        monkeypatch.setitem(METHODS, name, partial(train, steps=3))
    m = open_model(tiny(family) if family == "minimax" else linear_tiny(family))
    softmax = {info.index for info in m.layers if info.mixer == "softmax"}
    g = Game(m, needles(n_sequences=2), WINDOW)
    for method in METHODS:
        found = rank(g, method)
        assert {h.layer for h in found.heads} == softmax
        assert np.isfinite(found.scores).all()
        assert found.order[0] in g.heads
    assert KVHead(max(softmax), 0) in g.heads
