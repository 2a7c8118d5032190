"""Scores equal brute force over the patterns that the models themselves return."""

import math

import pytest
import torch

from tests.brute import ON_TOKENS, SCORED, scores
from tests.families import CONFIGS, random_tokens, tiny
from workbench import probes
from workbench.detectors import score
from workbench.hooks import open_model
from workbench.kernels import Far


def assert_same(table, expected, tolerance):
    measured = {(r.detector, r.layer, r.head): r.score for r in table.itertuples()}
    assert expected.keys() <= measured.keys()
    for key, b in expected.items():
        a = measured[key]
        if math.isnan(b):
            assert math.isnan(a), key
        else:
            assert abs(a - b) <= tolerance * max(1.0, abs(b)), (key, a, b)


@pytest.mark.parametrize("n_tokens", [1, 37, 101])
@pytest.mark.parametrize("family", CONFIGS)
def test_scores_equal_brute_force_over_eager_patterns(family, n_tokens):
    tokens = random_tokens(2, n_tokens)
    table = score(open_model(tiny(family)), ON_TOKENS, tokens, far=Far(5))
    assert_same(table, scores(tiny(family, "eager"), tokens, far_window=5), 1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_left_padded_scores_equal_brute_force_over_valid_tokens(family):
    tokens = random_tokens(3, 41)
    mask = (torch.arange(41) >= torch.tensor([0, 7, 23])[:, None]).long()
    table = score(open_model(tiny(family)), ON_TOKENS, tokens, attention_mask=mask, far=Far(5))
    assert_same(table, scores(tiny(family, "eager"), tokens, attention_mask=mask, far_window=5), 1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_retrieval_scores_equal_brute_force(family):
    probe = probes.copy_needle(97, [9, 12], length=24, n_sequences=3)
    table = score(open_model(tiny(family)), SCORED, probes=probe, far=Far(5))
    expected = scores(tiny(family, "eager"), probe.tokens, far_window=5, targets=probe.target_cells)
    assert_same(table, expected, 1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_while_recording_equal_the_models_own(family):
    tokens = random_tokens(2, 45)
    model = tiny(family)
    m = open_model(model)
    with torch.no_grad():
        expected = tiny(family, "eager")(input_ids=tokens, use_cache=False).logits
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out))
    m.record(probes.token_sequences(tokens), needs={"entropy"})
    handle.remove()
    with torch.no_grad():
        after = model(input_ids=tokens, use_cache=False).logits
    capped = expected[:, :-1]
    cap = getattr(model.config, "final_logit_softcapping", None)
    recorded = seen[0] if cap is None else cap * torch.tanh(seen[0] / cap)
    assert (recorded - capped).abs().max() < 5e-5
    assert (after - expected).abs().max() < 5e-5
