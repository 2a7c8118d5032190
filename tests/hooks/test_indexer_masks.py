"""Indexers that select pools of keys and hand on a mask: patterns, scores and interventions are those of the model."""

import copy

import pytest
import torch

from tests.brute import ON_TOKENS, scores
from tests.detectors.test_exactness import assert_same
from tests.families import HEADS, random_tokens, tiny
from tests.hooks.test_key_selection import also_hiding
from tests.hooks.test_selected_keys import calls_of
from tests.selecting_families import POOL, POOL_CONFIGS, POOLS, SELECTED
from workbench import KVHead, WorkbenchError, open_model, probes, score
from workbench.hooks.recording.needs import NEEDS
from workbench.hooks.recording.selected_keys import SELECTION_NEEDS
from workbench.hooks.taps.indexer_masks import indices_of
from workbench.kernels import Far

TOKENS = random_tokens(2, 37)
MASK = (torch.arange(37) >= torch.tensor([0, 11])[:, None]).long()
INDEXED = ["qwen4_exp", "glm5_next"]


@pytest.mark.parametrize("family", POOL_CONFIGS)
def test_patterns_and_logits_are_those_of_the_models_eager_attention(family):
    m, eager = open_model(tiny(family)), tiny(family, "eager")
    with torch.no_grad():
        out = eager(input_ids=TOKENS, attention_mask=MASK, output_attentions=True, use_cache=False)
        alone = eager(input_ids=TOKENS[:1], output_attentions=True, use_cache=False)
    with torch.no_grad(), m.in_force():
        logits = m.model(input_ids=TOKENS, attention_mask=MASK, use_cache=False).logits
    assert (logits - out.logits)[MASK.bool()].abs().max() < 1e-5
    sparse = [info.index for info in m.layers if info.kind == "sparse"]
    assert [info.kind for info in m.layers] == ["linear"] * (len(m.layers) - 2) + ["sparse"] * 2
    for layer, expected in zip(sparse, alone.attentions, strict=True):
        pattern = m.patterns(TOKENS[:1], layers=[layer])[layer]
        assert (pattern - expected[0]).abs().max() < 1e-5
        assert (pattern > 0).sum(-1).max() == m.layers[layer].n_selected == SELECTED


@pytest.mark.parametrize("family", INDEXED)
def test_scores_equal_brute_force_over_eager_patterns_behind_padding_too(family):
    m, eager = open_model(tiny(family)), tiny(family, "eager")
    table = score(m, ON_TOKENS, TOKENS, attention_mask=MASK, far=Far(5))
    assert_same(table, scores(eager, TOKENS, attention_mask=MASK, far_window=5), 2e-5)


@pytest.mark.parametrize("family", INDEXED)
def test_pieces_through_the_cache_give_the_numbers_of_one_pass(family):
    m, probe = open_model(tiny(family)), probes.copy_needle(97, 16, length=40, n_sequences=2)
    needs = {need for need in NEEDS if not need.endswith("_per_key")}
    whole, pieces = m.record(probe, needs, far=Far(5)), m.record(probe, needs, far=Far(5), prefill=7)
    for need, expected in whole.sums.items():
        assert torch.equal(pieces[need].rows, expected.rows), need
        assert torch.allclose(pieces[need].total, expected.total, atol=2e-4, rtol=1e-5, equal_nan=True), need
    assert torch.allclose(pieces.answers.loss_nats, whole.answers.loss_nats, atol=1e-4)


def test_packed_documents_score_as_they_do_alone_or_are_refused():
    needs = ("entropy", "mean_distance", "far_mass", "selection_coverage")
    documents = torch.tensor([[1] * 13 + [2] * 24, [0] * 4 + [7] * 17 + [8] * 10 + [0] * 6])
    m = open_model(tiny("qwen4_exp"))
    packed = m.record(TOKENS, needs, documents, far=Far(5))
    for d, (row, start, stop) in enumerate([(0, 0, 13), (0, 13, 37), (1, 4, 21), (1, 21, 31)]):
        alone = m.record(TOKENS[row, start:stop], needs, far=Far(5))
        for need in needs:
            assert torch.equal(packed[need].rows[d], alone[need].rows[0])
            assert torch.allclose(packed[need].total[d], alone[need].total[0], atol=1e-4)
    with pytest.raises(WorkbenchError, match="cannot be told where packed documents begin"):
        open_model(tiny("glm5_next")).record(TOKENS, needs, documents)


@pytest.mark.parametrize("family", INDEXED)
@pytest.mark.filterwarnings("ignore:the cache of")
def test_generation_with_a_cache_is_that_without_one_under_interventions_and_behind_padding(family):
    m = open_model(tiny(family))
    options = {"attention_mask": MASK, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with m.restrict([KVHead(0, 1), KVHead(1, 0)], 9, 1), torch.no_grad():
        tokens = [m.model.generate(TOKENS, use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("family", INDEXED)
def test_a_restricted_head_sees_the_selected_keys_of_its_window_and_sinks(family):
    m, eager = open_model(tiny(family)), tiny(family, "eager")
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


@pytest.mark.parametrize("family", INDEXED)
def test_what_is_read_of_a_selection_is_that_of_the_pools_and_the_rows_own(family):
    m, probe = open_model(tiny(family)), probes.copy_needle(97, 12, length=30, n_sequences=1)
    recording, calls = m.record(probe, SELECTION_NEEDS, far=Far(6)), calls_of(m, probe.tokens)
    for call in calls:
        n = call.q.shape[2]
        weights = call.q.double() @ call.k.double().repeat_interleave(HEADS // call.k.shape[1], 1).mT * call.scale
        weights = weights.masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf).softmax(-1)
        rows = [i for i in range(n) if (i + 1) // POOL > POOLS]
        keys = {i: [k for k in call.mask.selected[0, 0, i].tolist() if k >= 0] for i in range(n)}
        for i in range(n):
            pools = {k // POOL for k in keys[i] if k < (i + 1) // POOL * POOL}
            tail = set(range((i + 1) // POOL * POOL, i + 1))
            assert set(keys[i]) == {k for p in pools for k in range(p * POOL, (p + 1) * POOL)} | tail
            assert len(pools) == min(POOLS, (i + 1) // POOL)
        covered = sum(weights[0, :, i, keys[i]].sum(-1) for i in rows)
        reach = sum(sum(i - k for k in keys[i]) / len(keys[i]) for i in rows)
        for need, expected in (("selection_coverage", covered), ("selection_distance", torch.full((4,), reach))):
            assert recording[need].rows[0, call.layer].eq(len(rows)).all()
            assert torch.allclose(recording[need].total[0, call.layer].double(), expected.double(), rtol=1e-5)


@pytest.mark.parametrize("family", INDEXED)
def test_gradients_through_the_selected_keys_are_those_of_eager_attention(family):
    gradients, m = [], open_model(tiny(family))
    for model in (m.model, tiny(family, "eager")):
        model.zero_grad()
        if model is m.model:
            with m.in_force():
                model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        else:
            model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "attn" in n])
        model.zero_grad()
    assert len(gradients[0]) > 10
    for ours, own in zip(*gradients, strict=True):
        assert (ours - own).abs().max() <= 1e-5 * own.abs().max().clamp_min(1e-3)


def test_a_copy_made_inside_a_block_is_the_models_own_again():
    m = open_model(tiny("glm5_next"))
    with m.in_force():
        twin = copy.deepcopy(m.model)
    attention = twin.model.language_model.layers[0].self_attn
    assert attention.build_attention_mask_from_topk.__self__ is attention
    assert attention.indexer.get_visible_tokens.__self__ is attention.indexer
    assert not any("build_attention_mask_from_topk" in vars(module) for module in m.model.modules())


def test_a_mask_that_would_be_made_anew_in_the_backward_pass_is_refused():
    m = open_model(copy.deepcopy(tiny("glm5_next")))
    m.model.activation_checkpointing_enable()
    m.model.train()
    with pytest.raises(WorkbenchError, match="switch gradient checkpointing off"), m.restrict([KVHead(0, 0)], 6):
        m.model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()


def test_a_static_cache_is_refused():
    m = open_model(tiny("glm5_next"))
    with pytest.raises(WorkbenchError, match="cache_implementation"), m.in_force():
        m.model.generate(TOKENS, cache_implementation="static", max_new_tokens=2)


def test_indices_are_those_of_the_cells_in_order():
    cells = torch.rand(2, 300, 40, generator=torch.Generator().manual_seed(0)) < 0.2
    cells[1, 7] = False
    indices = indices_of(cells)
    assert indices.shape[-1] == cells.sum(-1).max()
    for b, i in [(0, 0), (0, 255), (0, 256), (1, 7), (1, 299)]:
        keys = indices[b, i][indices[b, i] >= 0]
        assert keys.tolist() == cells[b, i].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("family", "attributes", "most", "length"),
    [
        ("qwen4_exp", {"token_budget": 2048, "compress_ratio": 64, "block_topk": 32}, 2048 + 63, 5),
        ("glm5_next", {"index_topk": 2048}, 2048 + POOL - 1, 2 * POOL + 1),
        ("minimax_m3", {"topk_blocks": 16, "block_size": 128}, 16 * 128, 3),
    ],
)
def test_the_text_that_opens_a_model_is_just_long_enough_to_leave_out_a_key(family, attributes, most, length):
    model, lengths = copy.deepcopy(tiny(family)), []
    indexers = [module for module in model.modules() if hasattr(module, next(iter(attributes)))]
    for module in indexers:
        module.__dict__.update(attributes)
    handle = model.register_forward_pre_hook(lambda _, __, kwargs: lengths.append(kwargs), with_kwargs=True)
    m = open_model(model)
    handle.remove()
    assert {kwargs["input_ids"].shape[1] for kwargs in lengths} == {length}
    assert {info.n_selected for info in m.layers if info.kind == "sparse"} == {most}
    assert all(getattr(module, name) == value for module in indexers for name, value in attributes.items())
    for layer, pattern in m.patterns(TOKENS[:1]).items():  # this text is shorter than what is selected
        assert m.layers[layer].kind != "sparse" or bool((pattern > 0).eq(torch.ones(37, 37).tril().bool()).all())
