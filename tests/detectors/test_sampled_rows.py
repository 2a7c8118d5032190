"""Scores on sampled rows: exact on the rows taken, with an interval that holds the score over all rows."""

import numpy as np
import pytest
import torch

from tests.families import random_tokens, tiny
from workbench import open_model, score
from workbench.kernels import Far

NEEDS = ("entropy", "mean_distance", "far_mass", "sink_mass", "previous_token", "induction", "duplicate_token")


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("llama"))


def test_the_row_error_is_the_standard_error_of_the_sampled_rows(m):
    tokens = random_tokens(2, 90)
    rows = torch.tensor([3, 8, 11, 20, 33, 34, 50, 61, 77, 89])
    sampled = m.record(tokens, {*NEEDS, "entropy_per_row"}, rows=rows, far=Far(5))
    values = sampled.per_row["entropy_per_row"][..., rows].double()
    expected = values.std(-1) / 10**0.5 * (1 - 10 / 90) ** 0.5
    assert torch.allclose(sampled["entropy"].row_error.double(), expected, atol=1e-6)
    far = m.record(tokens, {"far_mass", "far_mass_per_row"}, rows=rows, far=Far(5))
    counted = far.per_row["far_mass_per_row"][..., rows[1:]].double()  # row 3 has nothing beyond five tokens
    assert torch.allclose(far["far_mass"].row_error.double(), counted.std(-1) / 3 * (1 - 9 / 85) ** 0.5, atol=1e-6)


def test_the_row_error_of_a_cell_sum_is_over_its_rows(m):
    tokens = random_tokens(2, 90) % 7
    rows = torch.arange(1, 90, 6)
    pattern = torch.stack([m.pattern(tokens[0], 1, h) for h in range(4)])
    sampled = m.record(tokens, {"duplicate_token"}, rows=rows)["duplicate_token"]
    is_same = (tokens[0][:, None] == tokens[0]) & torch.ones(90, 90).tril(-1).bool()
    has_any = is_same.any(-1)
    picked = rows[has_any[rows]]
    values = (pattern * is_same).sum(-1)[:, picked].double()
    left_out = 1 - len(picked) / int(has_any.sum())
    assert torch.allclose(
        sampled.row_error[0, 1].double(), values.std(-1) / len(picked) ** 0.5 * left_out**0.5, atol=1e-6
    )


def test_all_rows_have_no_row_error(m):
    tokens = random_tokens(2, 30)
    assert m.record(tokens, {"entropy"})["entropy"].row_error is None
    assert m.record(tokens, {"entropy"}, rows=30)["entropy"].row_error is None
    table = score(m, ["entropy"], random_tokens(6, 30))
    assert not table["flags"].str.contains("row_error").any()


def test_intervals_of_sampled_rows_hold_the_score_over_all_rows(m):
    """The score over all rows of the same sequences, which the interval over sequences alone would often miss."""
    tokens = random_tokens(6, 160)
    names = ["entropy", "mean_distance", "far_mass", "sink", "previous_token"]
    whole = score(m, names, tokens, far=Far(5)).score.to_numpy()
    held, held_by_rows, n = 0, 0, 0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(160, generator=generator)[:40].sort().values
        table = score(m, names, tokens, rows=rows, far=Far(5))
        error = table["flags"].str.extract(r"row_error=([^;]+)")[0].astype(float).to_numpy()
        held += int(((table.ci_lo <= whole) & (whole <= table.ci_hi)).sum())
        held_by_rows += int((np.abs(table.score - whole) <= 2 * error).sum())
        n += len(table)
    assert held_by_rows / n >= 0.9
    assert held / n >= 0.95


def test_answers_are_whole_and_have_no_row_error(m):
    from workbench import probes

    probe = probes.copy_needle(97, 16, length=48, n_sequences=6)
    recording = m.record(probe, {"answer_mass", "answer_top1", "entropy"}, rows=9)
    assert recording["answer_mass"].row_error is None
    assert recording["answer_top1"].row_error is None
    assert recording["entropy"].row_error is not None
