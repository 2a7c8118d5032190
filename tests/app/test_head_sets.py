"""A set of pinned heads goes from page to page in the address, with the run whose heads they are."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from tests.app.test_view import address
from tests.synthetic_run import DEMO, write_run
from workbench.app.callbacks import next_view
from workbench.app.ids import JUMP
from workbench.app.state.address import address_of, settled, view_of
from workbench.app.state.head_sets import heads_in, pinned, text_of, toggled
from workbench.app.state.live_runs import live_runs
from workbench.app.state.view import NO_HEAD
from workbench.heads import Head


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    few = {"steps": (0, 1024), "detectors": ("induction",)}
    write_run(folder / "full", replace(DEMO["full"], **few))
    write_run(folder / "other", replace(DEMO["hybrid"], **few))
    shutil.copytree(folder / "full", folder / "same")
    return live_runs([folder])


def jumped(view, runs, **jump):
    return next_view(view, JUMP, {JUMP: jump}, runs)


@pytest.mark.parametrize("page", ["overview", "head", "head_table", "compare", "plan", "jobs", "probe"])
def test_every_page_carries_the_set_and_its_run(runs, page):
    view = settled(view_of(address(f"/{page}?of=other&heads=L1H2.L0H1"))[0], runs)
    assert pinned(view, runs) == (Head(0, 1), Head(1, 2))
    again = settled(view_of(address(f"/{address_of(view)}"))[0], runs)
    assert (pinned(again, runs), again.run) == (pinned(view, runs), "other")


def test_a_set_is_read_in_any_order_and_what_names_no_head_is_left_out(runs):
    assert heads_in("L10H1.L2H3.l2h3.nonsense.") == (Head(2, 3), Head(10, 1))
    assert text_of([Head(10, 1), Head(2, 3)]) == "L2H3.L10H1"
    view = settled(view_of(address("/head?of=full&heads=L0H1.L99H0"))[0], runs)
    assert pinned(view, runs) == (Head(0, 1),)
    assert toggled(view, Head(0, 1)) == "L99H0"


def test_another_models_heads_are_not_those_that_were_pinned(runs):
    view = settled(view_of(address("/head?of=full&heads=L0H1"))[0], runs)
    assert pinned(jumped(view, runs, run="same"), runs) == (Head(0, 1),)  # the same weights
    assert pinned(jumped(view, runs, run="other"), runs) == ()
    assert pinned(jumped(view, runs, page="overview"), runs) == (Head(0, 1),)
    assert pinned(jumped(view, runs, run="other", set={"heads": "L1H1"}), runs) == (Head(1, 1),)


def test_a_head_that_does_not_exist_is_said_until_another_is_chosen(runs):
    view = settled(view_of(address("/head?of=full&head=L99H99"))[0], runs)
    assert (view.get(NO_HEAD), view.head != "L99H99") == ("L99H99", True)
    assert "no_head" not in address_of(view)
    assert jumped(view, runs, key="h").get(NO_HEAD) == ""
    assert jumped(view, runs, head="L1H1").get(NO_HEAD) == ""
    assert jumped(view, runs, page="head", head="L7H7").get(NO_HEAD) == "L7H7"
    assert settled(view_of(address("/head?of=full&head=l1h1"))[0], runs).get(NO_HEAD) == ""
