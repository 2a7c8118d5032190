"""Blocks of keys that each group of heads selects for itself: all is that of the model's eager attention."""

import pytest
import torch

from tests.brute import ON_TOKENS, scores
from tests.detectors.test_exactness import assert_same
from tests.families import GROUPS, HEADS, random_tokens, tiny
from tests.hooks.test_key_selection import also_hiding
from tests.hooks.test_selected_keys import calls_of
from tests.selecting_families import BLOCK, BLOCKS
from workbench import Head, KVHead, WorkbenchError, open_model, probes, score
from workbench.hooks.recording.needs import NEEDS
from workbench.hooks.recording.pattern_maps import record_maps
from workbench.hooks.recording.selected_keys import SELECTION_NEEDS
from workbench.kernels import Far

TOKENS = random_tokens(2, 37)
PROBE = probes.copy_needle(97, 16, length=48, n_sequences=2)


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("minimax_m3"))


@pytest.fixture(scope="module")
def eager():
    return tiny("minimax_m3", "eager")


def test_patterns_and_logits_are_those_of_eager_attention(m, eager):
    with torch.no_grad():
        out = eager(input_ids=TOKENS[:1], output_attentions=True, use_cache=False)
        with m.in_force():
            logits = m.model(input_ids=TOKENS[:1], use_cache=False).logits
    assert (logits - out.logits).abs().max() < 1e-5
    assert [(info.kind, info.n_selected) for info in m.layers] == [("full", None), *[("sparse", BLOCK * BLOCKS)] * 2]
    for layer, pattern in m.patterns(TOKENS[:1]).items():
        assert (pattern - out.attentions[layer][0]).abs().max() < 1e-5
        assert torch.allclose(m.pattern(TOKENS[:1], layer, 3), pattern[3])
    sees = [m.patterns(TOKENS[:1])[1][head] > 0 for head in range(HEADS)]
    assert torch.equal(sees[0], sees[1])
    assert torch.equal(sees[2], sees[3])
    assert not torch.equal(sees[1], sees[2])


def test_scores_equal_brute_force_over_eager_patterns(m, eager):
    table = score(m, ON_TOKENS, TOKENS, far=Far(5))
    assert_same(table, scores(eager, TOKENS, far_window=5), 1e-5)


def test_pieces_through_the_cache_and_generation_are_those_without_one(m):
    needs = {need for need in NEEDS if not need.endswith("_per_key")}
    whole, pieces = m.record(PROBE, needs, far=Far(5)), m.record(PROBE, needs, far=Far(5), prefill=7)
    for need, expected in whole.sums.items():
        assert torch.equal(pieces[need].rows, expected.rows), need
        assert torch.allclose(pieces[need].total, expected.total, atol=2e-4, rtol=1e-5, equal_nan=True), need
    options = {"attention_mask": torch.ones_like(TOKENS), "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), m.in_force():
        tokens = [m.model.generate(TOKENS, use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*tokens)


def test_interventions_are_those_of_eager_attention(m, eager):
    i, j = torch.arange(37)[:, None], torch.arange(37)
    hidden = torch.zeros(1, HEADS, 37, 37, dtype=torch.bool)
    hidden[:, :2] = (i - j >= 3) & (j >= 2)
    with torch.no_grad(), also_hiding(eager, {2: hidden}):
        expected = eager(input_ids=TOKENS, use_cache=False).logits
    with m.restrict([KVHead(2, 0)], 3, 2), torch.no_grad():
        restricted = m.model(input_ids=TOKENS, use_cache=False).logits
    assert (restricted - expected).abs().max() < 5e-5
    with m.ablate([Head(1, 3)]):
        assert m.head_outputs([Head(1, 3)], TOKENS)[Head(1, 3)].eq(0).all()


def test_gradients_are_those_of_eager_attention(m, eager):
    gradients = []
    for model in (m.model, eager):
        with m.in_force():
            model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "attn" in n])
        model.zero_grad()
    for ours, own in zip(*gradients, strict=True):
        assert (ours - own).abs().max() <= 1e-5 * own.abs().max().clamp_min(1e-3)


def test_what_groups_select_is_scored_group_by_group(m):
    recording, n_selected = m.record(PROBE, SELECTION_NEEDS, far=Far(6)), BLOCK * BLOCKS
    by_layer = {call.layer: call for call in calls_of(m, PROBE.tokens)}
    for layer, call in list(by_layer.items())[1:]:
        weights = call.q.double().unflatten(1, (GROUPS, -1)) @ call.k.double()[:, :, None].mT * call.scale
        weights = weights.masked_fill(~torch.ones(48, 48).tril().bool(), -torch.inf).softmax(-1).flatten(1, 2)
        for head in range(HEADS):
            total = dict.fromkeys(("selection_coverage", "selection_distance", "selection_overlap"), 0.0)
            for s in range(len(PROBE.tokens)):
                for i in range(n_selected, 48):
                    of = {n: c.mask.selected[s, head // 2, i].tolist() for n, c in by_layer.items() if n}
                    keys = {n: {b * BLOCK + o for b in bs if b >= 0 for o in range(BLOCK)} for n, bs in of.items()}
                    keys = {n: {j for j in js if j <= i} for n, js in keys.items()}
                    total["selection_coverage"] += float(weights[s, head, i, list(keys[layer])].sum())
                    total["selection_distance"] += sum(i - j for j in keys[layer]) / len(keys[layer])
                    total["selection_overlap"] += len(keys[layer] & keys[1]) / len(keys[layer]) if layer == 2 else 0
            for need, expected in total.items():
                if need == "selection_overlap" and layer == 1:
                    assert recording[need].rows[:, layer].eq(0).all()
                    continue
                assert recording[need].rows[:, layer, head].eq(48 - n_selected).all()
                assert float(recording[need].total[:, layer, head].sum()) == pytest.approx(expected, rel=1e-5)


def test_maps_of_patterns_have_each_groups_own_keys(m):
    maps = record_maps(m, TOKENS[0], far=9, fine=None)
    for layer, pattern in m.patterns(TOKENS[:1]).items():
        assert torch.allclose(maps.summaries[layer].sink, pattern[..., 0].mean(-1), atol=1e-5)
        assert torch.allclose(maps.summaries[layer].peak.amax((1, 2)), pattern.amax((1, 2)), atol=1e-5)


def test_padding_on_the_left_and_packed_documents_would_be_cut_into_other_blocks(m):
    mask = (torch.arange(37) >= torch.tensor([0, 11])[:, None]).long()
    with pytest.raises(WorkbenchError, match="selects blocks of keys that begin with the first column"):
        m.record(TOKENS, {"entropy"}, mask)
    with pytest.raises(WorkbenchError, match="cannot be told where packed documents begin"):
        m.record(TOKENS, {"entropy"}, torch.tensor([[1] * 20 + [2] * 17] * 2))
    right, alone = m.record(TOKENS, {"entropy"}, mask.flip(1)), m.record(TOKENS[1:, :26], {"entropy"})
    assert torch.allclose(right["entropy"].total[1], alone["entropy"].total[0], atol=1e-4)
