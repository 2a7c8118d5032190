"""A figure becomes dark by the pairs of colours alone, so that the browser can change the theme without the server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.app.plans import cells_of_verdict, made_plan
from tests.figures.theme_change import as_sent, in_the_dark
from tests.synthetic_run import DEMO, write_run
from workbench import Head, emergence, figures
from workbench.app.components import message
from workbench.runs import open_run
from workbench.store.length_verdict import LengthVerdict

DRAWN = {
    "emergence": lambda runs, on: figures.emergence(runs, detector="induction", theme=on),
    "heads": lambda runs, on: figures.heads(runs, detector="induction", theme=on),
    "strips": lambda runs, on: figures.strips(runs, detector="induction", theme=on),
    "ranked": lambda runs, on: figures.ranked(runs, detector="induction", theme=on),
    "ridgelines": lambda runs, on: figures.ridgelines(runs, detector="induction", theme=on),
    "metrics": lambda runs, on: figures.metrics(runs, metric="copy_accuracy", theme=on),
    "distances": lambda runs, on: figures.metrics(runs[0], metric="copy_accuracy", theme=on),
    "history": lambda runs, on: figures.history(runs[0], Head(0, 0), theme=on),
    "place": lambda runs, on: figures.place(runs[0], Head(0, 0), theme=on),
    "shares": lambda runs, on: figures.onset_shares(runs, detector="induction", probe="repeats", theme=on),
    "lock-in": lambda runs, on: figures.lock_in(runs[0].lock_in("induction", probe="repeats"), theme=on),
    "pairs": lambda runs, on: figures.scores_against(pairs(runs), detector="induction", names=("a", "b"), theme=on),
    "matrices": lambda runs, on: figures.rank_agreement({"full": agreement(runs)}, labels={}, theme=on),
    "groups": lambda runs, on: figures.emergence_of_groups({"a": runs}, detector="induction", theme=on),
    "rings": lambda runs, on: figures.mark_heads(
        figures.heads(runs[0], detector="induction", theme=on), {"full": [Head(0, 1)]}, mark="ring", theme=on
    ),
    "plan": lambda _, on: figures.plan(made_plan(), theme=on),
    "pareto": lambda _, on: figures.pareto(made_plan(), theme=on),
    "verdict": lambda _, on: figures.verdict(LengthVerdict(0.05, 64, cells_of_verdict()), theme=on),
    "message": lambda _, on: message("no scores yet; make some", on),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    few = {"steps": (0, 64, 1024), "detectors": ("induction", "entropy")}
    return [open_run(write_run(folder / name, replace(DEMO[name], **few))) for name in ("full", "linear")]


def pairs(runs):
    return emergence.paired(*(run.scores(detector="induction", step="last") for run in runs), by="rank")


def agreement(runs):
    scores = runs[0].scores(detector="induction")
    return emergence.rank_agreement(scores, scores)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_becomes_dark_by_its_colours_alone(runs, name):
    light, dark = (DRAWN[name](runs, theme) for theme in ("light", "dark"))
    assert as_sent(light) != as_sent(dark)
    assert in_the_dark(light) == as_sent(dark)
