"""A sketch of token identity estimates what a list of cells sums exactly, without bias."""

import pytest
import torch

from tests.families import random_tokens, tiny
from workbench.detectors import token_sketch
from workbench.heads import WorkbenchError
from workbench.hooks import CellSum, open_model

SEEDS = 200


def same_token(batch):
    """Every occurrence of the row's token up to the row."""
    equal = (batch.tokens[:, :, None] == batch.tokens[:, None]).tril()
    return equal.nonzero()


@pytest.mark.parametrize(("keys", "exact"), [("same", CellSum("cells", same_token)), ("after", "induction")])
def test_the_mean_over_signs_is_the_exact_mass(keys, exact):
    m = open_model(tiny("llama"))
    tokens = random_tokens(2, 24, vocabulary=9)
    needs = {exact} | {token_sketch(f"sketch_{seed}", keys, width=32, seed=seed) for seed in range(SEEDS)}
    recording = m.record(tokens, needs)
    estimates = torch.stack([recording[f"sketch_{seed}"].total for seed in range(SEEDS)]).double()
    expected = recording[exact if isinstance(exact, str) else exact.name].total.double()
    error = estimates.std(0) / SEEDS**0.5
    assert ((estimates.mean(0) - expected).abs() < 4 * error).all()
    assert (error < 0.02 * expected.max()).all()


def test_the_error_falls_with_the_root_of_the_width():
    m = open_model(tiny("llama"))
    tokens = random_tokens(2, 24, vocabulary=9)
    widths = (16, 256)
    needs = {token_sketch(f"{w}_{seed}", "after", width=w, seed=seed) for w in widths for seed in range(40)}
    recording = m.record(tokens, needs)
    spread = [torch.stack([recording[f"{w}_{s}"].total for s in range(40)]).std(0).mean() for w in widths]
    assert spread[0] / spread[1] == pytest.approx(4, rel=0.2)


def test_a_width_below_one_is_refused():
    with pytest.raises(WorkbenchError, match="width is 0; expected at least 1"):
        token_sketch("x", width=0)
