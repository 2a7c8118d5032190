"""Baselines: untrained models of the same shapes, and other heads of the same layers."""

import math

import numpy as np
import pytest
import torch

from tests.families import random_tokens, tiny
from workbench.detectors import layer_matched, score, untrained, untrained_scores
from workbench.heads import Head, WorkbenchError
from workbench.hooks import open_model


def test_an_untrained_model_has_other_weights_of_the_same_shapes_and_leaves_the_model_alone():
    model = tiny("llama")
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    fresh = untrained(open_model(model), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for a, b in zip(model.parameters(), fresh.model.parameters(), strict=True):
        assert a.shape == b.shape
        assert a.ndim < 2 or not torch.equal(a, b)
    again = untrained(open_model(model), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(fresh.model.parameters(), again.model.parameters(), strict=True))


def test_untrained_scores_are_those_of_several_initialisations():
    m, tokens = open_model(tiny("gpt2")), random_tokens(2, 20)
    baselines = untrained_scores(m, ["entropy", "sink"], n_models=2, tokens=tokens)
    each = [score(untrained(m, seed=i), ["entropy", "sink"], tokens).score for i in range(2)]
    assert len(baselines) == 16
    assert baselines.baseline.tolist() == pytest.approx(((each[0] + each[1]) / 2).tolist())
    assert baselines.highest.tolist() == pytest.approx(np.maximum(*each).tolist())
    uniform = math.log(math.factorial(20)) / 20
    assert baselines[baselines.detector == "entropy"].baseline.mean() == pytest.approx(uniform, abs=0.05)


def test_layer_matched_heads_are_others_of_the_same_layers():
    layers = open_model(tiny("llama")).layers
    chosen = [Head(0, 1), Head(1, 0), Head(1, 3)]
    matched = layer_matched(chosen, layers)
    assert [h.layer for h in matched] == [0, 1, 1]
    assert not set(matched) & set(chosen)
    assert layer_matched(chosen, layers) == matched
    with pytest.raises(WorkbenchError, match="layer 0 has 1 other heads for 3 chosen"):
        layer_matched([Head(0, h) for h in range(3)], layers)
