"""Training stops after any step and goes on to the same weights; a shorter one is the beginning of a longer one."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from tests.families import tiny
from workbench import open_model
from workbench.experiments.published_study.given_text import training_batch
from workbench.experiments.published_study.published_settings import Pretraining
from workbench.experiments.published_study.study_training import begun, train_until
from workbench.heads import WorkbenchError
from workbench.pretrain.training import one_thread

TRAINING = Pretraining((2, 4), rate=1e-3, warmup=2, length=12, tokens=24)
TOKENS = np.random.default_rng(0).integers(3, 60, 500).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    return deepcopy(tiny("llama"))


def trained(model, path, stops, *, window=None):
    """Weights after training that stops at these steps and is opened anew each time."""
    for steps in stops:
        m = open_model(deepcopy(model))
        course = begun(m, TRAINING, path)
        heads = [] if window is None else ["L0KV0"]
        with one_thread(), m.restrict(heads, window or 1):
            train_until(course, TOKENS, path, seed=1, steps=steps)
    return [p.detach().clone() for p in m.model.parameters()], course.losses


def test_training_that_stopped_after_every_step_has_the_weights_of_one_that_did_not(model, tmp_path):
    whole, losses = trained(model, tmp_path / "whole.pt", [4])
    parts, of_parts = trained(model, tmp_path / "parts.pt", [1, 2, 3, 4])
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert losses == of_parts


def test_where_the_time_is_up_the_step_is_saved_and_nothing_is_lost(model, tmp_path):
    m = open_model(deepcopy(model))
    course = begun(m, TRAINING, tmp_path / "state.pt")
    with one_thread():
        assert not train_until(course, TOKENS, tmp_path / "state.pt", seed=1, steps=4, is_over=lambda: True)
    assert begun(open_model(deepcopy(model)), TRAINING, tmp_path / "state.pt").step == 1


def test_a_windowed_head_trains_on_the_same_batches_and_to_other_weights(model, tmp_path):
    full, _ = trained(model, tmp_path / "full.pt", [2])
    windowed, _ = trained(model, tmp_path / "windowed.pt", [2], window=2)
    assert not all(torch.equal(a, b) for a, b in zip(full, windowed, strict=True))
    m = open_model(deepcopy(model))
    first, second = (training_batch(TOKENS, m, seed=1, step=3, shape=(2, 12)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, training_batch(TOKENS, m, seed=1, step=4, shape=(2, 12)))


def test_the_rate_rises_and_stays_so_that_a_longer_training_begins_as_a_shorter_one():
    assert [TRAINING.rate_at(step) for step in (0, 1, 5)] == [5e-4, 1e-3, 1e-3]
    with pytest.raises(WorkbenchError, match="steps are"):
        Pretraining((4, 2))
