"""Restoring one head after an alignment of the converted model, which leaves no trace in the weights."""

import pytest
import torch

from tests.families import tiny
from tests.planning.junction import SUM, JunctionModel, far_answer
from workbench import WorkbenchError, open_model, probes
from workbench.planning import Game, rank
from workbench.planning.rankings import after_alignment
from workbench.planning.rankings.after_alignment import restore_one_aligned


@pytest.fixture(scope="module")
def game():
    m = open_model(tiny("llama"))
    return Game(m, probes.copy_needle(97, 16, length=40, n_sequences=4), 6, sink=1)


def test_without_a_step_of_any_size_it_is_restore_one_towards_the_model_itself(game):
    towards_itself = rank(Game(game.m, game.probe, 6, sink=1, objective="kl"), "restore_one")
    assert restore_one_aligned(game, rate=0.0).scores == pytest.approx(towards_itself.scores, abs=1e-7)


def test_the_alignment_lowers_the_divergence_and_the_weights_are_put_back(game):
    weights = list(game.m.model.parameters())
    before = [p.detach().clone() for p in weights]
    weights[1].requires_grad_(False)
    weights[2].grad = torch.ones_like(weights[2])
    evidence = restore_one_aligned(game, steps=10, rate=3e-3).evidence
    assert evidence["divergence_aligned"] < 0.9 * evidence["divergence_before"]
    assert all(torch.equal(p, kept) for p, kept in zip(weights, before, strict=True))
    assert not weights[1].requires_grad
    assert all(p.requires_grad for i, p in enumerate(weights) if i != 1)
    assert torch.equal(weights[2].grad, torch.ones_like(weights[2]))
    assert all(p.grad is None for i, p in enumerate(weights) if i != 2)
    weights[1].requires_grad_(True)
    weights[2].grad = None


def test_an_interrupted_alignment_puts_the_weights_back(game, monkeypatch):
    before = [p.detach().clone() for p in game.m.model.parameters()]
    step = torch.optim.AdamW.step

    def interrupted(self, *args, **kwargs):
        step(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(after_alignment.torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore_one_aligned(game, rate=1e-2)
    assert all(torch.equal(p, kept) for p, kept in zip(game.m.model.parameters(), before, strict=True))


def test_a_model_without_layers_to_train_is_refused(game):
    with pytest.raises(WorkbenchError, match="weights can be trained"):
        restore_one_aligned(Game(open_model(JunctionModel(SUM)), far_answer(), 4))
    with pytest.raises(WorkbenchError, match="steps is 0"):
        restore_one_aligned(game, steps=0)
