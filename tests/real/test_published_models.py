"""On published models: patterns and scores are those of plain transformers and TransformerLens, by other code."""

import pytest
import torch
from transformer_lens.head_detector import detect_head

import workbench as wb
from tests.real.models import MEASURES, opened, repeated

pytestmark = pytest.mark.real

MODELS = ["smollm2", "gemma3-270m"]
# Heads that stand out.
HEADS = {
    "smollm2": {"induction": [(18, 6), (17, 3), (17, 4)], "previous_token": [(16, 0), (11, 1)]},
    "gemma3-270m": {"induction": [(5, 1), (11, 2), (5, 2)], "previous_token": []},
}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def pair(name):
    return opened(name)


def test_patterns_are_those_of_eager_attention(pair):
    tokens = repeated(pair, n_sequences=1)
    expected = pair.attentions(tokens)
    for layer in range(0, len(pair.m.layers), 4):
        for head in range(pair.m.layers[layer].n_heads):
            ours = pair.m.pattern(tokens[0], layer, head)
            torch.testing.assert_close(ours, expected[layer][0, head], rtol=0, atol=1e-4)


def test_scores_of_every_head_are_those_computed_from_eager_attention(pair):
    tokens = repeated(pair)
    patterns = pair.attentions(tokens)
    table = wb.score(pair.m, list(MEASURES), tokens=tokens).set_index(["detector", "layer", "head"])["score"]
    for detector, measure in MEASURES.items():
        for layer, pattern in enumerate(patterns):
            for head in range(0, pattern.shape[1], 3):
                values = [measure(pattern[s, head], tokens[s].tolist()) for s in range(len(tokens))]
                expected = sum(values) / len(values)
                assert table[detector, layer, head] == pytest.approx(expected, abs=1e-4), (detector, layer, head)


def test_heads_that_are_known_to_stand_out_do(pair, name):
    tokens = repeated(pair, n_sequences=3)
    table = wb.score(pair.m, ["induction", "previous_token"], tokens=tokens)
    best = table.sort_values("score").groupby("detector").tail(8)
    for detector in ("induction", "previous_token"):
        ranked = {(row.layer, row.head) for row in best[best.detector == detector].itertuples()}
        assert set(HEADS[name][detector]) <= ranked


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scores_are_those_of_transformerlens_on_the_models_bridge(pair, monkeypatch):
    tokens = repeated(pair, n=30, n_sequences=1)
    bridge = pair.m.bridge
    monkeypatch.setattr(bridge, "to_tokens", lambda _: tokens, raising=False)
    for kind in ("previous_token", "induction"):
        table = wb.score(pair.m, [f"tl_{kind}_mul"], tokens=tokens).set_index(["layer", "head"])["score"]
        expected = detect_head(bridge, ["the tokens"], f"{kind}_head", error_measure="mul")
        for (layer, head), score in table.items():
            assert score == pytest.approx(float(expected[layer, head]), abs=1e-4), (kind, layer, head)


def test_sampled_rows_hold_the_score_of_all_rows_in_their_interval(pair):
    probe = wb.probes.repeats(pair.m, n=50, n_sequences=5)
    exact = wb.score(pair.m, ["induction", "sink"], probes=probe)
    sampled = wb.score(pair.m, ["induction", "sink"], probes=probe, rows=40)
    both = exact.merge(sampled, on=["detector", "layer", "head"], suffixes=("", "_sampled"))
    holds = (both.ci_lo_sampled - 1e-4 <= both.score) & (both.score <= both.ci_hi_sampled + 1e-4)
    assert holds.mean() > 0.9


def test_a_model_run_in_pieces_has_the_same_scores(pair):
    probe = wb.probes.repeats(pair.m, n=60, n_sequences=2)
    whole = wb.score(pair.m, ["induction", "sink"], probes=probe)
    pieces = wb.score(pair.m, ["induction", "sink"], probes=probe, prefill=37)
    assert (whole["score"] - pieces["score"]).abs().max() < 1e-4
