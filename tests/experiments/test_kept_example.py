"""The kept reports are of the studies as they are, and what is written about them is in their numbers."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.console import plain
from workbench.experiments import medium_study, quick_study

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


def test_the_table_of_the_medium_study_is_that_of_its_kept_numbers():
    """Mean and deviation over seeds, needles over their far distances."""
    document = kept("medium")
    measured = pd.DataFrame(document["measured"])
    far = [d for d in document["study"]["distances"] if d > document["study"]["window"]]

    def cell(method, training, probe):
        mine = measured[(measured.method == method) & (measured.training == training) & (measured.probe == probe)]
        mine = mine[mine.label.isin(far)] if probe == "needle" else mine[mine.label.isna()]
        by_seed = mine.groupby("seed").accuracy.mean()
        assert len(by_seed) == 3
        return by_seed.mean(), np.std(by_seed, ddof=1)

    text = (KEPT / "README.md").read_text().split("## 64 heads")[1]
    for title, method in ROWS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
        trainings = ("no training", "240 steps at 0.3 of the peak rates")
        expected = [cell(method, t, probe) for t in trainings for probe in ("needle", "hops", "counting")]
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
