"""Heads with linear attention: against a whole matrix of weights in float64, in the model and in the statistics."""

import copy
from contextlib import ExitStack, contextmanager

import jaxtyping
import numpy as np
import pytest
import torch
from torch.nn.functional import elu
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.families import random_tokens, tiny
from workbench import Far, Head, KVHead, LinearAttention, WorkbenchError, open_model, probes, score

FORMS = {
    KVHead(0, 0): LinearAttention("elu", 2.0, 0.8),
    KVHead(1, 1): LinearAttention("elu", 0.5),
    KVHead(1, 0): LinearAttention("taylor", 1.5, 0.95),
}
FAMILIES = ["llama", "gpt_neox", "qwen3", "minimax_m2", "olmo2"]


def weights_of(form, q, k, scale):
    """λ^(i−j) φ(q_i) · φ(k_j), normalised; taylor by its series and not by its features."""
    q, k = (x.double() * form.sharpness * scale**0.5 for x in (q, k))
    if form.features == "elu":
        products = (elu(q) + 1) @ (elu(k) + 1).transpose(-1, -2)
    else:
        s = q @ k.transpose(-1, -2)
        products = 1 + s + s**2 / 2
    back = torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])
    products = products * torch.where(back >= 0, form.decay ** back.clamp_min(0).double(), 0)
    return products / products.sum(-1, keepdim=True)


@contextmanager
def by_whole_matrices(model, forms, patterns=None):
    """Inside the block, a model of transformers' attention interface computes T × T weights."""

    def attend(module, query, key, value, _mask, scaling, **_):
        group = query.shape[1] // key.shape[1]
        causal = torch.ones(query.shape[2], query.shape[2]).tril().bool()
        rows = []
        for head in range(query.shape[1]):
            q, k, form = query[:, head], key[:, head // group], forms.get(KVHead(module.layer_idx, head // group))
            scores = (q.double() @ k.double().transpose(-1, -2) * scaling).masked_fill(~causal, -torch.inf)
            rows.append(scores.softmax(-1) if form is None else weights_of(form, q, k, scaling))
        weights = torch.stack(rows, 1)
        if patterns is not None:
            patterns[module.layer_idx] = weights.detach()
        out = weights @ value.double().repeat_interleave(group, 1)
        return out.transpose(1, 2).to(query.dtype), None

    own = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS["whole_matrices"] = attend
    try:
        model.config._attn_implementation = "whole_matrices"
        yield
    finally:
        model.config._attn_implementation = own
        del ALL_ATTENTION_FUNCTIONS["whole_matrices"]


def brute_force(family, tokens, forms):
    """Logits, and patterns by layer."""
    patterns, model = {}, tiny(family, "eager")
    with torch.no_grad(), by_whole_matrices(model, forms, patterns):
        return model(input_ids=tokens, use_cache=False).logits, patterns


def logits(m, tokens, mask=None):
    with torch.no_grad():
        return m.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits


def forms_of(m):
    return {head: form for head, form in FORMS.items() if head.kv_head < m.layers[0].n_kv_heads}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_whole_matrices_of_weights(family):
    tokens, m = random_tokens(2, 41), open_model(tiny(family))
    expected, _ = brute_force(family, tokens, forms_of(m))
    plain = logits(m, tokens)
    with m.linearize(forms_of(m)):
        changed = logits(m, tokens)
    assert (changed - expected).abs().max() < 5e-5
    assert (changed - plain).abs().max() > 1e-4
    assert torch.equal(logits(m, tokens), plain)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_patterns_and_what_is_recorded_are_of_the_normalised_rows(family):
    tokens, m = random_tokens(2, 41), open_model(tiny(family))
    _, patterns = brute_force(family, tokens, FORMS)
    far = Far(window=7, sink=2)
    with m.linearize(FORMS):
        crops = {(i, h): m.pattern(tokens[1], i, h) for i in (0, 1) for h in range(m.layers[0].n_heads)}
        some = m.pattern(tokens[1], 1, 0, queries=slice(20, 30), keys=slice(3, 9))
        found = m.record(tokens, {"far_mass", "mean_distance", "entropy", "value_norm"}, far=far)
    for (layer, head), crop in crops.items():
        torch.testing.assert_close(crop.double(), patterns[layer][1, head], atol=2e-6, rtol=0)
    torch.testing.assert_close(some, crops[1, 0][20:30, 3:9])
    back = torch.arange(41)[:, None] - torch.arange(41)
    is_far = (back >= 7) & (torch.arange(41) >= 2)
    for layer in (0, 1):
        p = patterns[layer]
        expected = {
            "far_mass": (p * is_far).sum(-1),
            "mean_distance": (p * back).sum(-1),
            "entropy": -torch.xlogy(p, p).sum(-1),
        }
        for name, values in expected.items():
            got = found[name].total[:, layer, : p.shape[1]].double()
            torch.testing.assert_close(got, values.sum(-1), atol=2e-3, rtol=1e-4)


def test_norms_of_values_are_weighted_by_the_same_rows():
    tokens, m = random_tokens(1, 30), open_model(tiny("llama"))
    head = Head(0, 0)
    with m.linearize(FORMS):
        found = m.record(tokens, {"value_norm", "output_norm", "first_value_norm"})
        out = m.head_outputs([head], tokens)[head][0]
        pattern = m.pattern(tokens[0], 0, 0)
    # Values are what the head says where it sees one key alone, and follow from its outputs row by row.
    v = torch.linalg.solve_triangular(pattern.double(), out.double(), upper=False)
    norms = v.norm(dim=-1)
    torch.testing.assert_close(
        found["value_norm"].total[0, 0, 0].double(), (pattern.double() @ norms).sum(), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(found["output_norm"].total[0, 0, 0], out.norm(dim=-1).sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["first_value_norm"].total[0, 0, 0].double(), norms[0], rtol=1e-4, atol=1e-4)


def test_padding_has_no_weight_and_no_part_in_the_rows_of_others():
    tokens, m = random_tokens(2, 41), open_model(tiny("llama"))
    mask = (torch.arange(41) >= torch.tensor([0, 9])[:, None]).long()
    with m.linearize(FORMS), torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp_min(0)  # elu features of rotated queries know their place
        padded = m.model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
        alone = logits(m, tokens[1:, 9:])
    assert torch.isfinite(padded).all()
    torch.testing.assert_close(padded[1:, 9:], alone, atol=5e-5, rtol=0)
    with m.linearize({head: LinearAttention("taylor", 1.5, 0.95) for head in FORMS}):  # which depend on distance alone
        recorded = m.record(tokens, {"far_mass"}, attention_mask=mask, far=Far(5))["far_mass"]
        own = m.record(tokens[1:, 9:], {"far_mass"}, far=Far(5))["far_mass"]
    torch.testing.assert_close(recorded.total[1], own.total[0], atol=1e-3, rtol=1e-4)


def test_generation_through_a_cache_is_that_of_whole_passes():
    tokens, m = random_tokens(1, 12), open_model(tiny("llama"))
    with m.linearize(FORMS):
        cached = m.model.generate(tokens, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
        for _ in range(12):
            said = logits(m, tokens)[:, -1:]
            said[..., m.model.config.eos_token_id] = -torch.inf
            tokens = torch.cat([tokens, said.argmax(-1)], 1)
    assert torch.equal(cached, tokens)


def test_gradients_are_those_of_whole_matrices():
    tokens = random_tokens(2, 25)
    m, other = open_model(copy.deepcopy(tiny("llama"))), copy.deepcopy(tiny("llama", "eager"))
    with m.linearize(FORMS):
        m.model(input_ids=tokens, use_cache=False).logits[..., :9].square().sum().backward()
    with by_whole_matrices(other, FORMS):
        other(input_ids=tokens, use_cache=False).logits[..., :9].square().sum().backward()
    for layer in (0, 1):
        for name in ("q_proj", "k_proj", "v_proj"):
            got, expected = (getattr(x.model.layers[layer].self_attn, name).weight.grad for x in (m.model, other))
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_head_that_looks_back_by_one_does_so_no_more():
    """An induction score under a form without a decay is near to that of even attention."""
    m = open_model(tiny("llama"))
    asked = probes.repeats(m, n=12, n_sequences=2)
    with m.linearize({KVHead(0, 0): LinearAttention("elu", 1e-3)}):
        even = score(m, ["previous_token"], probes=[asked])
    expected = np.mean([1 / (i + 1) for i in range(1, asked.tokens.shape[1])])
    found = even[(even.layer == 0) & (even.kv_head == 0)].score
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_composition():
    tokens, m = random_tokens(1, 20), open_model(tiny("llama"))
    head, form = KVHead(0, 0), LinearAttention("elu", 2.0, 0.9)
    with m.linearize({head: LinearAttention("taylor")}), m.linearize({head: form}):
        inner = logits(m, tokens)
    with m.linearize({head: form}):
        alone = logits(m, tokens)
        with m.ablate([Head(0, 0)], "uniform"):
            assert torch.allclose(m.pattern(tokens[0], 0, 0)[9, :10], torch.full((10,), 0.1))
        with m.restrict([KVHead(0, 1)], 3):
            both = m.pattern(tokens[0], 0, m.layers[0].n_heads - 1)
    assert torch.equal(inner, alone)
    assert float(both[10, :8].sum()) == 0


@pytest.mark.parametrize(
    ("enter", "told"),
    [
        (lambda m: [m.linearize({KVHead(0, 2): LinearAttention()})], "layer 0 has no key/value head 2"),
        (
            lambda m: [m.restrict([KVHead(0, 0)], 4), m.linearize({KVHead(0, 0): LinearAttention()})],
            "L0KV0 would have a window and linear attention",
        ),
        (
            lambda m: [m.linearize({KVHead(0, 0): LinearAttention()}), m.restrict([KVHead(0, 0)], 4)],
            "L0KV0 would have a window and linear attention",
        ),
    ],
)
def test_what_cannot_be_is_refused(enter, told):
    m = open_model(tiny("llama"))
    *outer, refused = enter(m)
    with ExitStack() as stack:
        for block in outer:
            stack.enter_context(block)
        with pytest.raises(WorkbenchError, match=told), refused:
            pass
    assert not m.interventions.windows
    assert not m.interventions.forms


def test_layers_with_windows_of_their_own_and_linear_ones_are_refused():
    for family, told in (("gemma3", "sliding"), ("minimax", "lightning")):
        m = open_model(tiny(family))
        layer = next(i.index for i in m.layers if i.kind != "full")
        with pytest.raises(WorkbenchError, match=told), m.linearize({KVHead(layer, 0): LinearAttention()}):
            pass


def test_packed_documents_and_pieces_are_refused():
    m, tokens = open_model(tiny("llama")), random_tokens(1, 20)
    documents = torch.tensor([[1] * 9 + [2] * 11])
    with m.linearize({KVHead(0, 0): LinearAttention()}):
        with pytest.raises(WorkbenchError, match="one document to a sequence"):
            m.record(tokens, {"far_mass"}, attention_mask=documents)
        with pytest.raises(WorkbenchError, match="leave prefill= out"):
            m.record(tokens, {"far_mass"}, prefill=8)


def unchecked(call, *args):
    """As users call it, whose types nobody checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return call(*args)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: unchecked(LinearAttention, "relu"), "features are 'relu'; expected 'elu' or 'taylor'"),
        (lambda: LinearAttention(sharpness=0.0), "sharpness is 0.0; expected a number above 0"),
        (lambda: LinearAttention(decay=1.5), "decay is 1.5; expected a number above 0 and at most 1"),
    ],
)
def test_forms_that_are_none(made, told):
    with pytest.raises(WorkbenchError, match=told):
        made()


def test_a_state_has_a_size_of_its_own():
    assert LinearAttention("elu").state_size(16) == 16 * 17
    assert LinearAttention("taylor").state_size(16) == (1 + 16 + 16 * 17 // 2) * 17
