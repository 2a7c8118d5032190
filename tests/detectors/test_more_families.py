"""Scores of the further families equal brute force over their own patterns, padded too; interventions work on them."""

import pytest
import torch

from tests.brute import ON_TOKENS, scores
from tests.detectors.test_exactness import assert_same
from tests.families import random_tokens, tiny
from tests.more_families import MORE_CONFIGS
from workbench.detectors import score
from workbench.hooks import open_model
from workbench.hooks.taps.eager import handling
from workbench.kernels import Far

FAR = Far(5)


@pytest.mark.parametrize("family", MORE_CONFIGS)
def test_scores_equal_brute_force_over_eager_patterns(family):
    tokens = random_tokens(2, 37)
    table = score(open_model(tiny(family)), ON_TOKENS, tokens, far=FAR)
    assert_same(table, scores(tiny(family, "eager"), tokens, far_window=5), 1e-5)


@pytest.mark.parametrize("family", MORE_CONFIGS)
def test_left_padded_scores_equal_brute_force_over_valid_tokens(family):
    tokens = random_tokens(2, 29)
    mask = (torch.arange(29) >= torch.tensor([0, 11])[:, None]).long()
    table = score(open_model(tiny(family)), ON_TOKENS, tokens, attention_mask=mask, far=FAR)
    assert_same(table, scores(tiny(family, "eager"), tokens, attention_mask=mask, far_window=5), 1e-4)


@pytest.mark.parametrize("family", MORE_CONFIGS)
def test_logits_through_the_recorder_equal_eager(family):
    model, tokens = tiny(family), random_tokens(2, 45)
    with torch.no_grad():
        expected = tiny(family, "eager")(input_ids=tokens, use_cache=False).logits
        with handling(model, lambda call: call.output()):
            recorded = model(input_ids=tokens, use_cache=False).logits
    assert (recorded - expected).abs().max() < 5e-5
