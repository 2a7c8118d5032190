"""The strongest heads of a checkpoint stand in order with their intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.synthetic_run import DEMO, write_run
from workbench import figures
from workbench.runs import open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    shape = replace(DEMO["hybrid"], steps=(None,), detectors=("induction", "entropy", "learned_sink"))
    return open_run(write_run(tmp_path_factory.mktemp("runs") / "alone", shape))


def test_heads_are_sorted_with_their_intervals_and_the_threshold(run):
    figure = figures.ranked(run, detector="induction", top=5)
    best = run.scores(detector="induction").nlargest(5, "score")
    (points,) = figure.data
    assert list(points.x) == pytest.approx(best["score"].tolist())
    assert list(points.customdata) == [f"L{row.layer}H{row.head}" for row in best.itertuples()]
    assert np.allclose(points.error_x.array, best["ci_hi"] - best["score"])
    assert np.allclose(points.error_x.arrayminus, best["score"] - best["ci_lo"])
    assert [shape.x0 for shape in figure.layout.shapes] == [0.4]
    assert figure.layout.annotations[0].text == "alone · the first 5 of 12 heads"


def test_a_detector_with_a_unit_has_no_threshold_and_heads_without_a_score_are_left_out(run):
    assert figures.ranked(run, detector="entropy").layout.shapes == ()
    assert len(figures.ranked(run, detector="learned_sink").data[0].x) == 8  # of the sliding layers


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_drawn_on_either_ground_and_beside_others(run, theme):
    figure = figures.ranked([run, run], detector="induction", theme=theme)
    assert [trace.name for trace in figure.data] == ["alone", "alone"]
