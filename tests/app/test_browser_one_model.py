"""A run of one model, of which no step is known, alone and beside a run over training: no page hangs or is empty."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from tests.app.test_browser import arrive, drawn, query, says
from tests.synthetic_run import DEMO, write_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(served, tmp_path_factory, synthetic_runs):
    alone = write_run(tmp_path_factory.mktemp("alone") / "alone", replace(DEMO["hybrid"], steps=(None,)))
    with served([alone, synthetic_runs[0]]) as address:
        yield address


def test_one_model_has_an_overview_and_a_click_on_a_cell_opens_the_head(tab, address):
    arrive(tab, f"{address}/overview?run=alone")
    assert "of 12 heads at induction ≥ 0.4" in tab.locator(".kpi").inner_text()
    assert "one checkpoint" in tab.locator(".kpi").inner_text()
    assert tab.inner_text("#checkpoint-label") == "main"
    tab.locator("#grid").scroll_into_view_if_needed()
    box = tab.locator("#grid .nsewdrag").first.bounding_box()
    tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    head = tab.wait_for_function("document.querySelector('#grid .js-plotly-plot')._hoverdata?.[0].customdata")
    tab.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    drawn(tab, "history", "place", "head-grid")
    says(tab, "#head-title", head.json_value())
    assert (urlsplit(tab.url).path, query(tab)["of"]) == ("/head", ["alone"])
    tab.wait_for_selector("#head-badges :text('heads in layer')")
    tab.wait_for_selector("#head-scores tbody tr")
    assert tab.complaints == []


def test_one_model_beside_a_run_over_training_leaves_both_their_cards(tab, address):
    arrive(tab, f"{address}/overview?run=alone&run=full")
    assert tab.locator(".kpi").count() == 2
    assert "first onset" in tab.locator(".kpi").nth(1).inner_text()
    tab.keyboard.press("[")  # the model of one checkpoint stays beside every step of the other
    says(tab, "#checkpoint-label", "tokens")
    tab.wait_for_function("document.querySelector('#grid .js-plotly-plot').data[0].z.flat().every((z) => z !== null)")
    assert tab.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("runs", ["run=alone", "run=alone&run=full"])
def test_no_page_of_one_model_hangs(tab, address, runs):
    tab.goto(f"{address}/compare?{runs}")
    says(tab, "#against", "same checkpoint" if runs == "run=alone" else "full · step3072")
    says(tab, "#lock-in", "at least two checkpoints")
    says(tab, "#page-compare", "no steps are known of alone")
    for page in ("plan", "jobs", "probe"):
        tab.goto(f"{address}/{page}?{runs}")
        tab.wait_for_selector(f"#page-{page}", state="visible")
        tab.wait_for_selector(".waiting", state="hidden")
    assert tab.complaints == []
