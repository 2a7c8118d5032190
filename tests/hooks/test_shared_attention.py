"""Attention whose weights several layers share (Zamba2): every call is the attention of the layer that calls it."""

from contextlib import contextmanager

import pytest
import torch
from transformers import Zamba2Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.families import random_tokens
from tests.linear_families import tiny
from tests.planning.plans import plan_of
from workbench import Head, KVHead, WorkbenchError, open_model
from workbench.probes.token_ids import positions_of

# The layers that call the block of weights of layer 1, and the one between them that calls another.
SHARING, OTHER = (1, 3), 2
TOKENS = random_tokens(2, 29)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@contextmanager
def by_whole_matrices(model, *, windows=(), without=()):
    """Inside the block, whole matrices: the n-th call is of the n-th layer that attends; yields patterns by layer."""
    layers, patterns = [i for i, kind in enumerate(model.config.layers_block_type) if kind == "hybrid"], {}

    def attend(_module, query, key, value, _mask, scaling, **_):
        layer = layers[len(patterns)]
        back = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
        scores = query.double() @ key.double().transpose(-1, -2) * scaling
        scores = scores.masked_fill(back < 0, -torch.inf)
        for head, window in windows:
            if head.layer == layer:
                scores[:, head.kv_head] = scores[:, head.kv_head].masked_fill(back >= window, -torch.inf)
        patterns[layer] = scores.softmax(-1)
        out = patterns[layer] @ value.double()
        for head in without:
            if head.layer == layer:
                out[:, head.head] = 0
        return out.transpose(1, 2).to(query.dtype), None

    own = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS["whole_matrices"] = attend
    try:
        model.config._attn_implementation = "whole_matrices"
        yield patterns
    finally:
        model.config._attn_implementation = own
        del ALL_ATTENTION_FUNCTIONS["whole_matrices"]


@pytest.fixture(scope="module")
def m():
    model = tiny("zamba2")
    q = [model.model.layers[i].shared_transformer.self_attn.q_proj.weight for i in (*SHARING, OTHER)]
    assert q[0] is q[1]
    assert q[0] is not q[2]
    return open_model(model)


def test_a_layer_has_the_pattern_of_its_own_call(m):
    with by_whole_matrices(m.model) as exact:
        logits(m.model)
    assert sorted(exact) == [1, 2, 3]
    for layer, patterns in exact.items():
        for head in range(4):
            found = m.pattern(TOKENS[1], layer, head, mixer="softmax")
            assert (found.double() - patterns[1, head]).abs().max() <= 1e-5
    assert (exact[1] - exact[3]).abs().max() > 0.1


def test_a_window_is_of_one_layer_and_not_of_the_others_that_share_its_weights(m):
    plain, head = logits(m.model), KVHead(SHARING[1], 2)
    with by_whole_matrices(m.model, windows=[(head, 3)]) as exact:
        expected = logits(m.model)
    with m.restrict([head], 3):
        found = logits(m.model)
        first, last = (m.pattern(TOKENS[0], layer, 2, mixer="softmax") for layer in SHARING)
    assert (found - expected).abs().max() < 5e-5
    assert (expected - plain).abs().max() > 1e-3
    assert (first.double() - exact[SHARING[0]][0, 2]).abs().max() <= 1e-5
    assert (last.double() - exact[SHARING[1]][0, 2]).abs().max() <= 1e-5


def test_a_head_taken_out_is_of_one_layer(m):
    head = Head(SHARING[0], 3)
    with by_whole_matrices(m.model, without=[head]):
        expected = logits(m.model)
    with m.ablate([head]):
        assert (logits(m.model) - expected).abs().max() < 5e-5
    assert (logits(m.model) - expected).abs().max() > 1e-3


def test_padding_is_seen_by_no_layer(m):
    mask = (torch.arange(29) >= torch.tensor([0, 8])[:, None]).long()
    behind = m.record(TOKENS, {"entropy"}, mask)["entropy"].total[1]
    alone = m.record(TOKENS[1:, 8:], {"entropy"})["entropy"].total[0]
    torch.testing.assert_close(behind, alone, atol=1e-4, rtol=1e-4)


def test_a_plan_is_applied_layer_by_layer_and_no_folder_is_written_that_could_not_say_it(m, tmp_path):
    plan = plan_of(m.layers, [(SHARING[0], 0)], window=5)
    windows = [(head, 5) for head, choice in plan.choices.items() if choice != "full"]
    assert len(windows) == 11
    with by_whole_matrices(m.model, windows=windows):
        expected = logits(m.model)
    with m.apply(plan):
        assert (logits(m.model) - expected).abs().max() < 5e-5
    with pytest.raises(WorkbenchError, match=r"layers \[1, 2, 3\] share the weights .* m\.apply\(plan\)"):
        plan.save_model(m, tmp_path / "folder")


def test_positions_go_on_without_an_end_where_attention_has_none():
    assert positions_of(Zamba2Config(use_mem_rope=False)) == "relative"
    assert positions_of(Zamba2Config(use_mem_rope=True)) == "rotary"
