"""Chosen heads are marked in their cells, in the panel of their run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.synthetic_run import DEMO, write_run
from workbench import figures
from workbench.heads import Head
from workbench.runs import open_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    few = {"steps": (0, 1024), "detectors": ("induction",)}
    return [open_run(write_run(folder / name, replace(DEMO[name], **few))) for name in ("full", "hybrid")]


def test_a_mark_lies_in_the_cell_of_its_head_and_in_no_other_run(runs):
    figure = figures.heads(runs, "induction")
    before = len(figure.data)
    figures.mark_heads(figure, {"hybrid": [Head(2, 1), Head(9, 9)], "elsewhere": [Head(0, 0)]})
    (marks,) = figure.data[before:]
    assert (round(marks.x[0]), round(marks.y[0]), len(marks.x)) == (1, 2, 1)
    panel = next(trace for trace in figure.data if trace.name == "hybrid")
    assert (marks.xaxis, marks.yaxis) == (panel.xaxis, panel.yaxis)
    assert marks.hoverinfo == "skip"  # a click goes to the cell


def test_a_ring_stands_around_its_cell(runs):
    figure = figures.mark_heads(figures.heads(runs[0], "induction"), {"full": [Head(0, 3)]}, mark="ring")
    assert (figure.data[-1].x[0], figure.data[-1].y[0]) == (3, 0)
    assert figure.data[-1].marker.symbol == "square-open"
