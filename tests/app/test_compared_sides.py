"""Which two sides Compare begins with, follows and leaves out, over two published runs of one study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.app.test_browser import query, says
from tests.app.test_callbacks import call
from workbench.app import build_app
from workbench.app.pages.compare import settle
from workbench.app.state.address import settled
from workbench.app.state.content import Content
from workbench.app.state.live_runs import live_runs
from workbench.app.state.view import View

# Both were scored on text, and full on repeated random tokens too.
STUDY = [Path(__file__).parents[2] / "examples" / "python_source" / name for name in ("full", "hybrid")]
ON_REPEATS = View(page="compare", detector="induction", probe="repeats")


@pytest.fixture(scope="module")
def content():
    return Content(live_runs(STUDY))


def sides(view):
    return [view.get(name) for name in ("a", "at_a", "b", "at_b")]


def shown(view, content):
    return settle(settled(view, content.runs), content)


def test_sides_that_nobody_chose_follow_the_probe_and_each_other_and_a_choice_stays(content):
    middle, last = "checkpoint-157", "checkpoint-1400"
    one = shown(ON_REPEATS, content)
    assert sides(one) == ["full", middle, "full", last]
    two = shown(replace(one, probe="text"), content)
    assert sides(two) == ["full", last, "hybrid", last]
    assert sides(shown(two.having({"b": "full"}), content)) == ["full", middle, "full", last]
    chosen = shown(two.having({"at_a": middle}), content)
    assert sides(shown(chosen.having({"b": "full"}), content)) == ["full", middle, "full", last]
    assert sides(shown(chosen, content)) == ["full", middle, "hybrid", last]


def test_a_run_that_was_not_scored_on_the_probe_is_named_with_the_probe_that_all_have(content):
    app = build_app(STUDY)
    answer = call(app, "compare-left-out.children", ["view.data"], view=shown(ON_REPEATS, content).as_json())
    text, link = answer["compare-left-out"]["children"]
    assert "on repeats, so not offered: hybrid: scored on text" in text
    assert link["props"]["children"] == "compare on text"
    on_text = shown(replace(ON_REPEATS, probe="text"), content).as_json()
    assert call(app, "compare-left-out.children", ["view.data"], view=on_text)["compare-left-out"]["children"] == []


@pytest.mark.browser
def test_a_click_compares_the_two_runs_on_the_probe_that_both_have(tab, served):
    with served(STUDY) as address:
        tab.goto(f"{address}/compare?detector=induction&probe=repeats")
        says(tab, "#compare-how", "two checkpoints of one run")
        tab.click("text=compare on text")
        says(tab, "#compare-how", "no head of A is a head of B")
        tab.wait_for_function("location.search.includes('b=hybrid')")
        assert (query(tab)["at_a"], query(tab)["probe"]) == (["checkpoint-1400"], ["text"])
        assert tab.complaints == []
        tab.goto("about:blank")
