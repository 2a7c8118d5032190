"""Dynamic mask attention: a number added to the scores of a key, and the keys with the largest: those of the model."""

import copy

import pytest
import torch

from tests.brute import ON_TOKENS, scores
from tests.detectors.test_exactness import assert_same
from tests.families import HEADS, random_tokens, tiny
from tests.hooks.test_key_selection import also_hiding
from tests.selecting_families import SELECTED
from workbench import KVHead, open_model, score
from workbench.hooks.recording.needs import NEEDS
from workbench.hooks.taps.eager import handling
from workbench.kernels import Far

TOKENS = random_tokens(2, 37)
# Equal tokens have equal numbers in the first layer; which of equal ones are taken hangs on how many keys there are.
DISTINCT = torch.stack([torch.randperm(90, generator=torch.Generator().manual_seed(i))[:37] for i in range(2)])
MASK = (torch.arange(37) >= torch.tensor([0, 11])[:, None]).long()


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("doge"))


@pytest.fixture(scope="module")
def eager():
    return tiny("doge", "eager")


def test_layers_are_sparse_with_as_many_keys_as_are_kept(m):
    assert [(info.kind, info.n_selected, info.d_head) for info in m.layers] == [("sparse", SELECTED, 8)] * 2


@pytest.mark.parametrize("n_tokens", [1, 4, 5, 37])
def test_patterns_and_logits_are_those_of_the_models_eager_attention(m, eager, n_tokens):
    tokens, mask = TOKENS[:, :n_tokens], MASK[:, -n_tokens:]
    with torch.no_grad():
        out = eager(input_ids=tokens, attention_mask=mask, use_cache=False)
        alone = eager(input_ids=tokens[:1], output_attentions=True, use_cache=False)
    with torch.no_grad(), m.in_force():
        logits = m.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    assert (logits - out.logits)[mask.bool()].abs().max() < 1e-5
    for layer, expected in enumerate(alone.attentions):
        pattern = m.patterns(tokens[:1], layers=[layer])[layer]
        assert (pattern - expected[0]).abs().max() < 1e-5
        assert (pattern > 0).sum(-1).max() == min(n_tokens, SELECTED)


def test_scores_equal_brute_force_over_eager_patterns_behind_padding_too(m, eager):
    table = score(m, ON_TOKENS, TOKENS, attention_mask=MASK, far=Far(5))
    assert_same(table, scores(eager, TOKENS, attention_mask=MASK, far_window=5), 2e-5)


def test_the_selected_keys_are_the_visible_ones_with_the_largest_numbers_by_hand(m):
    seen = []
    with m.in_force(), torch.no_grad():
        values = {}
        handles = [
            layer.self_attn.dt_proj.register_forward_hook(lambda module, _, out: values.__setitem__(module, out))
            for layer in m.model.model.layers
        ]
        with handling(m.model, lambda call: (seen.append(call), call.output())[1]):
            m.model(input_ids=DISTINCT, use_cache=False)
        for handle in handles:
            handle.remove()
    for call, layer in zip(seen, m.model.model.layers, strict=True):
        bias = torch.exp(layer.self_attn.A * torch.nn.functional.softplus(values[layer.self_attn.dt_proj]))
        assert torch.allclose(call.k[..., -1], bias.transpose(1, 2))
        for sequence, kv_head, row in [(0, 0, 36), (1, 1, 20), (0, 1, 5), (1, 0, 3)]:
            largest = bias[sequence, : row + 1, kv_head].argsort(descending=True)[:SELECTED]
            chosen = call.mask.selected[sequence, kv_head, row]
            assert set(chosen[chosen <= row].tolist()) == set(largest.tolist())


def test_pieces_through_the_cache_give_the_numbers_of_one_pass(m):
    needs = {need for need in NEEDS if not need.endswith("_per_key")}
    whole, pieces = (m.record(DISTINCT, needs, far=Far(5), prefill=prefill) for prefill in (None, 7))
    for need, expected in whole.sums.items():
        assert torch.equal(pieces[need].rows, expected.rows), need
        assert torch.allclose(pieces[need].total, expected.total, atol=2e-4, rtol=1e-5, equal_nan=True), need


def test_packed_documents_score_as_they_do_alone(m):
    needs = ("entropy", "mean_distance", "far_mass", "selection_coverage")
    documents = torch.tensor([[1] * 13 + [2] * 24, [0] * 4 + [7] * 17 + [8] * 10 + [0] * 6])
    packed = m.record(DISTINCT, needs, documents, far=Far(5))
    for d, (row, start, stop) in enumerate([(0, 0, 13), (0, 13, 37), (1, 4, 21), (1, 21, 31)]):
        alone = m.record(DISTINCT[row, start:stop], needs, far=Far(5))
        for need in needs:
            assert torch.equal(packed[need].rows[d], alone[need].rows[0])
            assert torch.allclose(packed[need].total[d], alone[need].total[0], atol=1e-4)


@pytest.mark.filterwarnings("ignore:the cache of")
def test_generation_with_a_cache_is_that_without_one_under_interventions_and_behind_padding(m):
    options = {"attention_mask": MASK, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with m.restrict([KVHead(0, 1), KVHead(1, 0)], 9, 1), torch.no_grad():
        tokens = [m.model.generate(DISTINCT, use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*tokens)


def test_a_restricted_head_sees_the_selected_keys_of_its_window_and_sinks(m, eager):
    kv_head, group = 1, HEADS // m.layers[1].n_kv_heads
    i, j = torch.arange(37)[:, None], torch.arange(37)
    hidden = torch.zeros(1, HEADS, 37, 37, dtype=torch.bool)
    hidden[:, group * kv_head : group * (kv_head + 1)] = (i - j >= 6) & (j >= 2)
    with torch.no_grad(), also_hiding(eager, {1: hidden}):
        expected = eager(input_ids=TOKENS, use_cache=False).logits
    with m.restrict([KVHead(1, kv_head)], 6, 2), torch.no_grad():
        restricted = m.model(input_ids=TOKENS, use_cache=False).logits
    assert (restricted - expected).abs().max() < 5e-5
    assert (restricted - m.model(input_ids=TOKENS, use_cache=False).logits).abs().max() > 1e-3


def test_gradients_through_the_numbers_are_those_of_eager_attention(m, eager):
    gradients = []
    for model in (copy.deepcopy(m.model), copy.deepcopy(eager)):
        own = open_model(model)
        if model.config._attn_implementation == "eager":
            model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        else:
            with own.in_force():
                model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if "self_attn" in n})
    assert any(name.endswith("self_attn.A") for name in gradients[0])
    for name, own in gradients[1].items():
        assert (gradients[0][name] - own).abs().max() <= 1e-4 * own.abs().max().clamp_min(1e-3), name


def test_a_copy_made_inside_a_block_makes_its_own_masks_again(m):
    with m.in_force():
        twin = copy.deepcopy(m.model)
    attention = twin.model.layers[0].self_attn
    assert attention.prepare_dynamic_mask.__self__ is attention
    assert not any("prepare_dynamic_mask" in vars(module) for module in m.model.modules())
