"""Families without the AttentionInterface: logits, crops, interventions, limits, and a model left as it came."""

import copy
from pathlib import Path

import pytest
import torch

from tests.brute import ON_TOKENS, eager_patterns, scores
from tests.detectors.test_exactness import assert_same
from tests.families import WINDOW, random_tokens, tiny
from tests.older_families import OLDER_CONFIGS, eager_twin, edited_logits
from workbench import Head, KVHead, WorkbenchError, open_model, probes, score
from workbench.hooks import WholeCacheWarning
from workbench.hooks.taps.eager import MAX_TOKENS, handling
from workbench.kernels import Far

NEEDS = {"entropy", "mean_distance", "far_mass", "induction", "sink_mass"}
N_KV_HEADS = {"falcon": 1, "falcon_new": 2}


def logits(model, tokens, mask=None):
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("family", OLDER_CONFIGS)
def test_layers_are_what_the_model_does(family):
    layers = open_model(tiny(family)).layers
    kinds = ["full", "sliding"] if family == "gpt_neo" else ["full", "full"]
    assert [info.kind for info in layers] == kinds
    assert [info.window for info in layers] == [WINDOW if kind == "sliding" else None for kind in kinds]
    assert [(info.index, info.mixer, info.has_sinks) for info in layers] == [(i, "softmax", False) for i in (0, 1)]
    assert {(info.n_heads, info.n_kv_heads, info.d_head) for info in layers} == {(4, N_KV_HEADS.get(family, 4), 8)}


@pytest.mark.parametrize("n_tokens", [1, 37, 101])
@pytest.mark.parametrize("family", OLDER_CONFIGS)
def test_logits_while_recording_equal_eager_and_the_models_own(family, n_tokens):
    model, tokens = tiny(family), random_tokens(2, n_tokens)
    with handling(model, lambda call: call.output()):
        recorded = logits(model, tokens)
    assert (recorded - logits(eager_twin(family), tokens)).abs().max() < 5e-5
    assert (recorded - logits(model, tokens)).abs().max() < 5e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", OLDER_CONFIGS)
def test_padded_logits_equal_the_models_own(family, side):
    model, tokens = tiny(family), random_tokens(2, 29)
    mask = (torch.arange(29) >= torch.tensor([0, 11])[:, None]).long()
    mask = mask if side == "left" else mask.flip(1)
    with handling(model, lambda call: call.output()):
        recorded = logits(model, tokens, mask)
    assert (recorded - logits(model, tokens, mask))[mask.bool()].abs().max() < 5e-5


@pytest.mark.parametrize("family", OLDER_CONFIGS)
def test_a_pattern_equals_the_models_own_on_any_crop(family):
    tokens = random_tokens(1, 53)
    m = open_model(tiny(family))
    expected, _, _ = eager_patterns(eager_twin(family), tokens)
    queries, keys = torch.tensor([52, 7, 31]), slice(3, 40)
    for layer, head in ((0, 1), (1, 3)):
        whole = m.pattern(tokens[0], layer, head)
        assert (whole.double() - expected[layer][0, head]).abs().max() <= 1e-5
        assert torch.equal(m.pattern(tokens[0], layer, head, queries, keys), whole[queries][:, keys])


@pytest.mark.parametrize("family", ["falcon_alibi", "bloom"])
def test_longer_sequences_are_read_in_many_blocks(family):
    tokens = random_tokens(1, 700)
    recording = open_model(tiny(family)).record(tokens, NEEDS, far=Far(256, 4))
    p = torch.cat(eager_patterns(eager_twin(family), tokens)[0])
    distance = torch.arange(700)[:, None] - torch.arange(700)
    expected = {
        "entropy": torch.special.entr(p),
        "mean_distance": p * distance,
        "far_mass": p * ((distance >= 256) & (torch.arange(700) >= 4)),
    }
    for need, cells in expected.items():
        assert torch.allclose(recording[need].total[0].double(), cells.sum((-2, -1)), rtol=1e-5)


@pytest.mark.parametrize("family", ["falcon", "falcon_new", "falcon_alibi"])
def test_falcon_is_read_in_the_attention_implementation_it_has(family):
    tokens = random_tokens(2, 37)
    model = copy.deepcopy(tiny(family, "eager"))  # with ALiBi another function than in sdpa
    for block in model.transformer.h:
        block.self_attention._forward_pre_hooks.clear()
    assert_same(
        score(open_model(model), ON_TOKENS, tokens, far=Far(5)),
        scores(model, tokens, far_window=5),
        1e-5,
    )
    with handling(model, lambda call: call.output()):
        recorded = logits(model, tokens)
    assert (recorded - logits(model, tokens)).abs().max() < 5e-5
    assert open_model(model).layers == open_model(tiny(family)).layers


def test_a_window_of_gpt_neo_is_the_one_its_scores_have():
    model = tiny("gpt_neo")
    model.config.window_size = 5  # the mask was built for another when the model was made
    try:
        m = open_model(model)  # three tokens are too few to tell
        with pytest.raises(WorkbenchError, match="of layer 1 attends to other keys than the last 5 tokens"):
            m.record(random_tokens(1, 20), {"entropy"})
    finally:
        model.config.window_size = WINDOW


# Interventions, against probabilities that are changed by hand in the eager model


def windowed(p, head, window, sink, first=0):
    i, j = torch.arange(p.shape[2])[:, None], torch.arange(p.shape[3])
    kept = p[:, head] * ((i - j < window) | (j < first + sink))
    return kept / kept.sum(-1, keepdim=True)


@pytest.mark.parametrize("family", OLDER_CONFIGS)
def test_restricted_heads_equal_eager_attention_on_the_keys_they_see(family):
    tokens = random_tokens(2, 41)
    m = open_model(tiny(family))
    group = 4 // m.layers[0].n_kv_heads

    def edit(layer, p):
        for head in range(group) if layer == 0 else range(4 - group, 4):
            p[:, head] = windowed(p, head, *((5, 2) if layer == 0 else (3, 0)))
        return p

    expected = edited_logits(family, tokens, edit)
    with m.restrict([KVHead(0, 0)], 5, 2), m.restrict([KVHead(1, m.layers[1].n_kv_heads - 1)], 3):
        changed = logits(m.model, tokens)
        row = m.pattern(tokens[0], 1, 3)[30]
    assert (changed - expected).abs().max() < 5e-5
    assert (changed - logits(m.model, tokens)).abs().max() > 1e-3
    assert row[:28].eq(0).all()
    assert row.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("family", OLDER_CONFIGS)
@pytest.mark.parametrize("how", ["zero", "mean", "uniform"])
def test_ablated_heads_equal_eager_attention_with_their_probabilities_replaced(family, how):
    tokens = random_tokens(1, 33)
    m = open_model(tiny(family))

    def edit(layer, p):
        p = p.clone()
        if how == "zero":
            p[:, 2] = 0
        elif how == "mean":  # the mean of Σ_j p_ij v_j over i
            p[:, 2] = p[:, 2].mean(-2, keepdim=True)
        else:
            seen = torch.ones(33, 33).tril().double()
            if family == "gpt_neo" and layer == 1:
                seen = seen.triu(1 - WINDOW)
            p[:, 2] = seen / seen.sum(-1, keepdim=True)
        return p

    expected = edited_logits(family, tokens, edit)
    with m.ablate([Head(0, 2), Head(1, 2)], how):
        changed = logits(m.model, tokens)
    assert (changed - expected).abs().max() < 5e-5
    assert (changed - logits(m.model, tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gptj", "falcon_alibi", "bloom"])
def test_left_padded_sinks_count_from_the_first_token(family):
    tokens = random_tokens(1, 29)
    mask = (torch.arange(29) >= 11).long()[None]
    m = open_model(tiny(family))

    def edit(_, p):
        p[:, 0] = torch.where(mask.bool()[:, :, None], windowed(p, 0, 4, 2, first=11), p[:, 0])
        return p

    expected = edited_logits(family, tokens, edit, mask)
    with m.restrict([KVHead(0, 0), KVHead(1, 0)], 4, 2):
        changed = logits(m.model, tokens, mask)
    assert (changed - expected)[mask.bool()].abs().max() < 1e-4


def test_generation_inside_a_block_is_restricted_too():
    m = open_model(tiny("gptj"))
    tokens = random_tokens(2, 30)
    mask = (torch.arange(30) >= torch.tensor([0, 6])[:, None]).long()
    with m.restrict([KVHead(i, h) for i in (0, 1) for h in range(4)], window=3, sink=1):
        with pytest.warns(WholeCacheWarning, match="no interface"):
            made = m.model.generate(tokens, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=2)
        mask = torch.nn.functional.pad(mask, (0, 3), value=1)
        step = logits(m.model, made[:, :-1], mask)[:, -1].argmax(-1)
    assert torch.equal(made[:, -1], step)


@pytest.mark.parametrize("family", ["gptj", "falcon", "bloom"])
def test_sampled_rows_leave_the_answers_whole(family):
    m = open_model(tiny(family))
    probe = probes.copy_needle(97, 16, length=48, n_sequences=2)
    needs = {"answer_mass", "answer_top1", "entropy"}
    with m.restrict([KVHead(0, 0)], 5), m.ablate([Head(1, 0)]):
        full, sampled = m.record(probe, needs), m.record(probe, needs, rows=10)
    assert sampled["entropy"].rows.eq(10).all()
    assert torch.allclose(full["answer_mass"].total, sampled["answer_mass"].total, atol=1e-6)
    assert torch.equal(full["answer_top1"].total, sampled["answer_top1"].total)
    assert torch.allclose(full.answers.loss_nats, sampled.answers.loss_nats, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
@pytest.mark.parametrize("family", OLDER_CONFIGS)
def test_low_precision_scores_equal_brute_force_over_the_models_own_rounding(family, dtype, tolerance):
    tokens = random_tokens(2, 33)
    table = score(open_model(copy.deepcopy(tiny(family)).to(dtype)), ON_TOKENS, tokens, far=Far(5))
    assert_same(table, scores(copy.deepcopy(eager_twin(family)).to(dtype), tokens, far_window=5), tolerance)


def test_a_mean_of_other_tokens_takes_a_heads_place():
    model = tiny("gptj")
    m = open_model(model)
    tokens, reference = random_tokens(2, 21), random_tokens(3, 30, seed=5)
    seen = {}
    handle = model.transformer.h[1].attn.out_proj.register_forward_pre_hook(lambda _, x: seen.update(x=x[0]))
    logits(model, reference)
    expected = seen["x"][..., 16:24].mean((0, 1))
    with m.ablate([Head(1, 2)], "mean", reference=reference):
        logits(model, tokens)
    handle.remove()
    assert torch.allclose(seen["x"][..., 16:24], expected.expand(2, 21, 8), atol=1e-5)


def test_a_bridge_leaves_recordings_as_they_were():
    m = open_model(tiny("gptj"))
    tokens = random_tokens(2, 20)
    before = m.record(tokens, NEEDS)
    with torch.no_grad():
        assert (m.bridge(tokens) - logits(m.model, tokens)).abs().max() < 1e-3
    after = m.record(tokens, NEEDS)
    assert all(torch.equal(before[need].total, after[need].total) for need in NEEDS)
    again = open_model(tiny("gptj"))
    with again.restrict([KVHead(0, 0)], 4):
        bridge = again.bridge  # a copy of a model that is being read
    assert torch.equal(bridge(tokens), m.bridge(tokens))
    inside = open_model(m.bridge).record(tokens, NEEDS)
    assert all(torch.allclose(before[need].total, inside[need].total, atol=1e-4) for need in NEEDS)


# A model is left as it came


def state_of(model):
    return {
        name: (module.__dict__.get("forward"), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("family", ["gptj", "gpt_neo", "falcon", "bloom", "mpt"])
def test_a_model_is_left_as_it_came(family):
    model = tiny(family)
    model.train()
    before, implementation = state_of(model), model.config._attn_implementation
    m = open_model(model)
    m.record(random_tokens(2, 20), {"entropy"})
    m.pattern(random_tokens(1, 20)[0], 1, 0)
    with m.ablate([Head(0, 0)]), m.restrict([KVHead(1, 0)], 4):
        m.record(random_tokens(2, 20), {"entropy"})
    with pytest.raises(WorkbenchError, match="2 runs of valid tokens"):
        m.record(random_tokens(1, 4), {"entropy"}, torch.tensor([[1, 0, 1, 1]]))
    assert (state_of(model), model.config._attn_implementation) == (before, implementation)
    assert model.training
    model.eval()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("family", ["gptj", "falcon"])
def test_an_error_inside_the_pass_leaves_no_trace(family, error):
    model, tokens = tiny(family), random_tokens(1, 9)
    before, own = state_of(model), logits(model, tokens)

    def stop(_):
        raise error("stopped in the middle of a layer")

    with pytest.raises(error, match="in the middle"), handling(model, stop):
        logits(model, tokens)
    assert state_of(model) == before
    assert torch.equal(logits(model, tokens), own)
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_forward_of_the_users_own_stays():
    model = tiny("gptj")
    block = model.transformer.h[0]
    plain = type(block).forward.__get__(block)
    called = []
    block.forward = lambda *args, **kwargs: called.append(1) or plain(*args, **kwargs)
    mine = block.forward
    try:
        open_model(model).record(random_tokens(1, 9), {"entropy"})
        assert called
        assert block.forward is mine
    finally:
        del block.forward


# Limits


@pytest.mark.parametrize("family", ["falcon", "bloom"])
def test_too_many_tokens_are_refused_before_anything_is_computed(family, monkeypatch):
    m = open_model(tiny(family))
    monkeypatch.setattr(m.config, "max_position_embeddings", 8192, raising=False)
    tokens = torch.zeros(1, MAX_TOKENS + 1, dtype=torch.long)
    told = "4097 tokens are too many for .*: .* no interface .* full score matrix.*at most 4096"
    with pytest.raises(WorkbenchError, match=told):
        m.record(tokens, {"entropy"})
    with pytest.raises(WorkbenchError, match=told), m.restrict([KVHead(0, 0)], 4):
        m.model(input_ids=tokens)


def test_mpt_takes_no_more_tokens_than_its_bias_has():
    with pytest.raises(WorkbenchError, match="513 tokens exceed the 512 positions"):
        open_model(tiny("mpt")).record(torch.zeros(1, 513, dtype=torch.long), {"entropy"})


def test_a_mask_of_ones_own_is_refused():
    m = open_model(tiny("gptj"))
    own = torch.zeros(1, 1, 9, 9)
    with pytest.raises(WorkbenchError, match=r"shape \(1, 1, 9, 9\) for 9 keys"), m.ablate([Head(0, 0)]):
        logits(m.model, random_tokens(1, 9), own)


def test_the_readme_lists_every_family():
    readme = Path("README.md").read_text()
    assert [n for n in OLDER_CONFIGS if tiny(n).config.model_type not in readme] == []


def test_a_recording_is_the_same_each_time():
    m = open_model(tiny("bloom"))
    tokens = random_tokens(2, 30)
    first, second = m.record(tokens, NEEDS), m.record(tokens, NEEDS)
    assert all(torch.equal(first[need].total, second[need].total) for need in NEEDS)
