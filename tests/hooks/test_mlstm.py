"""What is particular to xLSTM: fused projections, no mask, no low precision, and passes in pieces."""

import copy

import pytest
import torch
from torch import nn

from tests.families import random_tokens
from tests.linear_families import tiny
from tests.recurrences import inputs_of, pattern_and_values
from workbench import Head, WorkbenchError, open_model, probes

TOKENS = random_tokens(2, 37)
EVERYWHERE = torch.ones_like(TOKENS, dtype=torch.bool)


def logits(model, **options):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False, **options).logits


def joined(*maps):
    """One linear map whose output is those of several side by side."""
    out = nn.Linear(maps[0].in_features, sum(x.out_features for x in maps), bias=maps[0].bias is not None)
    out.weight.data = torch.cat([x.weight.data for x in maps])
    if maps[0].bias is not None:
        out.bias.data = torch.cat([x.bias.data for x in maps])
    return out


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("xlstm"))


def test_fused_projections_give_the_patterns_of_single_ones(m):
    model = copy.deepcopy(m.model)
    for block in model.backbone.blocks:
        layer = block.mlstm_layer
        layer.config = copy.deepcopy(layer.config)
        layer.config.weight_mode = "fused"
        layer.qkv_opreact = joined(layer.q, layer.k, layer.v, layer.ogate_preact)
        layer.ifgate_preact = joined(layer.igate_preact, layer.fgate_preact)
        for name in ("q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact"):
            delattr(layer, name)
    assert (logits(model) - logits(m.model)).abs().max() < 1e-4
    fused = open_model(model)
    with inputs_of(m.model) as seen:
        logits(m.model)
    for layer, (module, hidden) in seen.items():
        exact, _ = pattern_and_values(module, hidden, EVERYWHERE)
        for head in range(4):
            found = fused.pattern(TOKENS[1], layer, head).double()
            assert (found - exact[1, head]).abs().max() <= 1e-5 * exact[1, head].abs().max()


def test_rows_are_divided_by_a_normaliser_that_is_at_least_one(m):
    """Both sides of the maximum come up, so that neither stands for the other."""
    with inputs_of(m.model) as seen:
        logits(m.model)
    sums = torch.cat([pattern_and_values(*seen[layer], EVERYWHERE)[0].sum(-1).abs().flatten() for layer in seen])
    assert (sums < 0.5).any()
    assert ((sums - 1).abs() < 1e-3).any()
    assert (sums < 1 + 1e-6).all()


def test_padding_on_the_left_is_refused_and_on_the_right_is_seen_by_nothing(m):
    mask = (torch.arange(37) >= torch.tensor([0, 9])[:, None]).long()
    refusal = r"xLSTMForCausalLM was given padding on the left, but its layers \[0, 1\] have no mask"
    left = probes.token_sequences(TOKENS, mask.bool())
    for call in (
        lambda: m.record(TOKENS, {"entropy"}, mask),
        lambda: m.answers(left),
        lambda: m.head_outputs([Head(0, 0)], left),
    ):
        with pytest.raises(WorkbenchError, match=refusal):
            call()
    right = m.record(TOKENS, {"entropy"}, mask.flip(1))["entropy"].total
    alone = m.record(TOKENS[1:, :28], {"entropy"})["entropy"].total
    torch.testing.assert_close(right[1], alone[0], atol=1e-4, rtol=1e-5)


def test_low_precision_is_refused_with_the_next_step(m):
    with pytest.raises(
        WorkbenchError, match=r"has weights of torch.bfloat16, .* open_model\(path, dtype=torch.float32"
    ):
        open_model(copy.deepcopy(m.model).to(torch.bfloat16))


def test_a_text_that_runs_in_pieces_is_refused_and_the_setting_named(m):
    model, whole = copy.deepcopy(m.model), m.record(TOKENS, {"entropy"})["entropy"].total
    model.config.max_inference_chunksize = 16
    pieces = open_model(model)
    with pytest.raises(WorkbenchError, match=r"ran 16 of 37 tokens at once, .* set max_inference_chunksize"):
        pieces.record(TOKENS, {"entropy"})
    model.config.max_inference_chunksize = 37
    assert torch.equal(pieces.record(TOKENS, {"entropy"})["entropy"].total, whole)
