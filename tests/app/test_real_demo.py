"""The app over a demo that was really pretrained: both pages load whole, and show what the run says."""

import pytest

from tests.app.test_browser import arrive, drawn, query
from tests.app.test_browser_pages import shot
from workbench.runs import open_run

pytestmark = pytest.mark.browser


def test_the_demo_is_shown_without_one_complaint(tab, served, demo_runs):
    with served(demo_runs) as address:
        arrive(tab, f"{address}/overview?detector=induction&probe=repeats")
        assert query(tab)["run"] == ["full", "sliding"]
        assert tab.locator(".kpi").count() == 2
        shown = tab.evaluate("document.querySelector('#grid .js-plotly-plot').data[0].z").copy()
        stored = open_run(demo_runs[0]).scores(detector="induction", probe="repeats", step="last")
        expected = stored.sort_values(["layer", "head"]).score.tolist()
        assert [value for row in shown for value in row] == pytest.approx(expected, abs=0.01)
        best = open_run(demo_runs[0]).top("induction", 1, probe="repeats").iloc[0]
        head = f"L{best.layer}H{best['head']}"
        tab.goto(f"{address}/head?of=full&head={head}&detector=induction&probe=repeats")
        drawn(tab, "history", "place", "head-grid")
        assert tab.inner_text("#head-title") == head
        tab.go_back()
        drawn(tab, "emergence", "strips", "grid")
        assert tab.said == []
        tab.goto("about:blank")


@pytest.mark.slow
def test_every_page_of_the_demo_is_whole(tab, served, demo_runs):
    with served(demo_runs) as address:
        for page, graphs in {
            "overview": ("emergence", "strips", "ridges"),
            "head": ("history", "place", "head-grid"),
            "compare": ("against", "matrices", "classes"),
            "jobs": (),
        }.items():
            tab.goto(f"{address}/{page}?detector=induction&probe=repeats")
            drawn(tab, *graphs)
            tab.wait_for_selector(f"#{page}", state="visible")
            shot(tab, f"demo-{page}")
        tab.wait_for_function("n => document.querySelectorAll('#scans .scan').length === n", arg=len(demo_runs))
        tab.click("#nav-plan")
        tab.wait_for_function("document.querySelector('#mask')?.textContent.includes('workbench plan MODEL')")
        assert tab.said == []
        tab.goto("about:blank")
