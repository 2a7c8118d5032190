"""Runs of one name and several numbers are drawn as their mean, with a band from the lowest to the highest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.synthetic_run import DEMO, write_run
from workbench import figures
from workbench.figures.style import pin_run
from workbench.heads import WorkbenchError
from workbench.runs import open_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    shape = replace(DEMO["full"], steps=(0, 64, 1024), detectors=("induction",))
    return [open_run(write_run(folder / f"a-seed{i}", replace(shape, seed=i))) for i in range(3)]


def test_a_group_is_the_name_without_its_number_where_another_has_it_too():
    names = ["full-seed1", "full-seed2", "lr3e-4_s1", "lr3e-4_s2", "smollm2", "pythia-160m", "7", "8"]
    assert figures.group_names(names) == {
        **dict.fromkeys(names[:2], "full"),
        **dict.fromkeys(names[2:4], "lr3e-4"),
        **{name: name for name in names[4:]},
    }


def test_a_groups_line_is_the_mean_of_its_runs_and_its_band_reaches_from_lowest_to_highest(runs):
    figure = figures.emergence_of_groups({"a": runs, "one": runs[:1]}, detector="induction")
    band, mean, alone = figure.data
    each = []
    for run in runs:
        course = run.trajectories("induction", "repeats")
        each.append(course.score[course.strongest(3)].mean(0))
    assert np.allclose(mean.y, np.mean(each, axis=0))
    assert np.allclose(band.y[:3], np.max(each, axis=0))
    assert np.allclose(band.y[3:][::-1], np.min(each, axis=0))
    assert (mean.name, alone.name) == ("a · 3 runs", "one")
    assert np.allclose(alone.y, each[0])


def test_metrics_are_grouped_alike(runs):
    figure = figures.metrics_of_groups({"a": runs}, metric="loss_nats", probe="text")
    values = [run.metrics(metric="loss_nats", probe="text")["value"].to_numpy() for run in runs]
    assert np.allclose(figure.data[1].y, np.mean(values, axis=0))


def test_runs_that_share_no_checkpoint_have_no_mean(runs, tmp_path):
    other = open_run(write_run(tmp_path / "a-seed9", replace(DEMO["full"], steps=(8, 512), detectors=("induction",))))
    with pytest.raises(WorkbenchError, match="share no checkpoint"):
        figures.emergence_of_groups({"a": [runs[0], other]}, detector="induction")


def test_of_many_runs_the_means_are_drawn_the_legend_stands_beside_and_a_baseline_stands_out(runs):
    figure = figures.emergence([*runs, *runs, *runs], detector="induction")
    assert len(figure.data) == 9
    assert "means alone" in figure.layout.yaxis.title.text
    assert figure.layout.legend.orientation == "v"
    assert len(figures.emergence(runs, detector="induction").data) == 3 * 5  # three heads, their mean, their onsets
    pinned = pin_run(figures.emergence(runs, detector="induction"), "a-seed1", "light")
    named = [trace for trace in pinned.data if trace.name == "a-seed1 (baseline)"]
    assert [trace.line.dash for trace in named] == ["solid"]
