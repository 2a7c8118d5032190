"""Scores of families without the AttentionInterface equal brute force over their own patterns, padded too."""

import pytest
import torch

from tests.brute import ON_TOKENS, SCORED, scores
from tests.detectors.test_exactness import assert_same
from tests.families import random_tokens
from tests.older_families import OLDER_CONFIGS, eager_twin, tiny
from workbench import probes
from workbench.detectors import score
from workbench.hooks import open_model
from workbench.kernels import Far


@pytest.mark.parametrize("n_tokens", [1, 37, 101])
@pytest.mark.parametrize("family", OLDER_CONFIGS)
def test_scores_equal_brute_force_over_eager_patterns(family, n_tokens):
    tokens = random_tokens(2, n_tokens)
    table = score(open_model(tiny(family)), ON_TOKENS, tokens, far=Far(5))
    assert_same(table, scores(eager_twin(family), tokens, far_window=5), 1e-5)


@pytest.mark.parametrize("family", [f for f in OLDER_CONFIGS if f != "trocr"])
def test_left_padded_scores_equal_brute_force_over_valid_tokens(family):
    tokens = random_tokens(3, 41)
    mask = (torch.arange(41) >= torch.tensor([0, 7, 23])[:, None]).long()
    table = score(open_model(tiny(family)), ON_TOKENS, tokens, attention_mask=mask, far=Far(5))
    assert_same(table, scores(eager_twin(family), tokens, attention_mask=mask, far_window=5), 1e-4)


@pytest.mark.parametrize("family", OLDER_CONFIGS)
def test_retrieval_scores_equal_brute_force(family):
    probe = probes.copy_needle(97, [9, 12], length=24, n_sequences=3)
    table = score(open_model(tiny(family)), SCORED, probes=probe, far=Far(5))
    expected = scores(eager_twin(family), probe.tokens, far_window=5, targets=probe.target_cells)
    assert_same(table, expected, 1e-5)
