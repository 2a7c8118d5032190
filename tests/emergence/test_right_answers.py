"""What a model gets right is judged against the same tokens without the answers."""

import math

import pandas as pd
import pytest

from workbench.emergence import abilities
from workbench.emergence.right_answers import in_words

COLUMNS = ["probe", "metric", "distance", "position", "value", "ci_lo", "ci_hi", "n"]


def metrics(*rows):
    table = pd.DataFrame([dict(zip(COLUMNS, row, strict=True)) for row in rows], columns=pd.Index(COLUMNS))
    return table.astype({"distance": "Int64", "position": "Int64"})


def measured(probe, right, low, high, *, metric="recall", n=40):
    return [
        (probe, metric, None, None, right, low, high, n),
        (probe, "loss_nats", None, None, 1.0, 0.9, 1.1, n),
        (probe, f"{metric}_depth_50", None, None, 0.0, 0.0, 0.0, 4),
    ]


@pytest.mark.parametrize(
    ("right", "chance", "verdict"),
    [
        ((0.95, 0.9, 1.0), (0.1, 0.05, 0.15), "does"),
        ((0.3, 0.25, 0.35), (0.1, 0.05, 0.15), "partly"),
        ((0.12, 0.06, 0.2), (0.1, 0.05, 0.15), "cannot"),
        ((0.9, 0.85, 0.95), (0.9, 0.8, 0.95), "cannot"),  # right, and as right without the answers
        ((0.3, 0.25, 0.35), None, "not known"),
        ((0.95, math.nan, math.nan), (0.1, math.nan, math.nan), "does"),  # too few sequences for an interval
    ],
)
def test_a_probe_is_done_where_half_is_right_and_more_than_without_the_answers(right, chance, verdict):
    rows = measured("needle", *right)
    rows += measured("needle_without_answers", *chance) if chance else []
    (row,) = abilities(metrics(*rows)).to_dict("records")
    assert (row["probe"], row["metric"], row["n"], row["verdict"]) == ("needle", "recall", 40, verdict)
    assert row["right"] == right[0]
    assert ("cannot do needle" in in_words(row)) == (verdict == "cannot")


def test_first_occurrences_are_the_control_of_repeated_text_and_classes_weigh_by_their_answers():
    rows = [
        ("repeated_ngrams", "copy_accuracy", None, None, 0.5, 0.4, 0.6, 100),
        ("repeated_ngrams", "copy_accuracy", 0, None, 0.2, 0.1, 0.3, 50),
        ("repeated_ngrams", "copy_accuracy", 8, None, 0.6, 0.5, 0.7, 10),
        ("repeated_ngrams", "copy_accuracy", 64, None, 0.9, 0.8, 1.0, 40),
    ]
    (row,) = abilities(metrics(*rows)).to_dict("records")
    assert row["right"] == pytest.approx((0.6 * 10 + 0.9 * 40) / 50)
    assert (row["right_lo"], row["right_hi"]) == pytest.approx((0.74, 0.94))
    assert (row["chance"], row["n"], row["verdict"]) == (0.2, 50, "does")


def test_a_text_without_answers_to_get_right_has_no_row():
    assert abilities(metrics(("text", "loss_nats", None, None, 3.0, 2.9, 3.1, 100))).empty


def test_later_occurrences_have_one_interval_over_all_distances_and_the_sentence_has_it():
    rows = [
        ("repeated_ngrams", "copy_accuracy", None, None, 0.5, 0.4, 0.6, 60),
        ("repeated_ngrams", "copy_accuracy_later", None, None, 0.84, 0.75, 0.9, 50),
        ("repeated_ngrams", "copy_accuracy", 0, None, 0.2, 0.1, 0.3, 10),
        ("repeated_ngrams", "copy_accuracy", 8, None, 0.6, math.nan, math.nan, 10),  # in too few sequences
        ("repeated_ngrams", "copy_accuracy", 64, None, 0.9, 0.8, 1.0, 40),
    ]
    (row,) = abilities(metrics(*rows)).to_dict("records")
    assert (row["metric"], row["n"], row["verdict"]) == ("copy_accuracy", 50, "does")
    assert (row["right"], row["right_lo"], row["right_hi"]) == (0.84, 0.75, 0.9)
    sentence = "the model gets 0.84 (0.75–0.90) of the answers of repeated_ngrams right, 0.20 (0.10–0.30) without them"
    assert in_words(row).startswith(sentence)
