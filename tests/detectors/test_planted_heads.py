"""Heads written by hand have their exactly known scores; counts, halves and intervals are those of the sequences."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from tests.families import random_tokens, tiny
from tests.planted import (
    BOS,
    PREVIOUS,
    TOKEN,
    VOCABULARY,
    PlantedHead,
    PlantedModel,
    current_token_head,
    duplicate_token_head,
    induction_head,
    previous_token_head,
    sink_head,
    uniform_head,
)
from workbench import probes
from workbench.detectors import score
from workbench.hooks import FarSum, FeatureSum, open_model
from workbench.kernels import Far
from workbench.probes import Vocabulary

N = 24
T = 2 * N + 1
NAMES = ("prev", "self", "dup", "sink", "uniform")


@pytest.fixture(scope="module")
def probe():
    words = Vocabulary(torch.arange(1, VOCABULARY), bos=BOS)
    return probes.repeats(words, n=N, n_sequences=6)


@pytest.fixture(scope="module")
def table(probe):
    heads = [previous_token_head(), current_token_head(), duplicate_token_head(), sink_head(), uniform_head()]
    second = [induction_head(), *[induction_head(m) for m in (2.0, 4.0, 6.0)], uniform_head()]
    m = open_model(PlantedModel([heads, second]))
    return score(m, probes=probe, far=Far(8)).set_index(["detector", "layer", "head"]).score


HARMONIC = sum(1 / (i + 1) for i in range(T)) / T
EXACT = {
    ("previous_token", 0, 0): 1,
    ("entropy", 0, 0): 0,
    ("far_mass", 0, 0): 0,
    ("mean_distance", 0, 0): (T - 1) / T,
    ("current_token", 0, 1): 1,
    ("mean_distance", 0, 1): 0,
    ("duplicate_token", 0, 2): 1,
    ("sink", 0, 3): 1,
    ("entropy", 0, 3): 0,
    ("mean_distance", 0, 3): (T - 1) / 2,
    ("far_mass", 0, 3): 1,
    ("sink", 0, 4): HARMONIC,
    ("current_token", 0, 4): HARMONIC,
    ("entropy", 0, 4): sum(math.log(i + 1) for i in range(T)) / T,
    ("mean_distance", 0, 4): (T - 1) / 4,
    ("far_mass", 0, 4): 0.656322,
    ("induction", 1, 0): 1,
    ("retrieval", 1, 0): 1,
    ("retrieval_top1", 1, 0): 1,
    ("retrieval_top1", 0, 0): 0,
}


@pytest.mark.parametrize("key", EXACT, ids=lambda k: f"{k[0]}-L{k[1]}H{k[2]}")
def test_a_planted_head_has_its_exact_score(table, key):
    assert table[key] == pytest.approx(EXACT[key], abs=1e-6)


def test_the_uniform_heads_numbers_are_the_published_ones(table):
    assert table["sink", 0, 4] == pytest.approx(0.091412, abs=1e-6)
    assert table["entropy", 0, 4] == pytest.approx(2.950321, abs=1e-6)


@pytest.mark.parametrize(("head", "margin"), [(1, 2.0), (2, 4.0), (3, 6.0)])
def test_a_softened_induction_head_scores_the_softmax_of_its_margin(table, head, margin):
    # Row i has one target and i competitors, itself included.
    rows = [1 / (1 + i * math.exp(-margin)) for i in range(N + 1, T)]
    assert table["induction", 1, head] == pytest.approx(np.mean(rows), abs=1e-6)


def test_a_learned_sink_takes_its_share_of_a_uniform_row():
    s = 1.5
    m = open_model(PlantedModel([[uniform_head(s), uniform_head(s)]]))
    tokens = torch.arange(20)[None]
    table = score(m, ["learned_sink", "sink", "entropy"], tokens).set_index(["detector", "head"]).score
    shares = [1 / (1 + (i + 1) * math.exp(-s)) for i in range(20)]
    assert m.layers[0].has_sinks
    assert table["learned_sink", 0] == pytest.approx(np.mean(shares), abs=1e-6)
    assert table["sink", 0] == pytest.approx(np.mean([(1 - p) / (i + 1) for i, p in enumerate(shares)]), abs=1e-6)
    entropies = [-p * math.log(p) - (1 - p) * math.log((1 - p) / (i + 1)) for i, p in enumerate(shares)]
    assert table["entropy", 0] == pytest.approx(np.mean(entropies), abs=1e-6)


def test_a_head_on_a_first_token_without_a_value_moves_nothing_of_it():
    """Uniform attention over 20 tokens; the first one's value is as long as the others', half of it, or nothing."""
    m = open_model(PlantedModel([[_valued(uniform_head(), size) for size in (1.0, 0.5, 0.0)]]))
    tokens = torch.cat([torch.tensor([BOS]), torch.arange(5, 24)])[None]
    table = score(m, ["value_drain", "output_norm", "effective_support", "normalized_entropy"], tokens)
    table = table.set_index(["detector", "head"]).score
    attention = sum(1 / (i + 1) for i in range(20))  # on the first token, over all rows
    for head, size in enumerate((1.0, 0.5, 0.0)):
        moved = 20 - attention * (1 - size)
        assert table["value_drain", head] == pytest.approx(1 - attention * size / moved, abs=1e-6)
    # Values are orthogonal: a row's output is as long as the root of the sum of their squares, over their number.
    norms = [np.mean([math.sqrt(s**2 + i) / (i + 1) for i in range(20)]) for s in (1.0, 0.5, 0.0)]
    for head in range(3):
        assert table["output_norm", head] == pytest.approx(norms[head] / np.mean(norms), abs=1e-6)
    assert table["effective_support", 0] == pytest.approx(np.mean(np.arange(1, 21)), abs=1e-4)
    assert table["normalized_entropy", 0] == pytest.approx(1, abs=1e-6)


def _valued(head, size):
    """The head with every token's own direction as its value, the first token's of another length."""
    ov = torch.zeros_like(head.ov)
    ov[TOKEN, PREVIOUS] = torch.eye(VOCABULARY)
    ov[BOS] *= size
    return PlantedHead(head.q, head.k, ov)


def test_columns_squares_and_features_are_sums_of_the_pattern(probe):
    m = open_model(tiny("llama"))
    tokens = random_tokens(2, 30)
    classes = tokens % 3

    def one_hot(batch):
        return torch.nn.functional.one_hot(batch.tokens % 3, 3).float()

    needs = {FeatureSum("of_its_class", one_hot, one_hot), FarSum("beyond_7", 7), "column_mass_per_key"}
    for kwargs in ({}, {"prefill": 7}, {"rows": torch.tensor([3, 4, 9, 21, 29])}):
        recording = m.record(tokens, needs, **kwargs)
        rows = kwargs.get("rows", torch.arange(30))
        for b in range(2):
            for head in range(4):
                pattern = m.pattern(tokens[b], 1, head)[rows]
                same = (classes[b][rows][:, None] == classes[b][None]).float()
                assert recording["of_its_class"].total[b, 1, head] == pytest.approx(
                    float((pattern * same).sum()), abs=1e-4
                )
                far = (rows[:, None] - torch.arange(30) >= 7).float()
                assert recording["beyond_7"].total[b, 1, head] == pytest.approx(float((pattern * far).sum()), abs=1e-4)
                assert torch.allclose(recording.per_key["column_mass_per_key"][b, 1, head], pattern.sum(0), atol=1e-4)
        assert recording["beyond_7"].rows.eq(int((rows >= 7).sum())).all()


def test_saturation_is_the_mass_in_the_last_tenth_of_a_layers_own_window():
    m = open_model(tiny("cwm"))  # a sliding layer of 8 tokens, a full one
    tokens = random_tokens(2, 40)
    table = score(m, ["window_saturation"], tokens).set_index(["layer", "head"])
    for head in range(4):
        rows = [m.pattern(tokens[b], 0, head)[i, i - 7] for b in range(2) for i in range(8, 40)]
        assert table.score[0, head] == pytest.approx(float(torch.stack(rows).mean()), abs=1e-6)
        assert math.isnan(table.score[1, head])
    assert table.n[1, 0] == 0


def test_counts_halves_and_intervals_belong_to_the_sequences(probe):
    m = open_model(PlantedModel([[previous_token_head()], [induction_head(3.0)]]))
    table = score(m, ["induction"], probes=probe)
    row = table[table.layer == 1].iloc[0]
    assert (row.n_seq, row.n) == (6, 6 * N)
    assert row.score == pytest.approx((row.half_a + row.half_b) / 2)
    assert row.ci_lo <= row.score <= row.ci_hi


def test_fewer_than_five_sequences_have_no_interval():
    m = open_model(PlantedModel([[uniform_head()]]))
    table = score(m, ["entropy"], torch.randint(1, 50, (4, 12)))
    assert table.n_seq.eq(4).all()
    assert table.ci_lo.isna().all()
    assert table.ci_hi.isna().all()


def test_a_score_without_a_single_row_is_nan_with_n_zero():
    m = open_model(PlantedModel([[uniform_head()]]))
    table = score(m, ["induction", "learned_sink"], torch.arange(1, 12))
    assert table.score.isna().all()
    assert table.n.eq(0).all()


def test_the_same_seed_gives_the_same_table(probe):
    m = open_model(PlantedModel([[previous_token_head()], [induction_head(3.0)]]))
    pd.testing.assert_frame_equal(score(m, probes=probe), score(m, probes=probe))


def test_sampled_rows_are_the_mean_over_just_those_rows(probe):
    m = open_model(PlantedModel([[uniform_head()]]))
    rows = torch.tensor([3, 10, 40])
    table = score(m, ["entropy", "sink"], probes=probe, rows=rows).set_index("detector").score
    assert table["entropy"] == pytest.approx(np.mean([math.log(i + 1) for i in (3, 10, 40)]), abs=1e-6)
    assert table["sink"] == pytest.approx(np.mean([1 / (i + 1) for i in (3, 10, 40)]), abs=1e-6)
