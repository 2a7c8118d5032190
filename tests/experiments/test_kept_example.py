"""The kept reports are of the studies as they are, and what is written about them is in their numbers."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.experiments import medium_study, quick_study
from workbench.files.plain_json import plain

KEPT = Path(__file__).parents[2] / "examples" / "conversion"


def kept(name):
    return json.loads((KEPT / f"{name}.json").read_text())


@pytest.mark.parametrize(("name", "study"), [("report", quick_study()), ("medium", medium_study())])
def test_a_kept_report_is_of_todays_settings_and_three_seeds_and_of_a_study_that_ended(name, study):
    document = kept(name)
    assert document["study"] == plain(asdict(study))
    assert document["seeds"] == [0, 1, 2]
    assert document["missing"] == []
    assert document["not_claimed"] in (KEPT / f"{name}.md").read_text()


ROWS = {
    "all 64 heads": "all",
    "none": "none",
    "window gates on needles": "window_gates",
    "window gates on all three": "window_gates_mixed",
    "induction": "induction",
    "the least induction of the same layers": "least_induction",
}


LINEAR_ROWS = {
    "all 64 heads": "all",
    "none, all windowed": "none",
    "none, all linear": "none_linear",
    "linear gates on needles": "linear_gates",
    "linear gates on all three": "linear_gates_mixed",
    "window gates on needles": "window_gates_linear",
    "induction": "induction_linear",
    "random": "random_linear",
}


@pytest.mark.parametrize(
    ("heading", "rows", "trained"),
    [
        ("## 64 heads", ROWS, "240 steps at 0.3 of the peak rates"),
        ("### Linear attention", LINEAR_ROWS, "80 steps at 0.3 of the peak rates"),
    ],
)
def test_the_tables_of_the_medium_study_are_of_its_kept_numbers(heading, rows, trained):
    """Mean and deviation over seeds, needles over their far distances; draws of a seed are averaged first."""
    document = kept("medium")
    measured = pd.DataFrame(document["measured"])
    far = [d for d in document["study"]["distances"] if d > document["study"]["window"]]

    def cell(method, training, probe):
        mine = measured[(measured.method == method) & (measured.training == training) & (measured.probe == probe)]
        mine = mine[mine.label.isin(far)] if probe == "needle" else mine[mine.label.isna()]
        by_seed = mine.groupby("seed").accuracy.mean()
        assert len(by_seed) == 3
        return by_seed.mean(), np.std(by_seed, ddof=1)

    text = (KEPT / "README.md").read_text().split(heading)[1]
    for title, method in rows.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
        expected = [
            cell(method, t, probe) for t in ("no training", trained) for probe in ("needle", "hops", "counting")
        ]
        written = [tuple(float(number) for number in one.split("±")) for one in row.split("|")[2:-1]]
        np.testing.assert_allclose(written, expected, atol=0.00502)


def test_what_priors_miss_is_told_as_it_was_measured():
    table = pd.DataFrame(kept("medium")["recovered"])
    table = table[(table.n_kept == 12) & (table.probe == "counting")]
    by = {m: g.groupby("seed").share.mean() for m, g in table.groupby("method")}
    told = {m: f"{by[m].mean():.2f} ± {by[m].std():.2f}".replace("0.", ".") for m in by}
    text = re.sub(r"\s+", " ", (KEPT / "README.md").read_text())
    assert f"gates on counting bring back {told['window_gates_counting']}, by induction or retrieval" in text
    assert told["induction"] == told["retrieval"] == ".73 ± .21"
    assert (by["window_gates_counting"] > by["induction"]).all()


def test_what_linear_attention_costs_is_told_as_it_was_measured():
    document, text = kept("medium"), re.sub(r"\s+", " ", (KEPT / "README.md").read_text())
    shares = pd.DataFrame(document["recovered"])
    shares = shares[(shares.n_kept == 12) & (shares.probe == "needle")]
    measured = pd.DataFrame(document["measured"])

    def told(by_seed):
        return f"{by_seed.mean():.2f} ± {by_seed.std():.2f}".replace("0.", ".")

    def share(method):
        return told(shares[shares.method == method].groupby("seed").share.mean())

    def right(method, training, probe="counting"):
        mine = measured[(measured.method == method) & (measured.training == training)]
        return told(mine[(mine.probe == probe) & mine.label.isna()].groupby("seed").accuracy.mean())

    assert f"bring back {share('window_gates')} of the loss on needles where the others are windowed" in text
    assert f"windowed and {share('window_gates_linear')} where they are linear" in text
    assert f"by induction {share('induction')} and {share('induction_linear')}; by gates towards" in text
    assert f"towards linear attention it is {share('linear_gates')}" in text
    front = re.sub(r"\s+", " ", (KEPT.parents[1] / "README.md").read_text())
    assert f"bring back {share('window_gates_linear')} of what needles lose and not {share('window_gates')}" in front
    assert f"12 by gates towards linear attention {share('linear_gates')}:" in front
    for method, words in (("none_linear", "counting is right in"), ("none", "with every head windowed in")):
        assert f"{words} {right(method, 'no training')}" in front
    short, long = "80 steps at 0.3 of the peak rates", "240 steps at 0.3 of the peak rates"
    for method, words in (("none_linear", "With every head linear, counting is right in"), ("none", "windowed in")):
        assert f"{words} {right(method, 'no training')}" in text
        assert right(method, short) in text
    both = {m: (right(m, long, "hops"), right(m, long)) for m in ("linear_gates_mixed", "window_gates_mixed")}
    assert "hops {}, counting {}; windowed".format(*both["linear_gates_mixed"]) in text
    assert ", {}, {}.".format(*both["window_gates_mixed"]) in text
    assert not any(np.isnan(row["error"]) for row in document["forms"])


def test_what_the_quick_study_says_of_linear_attention_is_what_it_measured():
    document, text = kept("report"), re.sub(r"\s+", " ", (KEPT / "README.md").read_text())
    recall = pd.DataFrame(document["recall"])
    trainings = (
        "no training",
        "60 steps at 0.3 of the peak rates",
        "200 steps at 0.3 of the peak rates",
        "from scratch",
    )

    def told(method, training):
        mine = recall[(recall.method == method) & (recall.training == training) & (recall.n_kept == 3)]
        by_seed = mine.groupby("seed").far_accuracy.mean()
        return f"{by_seed.mean():.2f} ± {by_seed.std():.2f}".replace("0.", ".")

    first, second, third, last = (told("linear_gates", training) for training in trainings)
    said = f"they keep {first} of recall without training, {second} after 60 steps, {third} after 200 and {last} from"
    assert said in text
    first, second = (told("window_gates_linear", training) for training in trainings[:2])
    assert f"the three by window gates {first} and, after 60 steps, {second}." in text
    rankings = pd.DataFrame(document["rankings"])
    for seed in document["seeds"]:
        mine = rankings[(rankings.seed == seed) & (rankings.method == "linear_gates")].nlargest(3, "score")
        assert sorted(mine.layer) == [0, 1, 1]
