"""Claims need a whole interval on one side of a threshold, or a rank among the best."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.planted import VOCABULARY, PlantedModel, induction_head, previous_token_head, uniform_head
from workbench import probes
from workbench.detectors import THRESHOLDS, Threshold, all_detectors, claims, reliability, score
from workbench.heads import WorkbenchError
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
    judged = claims(table, [Threshold("induction", 0.4, "mine")]).set_index(["layer", "head"])
    assert judged.claim[1, 0] == "yes"
    assert judged.claim[1, 2] == "no"
    assert set(judged.detector) == {"induction"}
    middle = table[(table.detector == "induction") & (table.layer == 1) & (table["head"] == 1)].copy()
    middle["ci_lo"], middle["ci_hi"] = middle["score"] - 0.1, middle["score"] + 0.1
    inside = Threshold("induction", float(middle["score"].iloc[0]), "mine")
    assert claims(middle, [inside]).claim.tolist() == ["undecided"]


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
    judged = claims(made, [Threshold("echo_razor", 0.5, "mine", "top_share")])
    assert judged.claim.tolist() == ["yes", "yes", "no", "no"]


def test_two_thresholds_of_one_detector_and_tables_of_several_steps_are_refused(table):
    twice = [Threshold("induction", 0.3, "a"), Threshold("induction", 0.4, "b")]
    with pytest.raises(WorkbenchError, match="two thresholds are for one detector"):
        claims(table, twice)
    steps = pd.concat([table.assign(step=0), table.assign(step=1)])
    for function in (claims, reliability):
        with pytest.raises(WorkbenchError, match="has 2 steps; pass one checkpoint"):
            function(steps)
