"""Figures of pairs, matrices, distributions and phases show the numbers of their tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.synthetic_run import DEMO, write_run
from workbench import emergence, figures
from workbench.heads import WorkbenchError
from workbench.runs import open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    shape = replace(DEMO["hybrid"], steps=(0, 64, 256, 1024), detectors=("induction",))
    return open_run(write_run(tmp_path_factory.mktemp("runs") / "hybrid", shape))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_matrix_has_checkpoints_in_order_from_the_top_on_a_fixed_scale(run, theme):
    scores = run.scores(detector="induction")
    table = emergence.rank_agreement(scores, scores)
    figure = figures.rank_agreement({"hybrid": table}, labels={"step0": "0"}, theme=theme)
    everything, within = figure.data
    assert np.diag(everything.z) == pytest.approx(np.ones(4), abs=1e-6)
    assert list(everything.y) == ["step0", "step64", "step256", "step1024"]
    assert within.z[0][3] == pytest.approx(table["rho_within"].iloc[3], abs=1e-6)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1, 1)
    assert figure.layout.yaxis.range == (3.5, -0.5)
    assert figure.layout.xaxis.ticktext[0] == "0"
    with pytest.raises(WorkbenchError, match="rank_agreement"):
        figures.rank_agreement({})


def test_every_pair_is_a_point_with_its_head(run):
    scores = [run.scores(detector="induction", ckpt=name) for name in ("step64", "step1024")]
    pairs = emergence.paired(scores[0], scores[1], by="head")
    figure = figures.scores_against(pairs, detector="induction", names=("then", "now"))
    points = [zip(trace.customdata, trace.x, trace.y, strict=True) for trace in figure.data[1:]]
    drawn = {head: (x, y) for trace in points for head, x, y in trace}
    expected = pairs.set_index("name")[["score", "score_other"]]
    assert drawn == {head: tuple(both) for head, both in zip(expected.index, expected.to_numpy(), strict=True)}
    assert {trace.name for trace in figure.data[1:]} == {"F full", "W sliding"}
    with pytest.raises(WorkbenchError, match="no pairs"):
        figures.scores_against(pairs.iloc[:0], detector="induction", names=("then", "now"))


def test_a_ridge_stands_where_the_scores_are(run):
    figure = figures.ridgelines(run, detector="induction")
    last = run.scores(detector="induction", step="last")["score"]
    ridge = figure.data[-1]
    assert len(figure.data) == 4
    assert min(ridge.y) == 3
    high = [x for x, y in zip(ridge.x, ridge.y, strict=True) if y > 3]
    assert max(high) >= last.max() > max(high) - 2 / 32
    assert f"{len(last)} heads" in ridge.text


def test_a_phase_change_is_marked_where_half_of_it_was_over_and_only_in_its_unit(run):
    change = {"metric": "loss_nats", "probe": "text", "unit": "tokens", "is_change": True}
    table = pd.DataFrame([{**change, "n10": 1e5, "n50": 2e5, "n90": 4e5}, {**change, "is_change": False, "n50": 9e5}])
    figure = figures.mark_phases(figures.emergence(run, detector="induction"), {"hybrid": table})
    assert [shape.x0 for shape in figure.layout.shapes] == [2e5]
    assert "100K" in figure.data[-1].hovertemplate
    before = figures.emergence(run, detector="induction", x="step")
    n = len(before.data)
    assert len(figures.mark_phases(before, {"hybrid": table}, x="step").data) == n
