"""Heads are named by thresholds with their sources, and only where the model can do the probe."""

import pandas as pd
import pytest

from tests.emergence.test_right_answers import measured, metrics
from workbench.emergence import summarise_model

DOES = metrics(
    *measured("repeats", 0.6, 0.55, 0.65, metric="copy_accuracy"),
    *measured("niah_single_2", 0.98, 0.9, 1.0),
    *measured("niah_single_2_without_answers", 0.1, 0.0, 0.2),
)


def scores(detector, probe, *values):
    return [
        {
            "layer": i,
            "head": 0,
            "kv_head": 0,
            "kind": "full",
            "detector": detector,
            "probe": probe,
            "score": score,
            "ci_lo": score - 0.05,
            "ci_hi": score + 0.05,
            "n_seq": 6,
        }
        for i, score in enumerate(values)
    ]


ALL = pd.DataFrame(
    [
        *scores("retrieval_top1", "niah_single_2", 0.02, 0.98, 0.12),
        *scores("retrieval_top1", "repeats", 0.9, 0.9, 0.9),
        *scores("induction", "repeats", 0.1, 0.9, 0.5),
        *scores("previous_token", "repeats", 0.9, 0.1, 0.2),
        *scores("sink_gu", "repeats", 1.0, 1.0, 0.0),
        *scores("sink", "repeats", 0.4, 0.9, 0.0),
    ]
)


def test_each_class_of_heads_is_named_with_interval_threshold_and_source():
    summary = summarise_model(ALL, DOES)
    named = {name: list(group["name"]) for name, group in summary.heads.groupby("class")}
    assert named == {
        "retrieval": ["L1H0", "L2H0"],
        "induction": ["L1H0", "L2H0"],
        "previous token": ["L0H0"],
        "sink": ["L1H0", "L0H0"],  # equal shares of samples: the one with more attention first
    }
    retrieval = summary.heads[summary.heads["class"] == "retrieval"]
    assert list(retrieval["claim"]) == ["yes", "undecided"]
    assert set(retrieval["probe"]) == {"niah_single_2"}
    counted = summary.classes.set_index("class").loc["retrieval"]
    assert (counted["n_heads"], counted["undecided"], counted["of"], counted["threshold"]) == (1, 1, 3, 0.1)
    assert "Wu et al. 2024" in counted["source"]
    assert summary.remarks == ()
    assert any("L1H0 0.98 (0.93–1.03)" in sentence for sentence in summary.sentences())


def test_no_retrieval_head_is_named_on_a_needle_that_the_model_cannot_find():
    cannot = metrics(
        *measured("niah_single_2", 0.12, 0.05, 0.2),
        *measured("niah_single_2_without_answers", 0.1, 0.0, 0.2),
    )
    summary = summarise_model(ALL, cannot)
    assert "retrieval" not in set(summary.heads["class"])
    assert any(
        r.startswith("Retrieval heads are not named: the model cannot do niah_single_2") for r in summary.remarks
    )
    assert any(r.startswith("Scores on niah_single_2 say where heads look") for r in summary.remarks)


def test_of_two_needles_the_one_that_the_model_finds_is_read():
    both = pd.concat([DOES, metrics(*measured("niah_multikey_1", 0.2, 0.1, 0.3))])
    table = pd.concat([ALL, pd.DataFrame(scores("retrieval_top1", "niah_multikey_1", 0.9, 0.0, 0.0))])
    summary = summarise_model(table, both)
    assert set(summary.heads[summary.heads["class"] == "retrieval"]["probe"]) == {"niah_single_2"}


def test_a_class_without_scores_is_not_named_and_the_next_step_is():
    summary = summarise_model(ALL[ALL["detector"] == "induction"], DOES)
    assert list(summary.classes["class"]) == ["induction"]
    assert sum("not named" in remark and "--" in remark for remark in summary.remarks) == 3


def test_fewer_than_five_sequences_make_no_claim():
    few = ALL.assign(n_seq=4)
    summary = summarise_model(few, DOES)
    assert summary.heads.empty
    assert list(summary.classes["n_heads"]) == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["abilities", "classes", "heads", "remarks"])
def test_the_summary_is_one_document(name):
    assert name in summarise_model(ALL, DOES).document()
