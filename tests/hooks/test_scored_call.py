"""Families whose scores have a bias of their own, and learned sinks that depend on the token (Inkling, Inkling 2)."""

import pytest
import torch

from tests.brute import eager_patterns
from tests.families import random_tokens, tiny
from workbench import KVHead, WorkbenchError, open_model
from workbench.detectors import score
from workbench.hooks.taps.scored_call import MAX_TOKENS

FAMILIES = ["inkling", "inkling2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_crop_is_the_pattern_the_model_computes(family):
    tokens = random_tokens(1, 33)
    m, (patterns, _, _) = open_model(tiny(family)), eager_patterns(tiny(family, "eager"), tokens)
    for layer, pattern in enumerate(patterns):
        for head in range(4):
            crop = m.pattern(tokens[0], layer, head, torch.tensor([32, 3, 17]), slice(2, 20))
            assert torch.allclose(crop.double(), pattern[0, head, [32, 3, 17], 2:20], atol=1e-6)


def test_a_sink_that_depends_on_the_token_is_told_apart_from_the_first_token():
    tokens = random_tokens(2, 40)
    model = tiny("inkling2", "eager")
    given = []
    handles = [
        m.sink_proj.register_forward_hook(lambda _m, _i, out: given.append(out.double()))
        for m in model.modules()
        if hasattr(m, "sink_proj")
    ]
    patterns, _, _ = eager_patterns(model, tokens)
    for handle in handles:
        handle.remove()
    assert all(logits.std(1).min() > 0.05 for logits in given)  # of tokens, in every sequence and head
    table = score(open_model(tiny("inkling2")), ["learned_sink", "sink", "sink_total"], tokens).set_index(
        ["detector", "layer", "head"]
    )
    for layer, pattern in enumerate(patterns):
        learned = 1 - pattern.sum(-1).mean((0, 2))
        seen = pattern[:, :, : open_model(tiny("inkling2")).layers[layer].window]  # the rows that see the first token
        first, both = seen[..., 0].mean((0, 2)), (seen[..., 0] + 1 - seen.sum(-1)).mean((0, 2))
        for head in range(4):
            found = [table.score["learned_sink", layer, head], table.score["sink", layer, head]]
            assert found == pytest.approx([float(learned[head]), float(first[head])], abs=1e-5)
            assert table.score["sink_total", layer, head] == pytest.approx(float(both[head]), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_go_through_bias_and_sinks_as_they_do_in_the_model(family):
    tokens = random_tokens(1, 30)

    def gradients(model, run):
        model.zero_grad()
        run().logits.float().logsumexp(-1).sum().backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    plain, m = tiny(family, "eager"), open_model(tiny(family))
    expected = gradients(plain, lambda: plain(input_ids=tokens, use_cache=False))
    with m.restrict([KVHead(0, 0)], window=30):  # which sees everything: the recorder's form, unchanged
        found = gradients(m.model, lambda: m.model(input_ids=tokens, use_cache=False))
    assert found.keys() == expected.keys()
    assert any("sink_proj" in name for name in found) == (family == "inkling2")
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm().clamp_min(1e-3), name


def test_more_tokens_than_a_bias_of_every_pair_allows_are_refused():
    m = open_model(tiny("inkling2"))
    m.model.config.max_position_embeddings, before = 2 * MAX_TOKENS, m.model.config.max_position_embeddings
    try:
        with pytest.raises(
            WorkbenchError, match=r"4097 tokens are too many for Inkling2SlidingAttention.*at most 4096"
        ):
            m.record(torch.zeros(1, MAX_TOKENS + 1, dtype=torch.long), {"entropy"})
    finally:
        m.model.config.max_position_embeddings = before
