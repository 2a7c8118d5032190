"""Gates towards linear attention, and the forms it is fitted to: by hand, by brute force, and on a trained model."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from tests.families import random_tokens, tiny
from tests.hooks.test_linear_attention import weights_of
from tests.planning.junction import AND, OR, SUM, JunctionModel, far_answer
from tests.planning.test_completeness import last_checkpoint, needles
from workbench import (
    KVHead,
    LinearAttention,
    WorkbenchError,
    fit_linear_attention,
    open_model,
    probes,
    score,
    window_gates,
)
from workbench.hooks.interventions.gates import gated
from workbench.hooks.taps.eager import handling
from workbench.planning import METHODS, Game, linear_fit, rank
from workbench.planning.linear_fit import _candidates
from workbench.planning.rankings.duo_gates import duo_gates

# Forgets within a token: a head that reads a far key reads nothing.
FORGETFUL = {KVHead(0, h): LinearAttention("elu", decay=1e-6) for h in range(2)}


@pytest.mark.parametrize(
    ("junction", "gates", "alone", "restored"),
    [(OR, (0.5, 0.5), (0, 0), (1, 1)), (AND, (0.5, 0.5), (1, 1), (0, 0)), (SUM, (0.3, 0.7), (0.3, 0.7), (0.3, 0.7))],
)
def test_what_heads_are_worth_together_and_alone_is_known_by_hand(junction, gates, alone, restored, monkeypatch):
    monkeypatch.setattr("workbench.planning.answer_loss.cross_entropy", lambda logits, *_, **__: -logits[:, 7] / 2)
    game = Game(open_model(JunctionModel(junction)), far_answer(), FORGETFUL)
    expected = {"window_gates": gates, "leave_one_windowed": alone, "restore_one": restored}
    for method, shares in expected.items():
        np.testing.assert_allclose(rank(game, method).scores, 6 * np.array(shares), atol=2e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gates_of_one_are_the_model_and_of_zero_the_linear_model(family):
    m, tokens = open_model(tiny(family)), random_tokens(2, 30)
    heads = [KVHead(i.index, h) for i in m.layers for h in range(i.n_kv_heads)]
    forms = {head: LinearAttention("elu", 1.0 + i, 0.9) for i, head in enumerate(heads)}

    def logits():
        with torch.no_grad():
            return m.model(input_ids=tokens, use_cache=False).logits

    with m.linearize(forms):
        linear = logits()
    for gate, expected in ((1.0, logits()), (0.0, linear)):
        with gated(m, torch.full((1, len(heads)), gate), forms):
            torch.testing.assert_close(logits(), expected, atol=2e-5, rtol=0)


def test_on_a_trained_model_other_heads_need_softmax_than_need_the_whole_context(demo):
    """A window of 8 tokens is enough for a head that looks one token back; linear attention is not."""
    m, probe = open_model(last_checkpoint(demo / "checkpoints" / "full")), needles()
    forms = fit_linear_attention(m, probe).forms
    linear, windowed = window_gates(m, probe, forms), window_gates(m, probe, 8)
    assert linear.completeness_error < 0.02
    game = Game(m, probe, forms)
    assert linear.scores.sum() == pytest.approx(float((game.nats(game.heads) - game.nats()).mean()), rel=0.02)
    table = score(m, ["previous_token"], probes=[probe]).set_index(["layer", "head"]).score
    back = linear.heads.index(KVHead(*table.idxmax()))
    assert table.max() > 0.4
    gap = linear.windowed - linear.full
    assert linear.scores[back] > 0.1 * gap
    assert windowed.scores[back] < 0.03 * (windowed.windowed - windowed.full)


@pytest.mark.parametrize("method", ["window_gates", "output_error_all", "duo_gates", "leave_one_windowed"])
def test_in_a_hybrid_the_heads_of_full_layers_alone_are_ranked(method, monkeypatch):
    """As they would be with forms for some heads only: the others are as they are."""
    monkeypatch.setitem(METHODS, "duo_gates", partial(duo_gates, steps=3))
    m = open_model(tiny("gemma3"))
    forms = fit_linear_attention(m, random_tokens(1, 20)).forms
    probe = probes.copy_needle(97, 20, length=36, n_sequences=3)
    found = rank(Game(m, probe, forms), method)
    assert found.heads == tuple(sorted(forms))
    assert {m.layers[head.layer].kind for head in found.heads} == {"full"}
    assert np.abs(found.scores).max() > 0


def test_what_is_about_a_window_is_refused_where_there_is_none():
    m = open_model(tiny("llama"))
    heads = [KVHead(i, h) for i in (0, 1) for h in range(2)]
    game = Game(m, needles(), dict.fromkeys(heads, LinearAttention()))
    with pytest.raises(
        WorkbenchError, match="given linear or sparse attention, and this is defined for a window alone"
    ):
        rank(game, "far_mass")
    assert set(METHODS) > {"output_error", "duo_gates"}
    with pytest.raises(WorkbenchError, match="0 conversions, sink 0: expected a conversion for a head or more"):
        Game(m, needles(), {})
    with pytest.raises(WorkbenchError, match=r"2 conversions, sink 4: .* and sinks in the windows"):
        Game(m, needles(), FORGETFUL, sink=4)


def test_the_form_of_a_head_is_the_best_of_the_ladder_by_brute_force():
    m, tokens = open_model(tiny("llama")), random_tokens(2, 33)
    fit = fit_linear_attention(m, tokens)
    seen = {}

    def keep(call):
        seen[call.layer] = call
        return call.output()

    with torch.no_grad(), handling(m.model, keep):
        m.model(tokens, use_cache=False)
    for layer, call in seen.items():
        full = call.output().double()
        for kv_head in range(call.k.shape[1]):
            group = range(2 * kv_head, 2 * kv_head + 2)
            own = torch.stack([full[:, :, h] for h in group])
            spread = (own - own.mean((1, 2), keepdim=True)).square().sum()
            errors = []
            for form in _candidates("elu"):
                said = torch.stack(
                    [
                        weights_of(form, call.q[:, h], call.k[:, kv_head], call.scale) @ call.v[:, kv_head].double()
                        for h in group
                    ]
                )
                errors.append(float((said - own).square().sum() / spread))
            head = KVHead(layer, kv_head)
            assert fit.error[head] == pytest.approx(min(errors), rel=1e-4)
            assert fit.error[head] == pytest.approx(errors[_candidates("elu").index(fit.forms[head])], rel=1e-4)


def test_even_attention_is_linear_attention_and_small_scores_are_their_own_series():
    model = copy.deepcopy(tiny("llama"))
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.zero_()
        model.model.layers[1].self_attn.q_proj.weight.mul_(0.05)
    m, tokens = open_model(model), random_tokens(2, 40)
    even = fit_linear_attention(m, tokens, heads=[KVHead(0, 0)])
    assert even.error[KVHead(0, 0)] < 1e-8
    assert even.forms[KVHead(0, 0)].decay == 1
    small = fit_linear_attention(m, tokens, features="taylor", heads=[KVHead(1, 0), KVHead(1, 1)])
    assert max(small.error.values()) < 1e-3
    assert {(form.sharpness, form.decay) for form in small.forms.values()} == {(1.0, 1.0)}


def test_taylor_features_are_taken_where_they_come_nearer():
    m, tokens, head = open_model(tiny("llama")), random_tokens(1, 24), KVHead(1, 0)
    fits = {name: fit_linear_attention(m, tokens, features=name, heads=[head]) for name in ("elu", "taylor", "best")}
    assert fits["best"].error[head] == min(fits["elu"].error[head], fits["taylor"].error[head])
    nearer = min(("elu", "taylor"), key=lambda name: fits[name].error[head])
    assert fits["best"].forms == fits[nearer].forms


def test_a_fit_that_ends_with_the_ladder_or_is_worse_than_the_mean_is_flagged_and_not_usable(monkeypatch):
    model = copy.deepcopy(tiny("llama"))
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(8)  # sharper than a short ladder reaches
        model.model.layers[1].self_attn.q_proj.weight.mul_(0.05)
    m, tokens = open_model(model), random_tokens(2, 40)
    monkeypatch.setitem(linear_fit._SHARPNESS, "taylor", (0.25, 0.5, 1.0, 2.0))
    fit = fit_linear_attention(m, tokens, features="taylor")
    assert fit.flags[KVHead(1, 0)] == fit.flags[KVHead(1, 1)] == ""
    monkeypatch.setitem(linear_fit._SHARPNESS, "taylor", (0.25, 0.5))
    short = fit_linear_attention(m, tokens, features="taylor")
    assert short.forms[KVHead(1, 0)].sharpness == 0.5
    assert short.error[KVHead(1, 0)] > fit.error[KVHead(1, 0)]
    assert short.flags[KVHead(1, 0)] == "ladder_end"
    assert KVHead(1, 0) not in short.usable
    table = short.table().set_index(["layer", "kv_head"])
    assert table.loc[(1, 0), ["features", "sharpness", "flags"]].tolist() == ["taylor", 0.5, "ladder_end"]
    monkeypatch.setattr(linear_fit, "_unexplained", lambda *_: torch.full((len(_candidates("elu")), 2), 1.5))
    worse = fit_linear_attention(m, tokens)
    assert set(worse.flags.values()) == {"error_above_1"}
    assert worse.usable == {}


def test_only_heads_that_see_everything_are_fitted():
    m = open_model(tiny("gemma3"))
    full = {i.index for i in m.layers if i.kind == "full"}
    assert {head.layer for head in fit_linear_attention(m, random_tokens(1, 20)).forms} == full
    sliding = next(i.index for i in m.layers if i.kind == "sliding")
    with pytest.raises(WorkbenchError, match=r"is sliding: .* does not see its whole past already"):
        fit_linear_attention(m, random_tokens(1, 20), heads=[KVHead(sliding, 0)])
