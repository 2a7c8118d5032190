"""Patching to first order: gradients give what small patches do, and what exact ones do where the model is linear."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.families import random_tokens
from tests.families import tiny as tiny_softmax
from tests.linear_families import CONFIGS, tiny
from workbench import open_model, patch_effects, probes
from workbench.heads import Head, WorkbenchError
from workbench.hooks.interventions.patching import METHODS


@pytest.fixture(scope="module")
def m():
    return open_model(tiny_softmax("llama"))


@pytest.fixture(scope="module")
def probe(m):
    return probes.key_value(m, n_pairs=6, n_queries=2, gap=4, n_sequences=6)


def foils(probe, source):
    """Of each answer what the source has where the answer can be looked up."""
    place = {(s, r): k for s, r, k in reversed(probe.target_cells.tolist())}
    return torch.tensor([int(source[s, place[s, r]]) for s, r in probe.answer_rows.tolist()])


def difference(m, probe, other):
    """The mean logit of the answers less that of their foils."""
    with torch.no_grad(), m.in_force():
        logits = m.model(probe.tokens).logits
    s, r = probe.answer_rows.unbind(-1)
    return float((logits[s, r, probe.tokens[s, r + 1]] - logits[s, r, other]).double().mean())


@pytest.mark.parametrize("name", ["llama", "kimi_linear", "gptj"])
def test_the_effect_to_first_order_is_the_slope_of_a_small_patch(name):
    """In softmax layers, in linear ones, and in families without AttentionInterface."""
    m = open_model(tiny(name) if name in CONFIGS else tiny_softmax(name))
    probe = probes.key_value(m, n_pairs=4, n_queries=2, gap=4, n_sequences=6)
    source = probes.corrupted(m, probe)
    effects = patch_effects(m, probe, source, method="first_order")
    expected = [(info.index, head, info.mixer) for info in m.layers for head in range(info.n_heads)]
    assert [(e.layer, e.head, e.mixer) for e in effects] == expected
    of_foils, small = foils(probe, source), 0.003
    for e in effects:
        head = Head(e.layer, e.head)
        own, other = (m.head_outputs([head], tokens)[head] for tokens in (probe, source))
        ends = []
        for sign in (small, -small):
            with m.patch([head], {head: own + sign * (other - own)}):
                ends.append((m.answers(probe).loss_nats.double().mean().item(), difference(m, probe, of_foils)))
        (up, up_difference), (down, down_difference) = ends
        assert e.effect_nats == pytest.approx((up - down) / (2 * small), abs=1e-3)
        assert e.logit_difference_change == pytest.approx((up_difference - down_difference) / (2 * small), abs=1e-3)
        assert e.ci_lo <= e.effect_nats <= e.ci_hi
        assert math.isnan(e.accuracy_change)
    assert all(p.grad is None and p.requires_grad for p in m.model.parameters())


def test_heads_rank_to_first_order_as_they_do_exactly():
    """In a model whose weights are those of a beginning, where little bends."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    m = open_model(LlamaForCausalLM(LlamaConfig(vocab_size=97, initializer_range=0.05, **sizes)))
    probe = probes.key_value(m, n_pairs=6, n_queries=2, gap=4, n_sequences=6)
    exact, linear = (patch_effects(m, probe, method=how).table for how in METHODS)
    for column in ("effect_nats", "logit_difference_change"):
        assert exact[column].corr(linear[column], method="spearman") > 0.9
        assert exact[column].abs().idxmax() == linear[column].abs().idxmax()


def test_it_is_exact_where_the_model_is_linear_in_the_heads_output():
    """In a last layer without MLP and norm behind it, logits are linear in what its heads hand on."""
    model = copy.deepcopy(tiny_softmax("llama"))
    last = model.model.layers[-1]
    last.post_attention_layernorm = model.model.norm = nn.Identity()
    nn.init.zeros_(last.mlp.down_proj.weight)
    m = open_model(model)
    probe = probes.key_value(m, n_pairs=6, n_queries=2, gap=4, n_sequences=6)
    heads = [Head(1, h) for h in range(4)]
    exact, linear = (patch_effects(m, probe, heads=heads, method=how).table for how in ("exact", "first_order"))
    for column in ("logit_difference_change", "logit_difference_lo", "logit_difference_hi"):
        assert linear[column].to_numpy() == pytest.approx(exact[column].to_numpy(), abs=2e-6)
    assert (linear["effect_nats"] - exact["effect_nats"]).abs().max() > 1e-6  # the loss bends


def test_exact_logit_differences_are_those_of_the_models_own_logits(m, probe):
    source = probes.corrupted(m, probe)
    of_foils = foils(probe, source)
    (effect,) = patch_effects(m, probe, source, ["L1H2"])
    plain = difference(m, probe, of_foils)
    with m.patch(["L1H2"], source):
        assert effect.logit_difference_change == pytest.approx(difference(m, probe, of_foils) - plain, abs=1e-6)
    assert effect.logit_difference_lo < effect.logit_difference_change < effect.logit_difference_hi
    assert effect.accuracy_lo <= effect.accuracy_change <= effect.accuracy_hi


def test_sequences_in_several_passes_and_one_source_for_all_give_the_same(m, probe, monkeypatch):
    whole = patch_effects(m, probe, random_tokens(1, probe.tokens.shape[1]), method="first_order").table
    monkeypatch.setattr("workbench.hooks.interventions.patching._BATCH_TOKENS", 2 * probe.tokens.shape[1])
    pieces = patch_effects(m, probe, random_tokens(1, probe.tokens.shape[1]), method="first_order").table
    for column in ("effect_nats", "ci_lo", "ci_hi", "logit_difference_change"):
        assert pieces[column].to_numpy() == pytest.approx(whole[column].to_numpy(), abs=1e-6)


def test_a_source_with_the_same_tokens_changes_nothing_and_has_no_logit_difference(m, probe):
    for method in ("exact", "first_order"):
        effects = patch_effects(m, probe, probe, ["L0H1", "L1H2"], method=method)
        assert all(abs(e.effect_nats) < 1e-6 for e in effects)
        assert effects.table.filter(like="logit_difference").isna().all(axis=None)


def test_what_cannot_be_patched_is_refused(m, probe):
    with pytest.raises(WorkbenchError, match="method is 'atp'; expected one of exact, first_order"):
        patch_effects(m, probe, method="atp")
    with pytest.raises(WorkbenchError, match=r"taken from 2 × 20 tokens and now 6 × \d+"):
        patch_effects(m, probe, random_tokens(2, 20), method="first_order")
    with pytest.raises(WorkbenchError, match="has no answers"):
        patch_effects(m, probes.make_probe("bare", random_tokens(1, 9)), random_tokens(1, 9))
    assert not patch_effects(m, probe, heads=[], method="first_order")


def test_effects_print_in_one_line(m, probe):
    text = repr(patch_effects(m, probe, method="first_order"))
    assert text.startswith("PatchEffects(8 heads, first_order; the largest L")
    assert "\n" not in text
