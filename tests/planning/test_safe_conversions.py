"""What each head may become: by hand where two heads need the first token, and on a trained model."""

import numpy as np
import pytest
import torch

from tests.families import tiny
from tests.planning.junction import SUM, JunctionModel, far_answer
from tests.planning.test_completeness import last_checkpoint, needles
from workbench import KVHead, WorkbenchError, open_model, probes
from workbench.planning import Game, in_safe_forms, rank, safe_forms


def test_what_is_safe_and_keeps_least_is_chosen():
    """A window of one token keeps less than a state; one of all tokens but one loses what the first token tells."""
    m, probe = open_model(JunctionModel(SUM)), far_answer()
    found = safe_forms(m, probe, 1, tolerance=1e6)
    assert found.choices == ("window", "window")
    wide = safe_forms(m, probe, 19, tolerance=1e6)
    state, d_head = wide.forms[KVHead(0, 0)].state_size(m.layers[0].d_head), m.layers[0].d_head
    assert wide.choices == (("linear", "linear") if state < 2 * d_head * 19 else ("window", "window"))
    none = safe_forms(m, probe, 1, tolerance=0.0)
    assert none.choices == ("full", "full")
    assert none.lost_together == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def trained(demo):
    return open_model(last_checkpoint(demo / "checkpoints" / "full"))


def test_on_a_trained_model_the_head_that_looks_one_token_back_gets_a_window(trained):
    probe = needles()
    found = safe_forms(trained, probe, 8, tolerance=0.05)
    table = found.table()
    assert table.shape == (8, 6)
    costs = {"window": found.windowed, "linear": found.linear}
    for i, choice in enumerate(found.choices):
        safe = {form for form, nats in costs.items() if nats[i] <= 0.05}
        assert (choice in safe) if safe else choice == "full"
    assert "window" in found.choices
    assert "full" in found.choices
    # The costs are those of the two rankings, and what is lost together is measured.
    windowed = rank(Game(trained, probe, 8), "window_gates").scores
    np.testing.assert_allclose(found.windowed, windowed, atol=1e-6)
    full = Game(trained, probe, 8).nats().mean()
    with in_safe_forms(trained, found), torch.no_grad():
        nats = trained.answers(probe).loss_nats.double().mean().item()
    assert found.lost_together == pytest.approx(nats - full, abs=1e-5)
    at_once = Game(trained, probe, 8)
    assert found.lost_together < 0.5 * (at_once.nats(at_once.heads).mean() - full)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m, p: safe_forms(m, p, 8, tolerance=-1.0), "a tolerance of -1.0 nats was given; expected 0 or more"),
        (lambda m, p: safe_forms(m, p, 0), "window 0, sink 0: expected a window of at least 1"),
        (lambda m, p: safe_forms(open_model(tiny("mistral")), p, 8), "no layer of the model sees its whole past"),
    ],
)
def test_what_makes_no_sense_is_refused(call, told):
    with pytest.raises(WorkbenchError, match=told):
        call(open_model(tiny("llama")), probes.copy_needle(97, 20, length=36, n_sequences=3))
