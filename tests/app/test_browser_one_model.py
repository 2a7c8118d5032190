"""A run of one model, of which no step is known, alone and beside a run over training: no page hangs or is empty."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.app.test_browser import arrive, drawn, query, says
from tests.files.test_token_text import byte_level
from tests.synthetic_run import DEMO, write_run
from workbench.app.pages.probe import EXAMPLE

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(served, tmp_path_factory, synthetic_runs):
    folder = tmp_path_factory.mktemp("alone")
    alone = write_run(folder / "alone", replace(DEMO["hybrid"], steps=(None,)))
    byte_level().save_pretrained(folder / "main")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)).save_pretrained(folder / "main")
    series = json.loads((alone / "checkpoints.json").read_text())
    (alone / "checkpoints.json").write_text(json.dumps([{**series[0], "path": str(folder / "main")}]))
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


def probed(tab):
    """Wait for the patterns of a text; the head that is shown."""
    says(tab, "#probe-said", "done in")
    tab.wait_for_selector("#probe-patterns canvas.far")
    return tab.get_attribute("#probe-patterns canvas.map", "aria-label").removeprefix("pattern of ")


@pytest.mark.slow
def test_a_text_is_run_from_a_head_kept_in_the_address_and_run_again_by_the_same_process(tab, address):
    arrive(tab, f"{address}/head?run=alone&of=alone&head=L1H2", "head")
    tab.click("text=this head on my text")
    tab.wait_for_selector("#page-probe", state="visible")
    says(tab, "#probe-said", "Run makes it")
    assert tab.input_value("#probe-text") == EXAMPLE
    assert tab.input_value("#probe-checkpoint") == "alone · main"
    tab.click("#probe-start")
    assert probed(tab) == "L1H2"
    assert "the model was opened" in tab.inner_text("#probe-said")
    tab.get_by_role("button", name="loss", exact=True).click()
    assert "mean" in tab.locator("#probe-patterns h3 small:text('loss of each token')").inner_text()
    assert "nats, probability" in tab.locator(".tokens span").nth(5).get_attribute("title")

    tab.fill("#probe-text", "今天 the cat sat on the mat, and the cat sat on the mat")
    tab.click("#probe-start")
    tab.wait_for_function("location.search.includes('text=%E4')")
    tab.wait_for_function("document.querySelectorAll('#probe-patterns .tokens span').length < 60")
    farthest = probed(tab)
    assert "the model was open, and it stays open" in tab.inner_text("#probe-said")
    assert tab.locator("#probe-patterns .choices button.on").first.inner_text().startswith(f"{farthest} · ")
    assert tab.locator(".tokens span").nth(1).inner_text() == "今 1/3"
    tab.locator("#probe-patterns .choices button").nth(2).click()
    tab.wait_for_function("location.search.includes('shown=L')")
    shown = query(tab)["shown"][0]
    tab.reload()
    assert probed(tab) == shown != farthest
    assert tab.input_value("#probe-text").startswith("今天 the cat")
    tab.go_back()
    tab.wait_for_function("document.querySelector('#probe-text').value.startsWith('The ferry')")
    assert tab.complaints == []
