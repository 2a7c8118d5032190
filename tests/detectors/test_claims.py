"""When a score is a claim, how far a ranking can be trusted, and what chance gives."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.families import random_tokens, tiny
from tests.planted import VOCABULARY, PlantedModel, induction_head, previous_token_head, uniform_head
from workbench import probes
from workbench.detectors import (
    THRESHOLDS,
    Threshold,
    all_detectors,
    claims,
    layer_matched,
    reliability,
    score,
    untrained,
    untrained_scores,
)
from workbench.heads import Head, WorkbenchError
from workbench.hooks import open_model
from workbench.probes import Vocabulary


@pytest.fixture(scope="module")
def table():
    heads = [induction_head(), induction_head(3.0), uniform_head()]
    m = open_model(PlantedModel([[previous_token_head()], heads]))
    probe = probes.repeats(Vocabulary(torch.arange(1, VOCABULARY), bos=0), n=24, n_sequences=6)
    return score(m, ["induction", "induction_razor", "entropy"], probes=probe)


def test_every_threshold_is_of_a_detector_and_names_its_source():
    assert {t.detector for t in THRESHOLDS} <= all_detectors().keys()
    assert all(t.source for t in THRESHOLDS)
    assert len({t.detector for t in THRESHOLDS}) == len(THRESHOLDS)
    document = (Path(__file__).parents[2] / "docs" / "detectors.md").read_text()
    table = document[document.index("| threshold | rule |") :].partition("\n\n")[0]
    for t in THRESHOLDS:
        value = f"{t.value:.0%}".replace("%", " %") if t.rule == "top_share" else f"{t.value:g}"
        assert any(f"| {value} |" in line and f"`{t.detector}`" in line for line in table.splitlines()), t


def test_a_claim_needs_the_whole_interval_on_one_side(table):
    found = claims(table, [Threshold("induction", 0.4, "mine")]).set_index(["layer", "head"])
    assert found.claim[1, 0] == "yes"
    assert found.claim[1, 2] == "no"
    assert set(found.detector) == {"induction"}
    middle = table[(table.detector == "induction") & (table.layer == 1) & (table["head"] == 1)].copy()
    middle["ci_lo"], middle["ci_hi"] = middle["score"] - 0.1, middle["score"] + 0.1
    at = Threshold("induction", float(middle["score"].iloc[0]), "mine")
    assert claims(middle, [at]).claim.tolist() == ["undecided"]


def test_few_sequences_are_no_claim_and_no_score_is_none(table):
    assert set(claims(table, min_sequences=7).claim) == {"too few"}
    without = table.assign(score=math.nan)
    assert set(claims(without).claim) == {"no score"}


def test_ranked_thresholds_take_the_best_heads_or_groups(table):
    best = claims(table, [Threshold("induction", 1, "mine", "top_heads")])
    assert best[best.claim == "yes"][["layer", "head"]].to_numpy().tolist() == [[1, 0]]
    groups = claims(table, [Threshold("induction_razor", 0.5, "mine", "top_share")])
    assert sorted(map(tuple, groups[groups.claim == "yes"][["layer", "head"]].to_numpy().tolist())) == [(1, 0), (1, 1)]


def test_a_group_counts_by_its_best_head():
    rows = [(0, 0, 0, 0.1), (0, 1, 0, 0.9), (0, 2, 1, 0.5), (0, 3, 1, 0.5)]
    made = pd.DataFrame(rows, columns=["layer", "head", "kv_head", "score"])
    made = made.assign(detector="echo_razor", probe="repeats", n_seq=9, ci_lo=0.0, ci_hi=1.0)
    found = claims(made, [Threshold("echo_razor", 0.5, "mine", "top_share")])
    assert found.claim.tolist() == ["yes", "yes", "no", "no"]


def test_two_thresholds_of_one_detector_and_tables_of_several_steps_are_refused(table):
    twice = [Threshold("induction", 0.3, "a"), Threshold("induction", 0.4, "b")]
    with pytest.raises(WorkbenchError, match="two thresholds are for one detector"):
        claims(table, twice)
    steps = pd.concat([table.assign(step=0), table.assign(step=1)])
    for function in (claims, reliability):
        with pytest.raises(WorkbenchError, match="has 2 steps; pass one checkpoint"):
            function(steps)


def test_reliability_is_the_stepped_up_correlation_of_the_halves():
    table = score(open_model(tiny("llama")), ["entropy", "induction"], random_tokens(6, 40))
    found = reliability(table).set_index("detector")
    for name in ("entropy", "induction"):
        mine = table[table.detector == name]
        r = np.corrcoef(mine.half_a, mine.half_b)[0, 1]
        assert found.reliability[name] == pytest.approx(2 * r / (1 + r))
        ranks = np.corrcoef(mine.half_a.rank(), mine.half_b.rank())[0, 1]
        assert found.rank_reliability[name] == pytest.approx(2 * ranks / (1 + ranks))
        assert found.n_heads[name] == 8


def test_halves_that_agree_are_reliable_and_too_few_heads_say_nothing():
    rows = pd.DataFrame({"detector": "d", "probe": "p", "half_a": [0.1, 0.5, 0.9], "half_b": [0.2, 0.6, 1.0]})
    assert reliability(rows).reliability[0] == pytest.approx(1)
    assert math.isnan(reliability(rows[:2]).reliability[0])
    assert math.isnan(reliability(rows.assign(half_a=0.5)).reliability[0])


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
    found = untrained_scores(m, ["entropy", "sink"], n_models=2, tokens=tokens)
    each = [score(untrained(m, seed=i), ["entropy", "sink"], tokens).score for i in range(2)]
    assert len(found) == 16
    assert found.baseline.tolist() == pytest.approx(((each[0] + each[1]) / 2).tolist())
    assert found.highest.tolist() == pytest.approx(np.maximum(*each).tolist())
    uniform = math.log(math.factorial(20)) / 20
    assert found[found.detector == "entropy"].baseline.mean() == pytest.approx(uniform, abs=0.05)


def test_layer_matched_heads_are_others_of_the_same_layers():
    layers = open_model(tiny("llama")).layers
    chosen = [Head(0, 1), Head(1, 0), Head(1, 3)]
    found = layer_matched(chosen, layers)
    assert [h.layer for h in found] == [0, 1, 1]
    assert not set(found) & set(chosen)
    assert layer_matched(chosen, layers) == found
    with pytest.raises(WorkbenchError, match="layer 0 has 1 other heads for 3 chosen"):
        layer_matched([Head(0, h) for h in range(3)], layers)
