"""Differential attention against the difference of the model's own eager softmaxes."""

import copy
from functools import cache

import pytest
import torch
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM

from tests.families import random_tokens
from workbench import open_model, score
from workbench.heads import Head, KVHead, WorkbenchError
from workbench.hooks.recording.cells import induction, sequences
from workbench.hooks.taps.linear import reading_linear
from workbench.hooks.taps.linear.linear_selfcheck import implied_output
from workbench.kernels import DifferenceRows, signed_pattern

PAIRS = 4


@cache
def tiny():
    torch.manual_seed(0)
    config = DiffLlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2 * PAIRS,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=2,
    )
    model = DiffLlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
    return model


def lam(model, layer):
    attention = model.model.layers[layer].self_attn
    first = torch.exp(attention.lambda_q1.double() @ attention.lambda_k1.double())
    second = torch.exp(attention.lambda_q2.double() @ attention.lambda_k2.double())
    return (first - second + attention.lambda_init).item()


@torch.no_grad()
def differences(model, tokens, mask=None):
    """The pattern of every layer, float64, from the probabilities that the model returns itself."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    attentions = eager(tokens, attention_mask=mask, output_attentions=True).attentions
    return [a[:, :PAIRS].double() - lam(model, i) * a[:, PAIRS:].double() for i, a in enumerate(attentions)]


@pytest.mark.parametrize("n_tokens", [1, 23, 101])
def test_a_head_is_the_difference_of_two_softmaxes_of_the_model(n_tokens):
    m, tokens = open_model(tiny()), random_tokens(2, n_tokens)
    assert [(info.mixer, info.n_heads, info.n_kv_heads) for info in m.layers] == [("diff", PAIRS, 2)] * 2
    for layer, expected in enumerate(differences(tiny(), tokens)):
        for head in range(PAIRS):
            pattern = m.pattern(tokens[1], layer, head)
            torch.testing.assert_close(pattern.double(), expected[1, head], rtol=0, atol=1e-5)
            assert pattern.sum(-1).allclose(torch.tensor(1 - lam(tiny(), layer)), atol=1e-5)


def test_scores_equal_brute_force_over_whole_patterns():
    tokens = random_tokens(1, 57)
    tokens[:, 30:] = tokens[:, :27]
    table = score(open_model(tiny()), ["induction", "entropy", "mean_distance"], tokens=tokens).set_index("detector")
    cells = induction(sequences(tokens))
    n_rows = len(torch.unique(cells[:, :2], dim=0))
    for layer, pattern in enumerate(differences(tiny(), tokens)):
        shares = pattern.abs() / pattern.abs().sum(-1, keepdim=True)
        signed = pattern / pattern.abs().sum(-1, keepdim=True)
        back = torch.arange(57)[:, None] - torch.arange(57)
        expected = {
            "induction": signed[cells[:, 0], :, cells[:, 1], cells[:, 2]].sum(0) / n_rows,
            "entropy": -torch.xlogy(shares, shares).sum(-1).mean((0, 2)),
            "mean_distance": (shares * back).sum(-1).mean((0, 2)),
        }
        for name, values in expected.items():
            rows = table.loc[name]
            assert rows[rows.layer == layer].score.tolist() == pytest.approx(values.tolist(), abs=1e-5)


def test_padding_on_the_left_changes_no_score():
    tokens = random_tokens(1, 40)
    behind = torch.cat([torch.full((1, 9), 2), tokens], 1)
    mask = (torch.arange(49) >= 9).long()[None]
    m = open_model(tiny())
    alone, padded = (score(m, tokens=t, attention_mask=a, far=8) for t, a in ((tokens, None), (behind, mask)))
    assert padded.score.tolist() == pytest.approx(alone.score.tolist(), abs=1e-5, nan_ok=True)
    assert alone.score.notna().any()


@pytest.mark.parametrize("n_padding", [0, 9])
def test_rows_are_the_models_and_times_values_are_what_the_heads_hand_on(n_padding):
    tokens, rows, outputs, handed_on = random_tokens(2, 31), {}, {}, {}
    valid = torch.arange(31) >= torch.tensor([[0], [n_padding]])
    model = tiny()

    def read(call):
        rows[call.layer], outputs[call.layer] = signed_pattern(call.rows), implied_output(call)

    hooks = [
        layer.self_attn.groupnorm.register_forward_pre_hook(lambda _, args, i=i: handed_on.update({i: args[0]}))
        for i, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad(), reading_linear(model, valid, read):
        model(tokens, attention_mask=valid.long())
    for hook in hooks:
        hook.remove()
    for layer, expected in enumerate(differences(model, tokens, valid.long())):
        torch.testing.assert_close(outputs[layer][valid], handed_on[layer][valid], rtol=0, atol=1e-5)
        seen, own = rows[layer].movedim(1, 2)[valid], expected.movedim(1, 2)[valid]
        torch.testing.assert_close(seen.double(), own, rtol=0, atol=1e-5)


def _rows(lam, *, n_tokens=70, seed=0, is_same=False):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, 2, n, n_tokens, 8, generator=generator) for n in (4, 2))
    if is_same:
        q[1], k[1] = q[0], k[0]
    return DifferenceRows(q, k, lam, 8**-0.5)


def test_a_planted_lambda_of_0_is_plain_attention_and_equal_softmaxes_leave_the_rest():
    plain = signed_pattern(_rows(0.0))
    assert plain.min() >= 0
    assert plain.sum(-1).allclose(torch.tensor(1.0))
    torch.testing.assert_close(signed_pattern(_rows(0.3, is_same=True)), 0.7 * plain, rtol=0, atol=1e-6)
    # A key that only the second softmax reads is read with a negative sign.
    q, k = torch.zeros(2, 1, 1, 3, 2), torch.zeros(2, 1, 1, 3, 2)
    q[1, ..., 0], k[1, ..., 0, 0] = 30, 30
    row = signed_pattern(DifferenceRows(q, k, 0.5, 1.0))[0, 0, 2]
    assert row.tolist() == pytest.approx([1 / 3 - 0.5, 1 / 3, 1 / 3], abs=1e-6)


def test_an_ablated_head_hands_on_nothing_and_generation_under_it_is_that_of_passes_without_a_cache():
    model, tokens = copy.deepcopy(tiny()), random_tokens(2, 12)
    m = open_model(model)
    attention = model.model.layers[1].self_attn
    with m.ablate([Head(1, 2)]):
        logits = m.model(tokens).logits
        cached = m.model.generate(tokens, max_new_tokens=4, do_sample=False)
        again = m.model.generate(tokens, max_new_tokens=4, do_sample=False, use_cache=False)
    assert cached.equal(again)
    with torch.no_grad():
        attention.o_proj.weight[:, 2 * 2 * attention.head_dim : 3 * 2 * attention.head_dim] = 0
        torch.testing.assert_close(model(tokens).logits, logits, rtol=0, atol=1e-5)


def test_windows_are_refused_with_a_sentence():
    m = open_model(tiny())
    with (
        pytest.raises(WorkbenchError, match="diff attention, which has no window to set"),
        m.restrict([KVHead(0, 0)], window=4),
    ):
        pass


def test_the_model_goes_on_as_it_is():
    tokens = random_tokens(2, 30)
    with torch.no_grad():
        before = tiny()(tokens).logits
    m = open_model(tiny())
    score(m, tokens=tokens)
    with torch.no_grad():
        torch.testing.assert_close(m.model(tokens).logits, before, rtol=0, atol=0)
