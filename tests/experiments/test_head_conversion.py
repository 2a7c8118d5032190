"""Training in the explicit forms is training within `m.restrict` and `m.linearize`: the same loss and gradients."""

import numpy as np
import pytest
import torch

from tests.experiments.small import STUDY
from workbench.experiments.conversion.head_conversion import head_masks, linear_heads, masked
from workbench.experiments.conversion.training_runs import untrained
from workbench.heads import KVHead
from workbench.hooks import LinearAttention, open_model
from workbench.pretrain import Language
from workbench.pretrain.training import next_token_loss

WINDOWED = [KVHead(0, 1), KVHead(1, 0)]


@pytest.fixture
def model():
    """With nothing at zero, so that every weight has a gradient."""
    model, generator = untrained(STUDY, 0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def gradients(model, tokens):
    model.zero_grad()
    loss = next_token_loss(model(input_ids=tokens, use_cache=False).logits, tokens)
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("sink", [0, 2])
def test_a_restricted_step_has_the_loss_and_gradients_of_the_explicit_mask(model, sink):
    tokens = torch.from_numpy(Language().documents(4, 32, np.random.default_rng(0)))
    full, _ = gradients(model, tokens)
    with open_model(model).restrict(WINDOWED, window=4, sink=sink):
        restricted, expected = gradients(model, tokens)
    with masked(model, WINDOWED, length=32, window=4, sink=sink):
        loss, found = gradients(model, tokens)
    assert loss == pytest.approx(restricted, abs=1e-5)
    assert abs(loss - full) > 1e-3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("features", ["elu", "taylor"])
def test_a_step_with_linear_heads_has_the_loss_and_gradients_of_the_chunked_form(model, features):
    tokens = torch.from_numpy(Language().documents(4, 32, np.random.default_rng(0)))
    full, _ = gradients(model, tokens)
    forms = {
        KVHead(0, 1): LinearAttention(features, 1.5, 0.9),
        KVHead(1, 0): LinearAttention(features, 0.7),
        KVHead(1, 1): LinearAttention(features, 2.0, 0.4),
    }
    with open_model(model).linearize(forms):
        chunked, expected = gradients(model, tokens)
    with linear_heads(model, forms, length=32):
        loss, found = gradients(model, tokens)
    assert loss == pytest.approx(chunked, abs=1e-5)
    assert abs(loss - full) > 1e-3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def test_a_mask_hides_exactly_what_lies_between_sink_and_window():
    bias = head_masks(WINDOWED, 1, 2, length=9, window=3, sink=1)
    for head in range(2):
        for q in range(9):
            for k in range(9):
                is_seen = k <= q and (head == 1 or q - k < 3 or k < 1)
                assert (bias[0, head, q, k] == 0) == is_seen
                assert is_seen or bias[0, head, q, k] == -torch.inf


def test_the_model_is_itself_again_afterwards(model):
    tokens = torch.from_numpy(Language().documents(2, 32, np.random.default_rng(0)))
    before, _ = gradients(model, tokens)
    with masked(model, WINDOWED, length=32, window=4):
        pass
    assert gradients(model, tokens)[0] == before
