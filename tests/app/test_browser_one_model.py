"""A run of one model, of which no step is known, alone and beside a run over training: no page hangs or is empty.

Beside them runs with other steps, a run that is not whole, and one whose folder goes while it is shown.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.app.test_browser import arrive, drawn, query, says
from tests.app.test_browser_pages import FITS
from tests.files.test_token_text import byte_level
from tests.synthetic_run import DEMO, write_run
from workbench.app.pages.probe import EXAMPLE
from workbench.store import Failure, Store

pytestmark = pytest.mark.browser
IN_ADDRESS = """() => Object.entries(workbench.lastPlace())
  .every(([name, value]) => new URLSearchParams(location.search).get(name) === value)"""
FEW = {"detectors": ("induction",)}


@pytest.fixture(scope="module")
def address(served, tmp_path_factory, synthetic_runs):
    folder = tmp_path_factory.mktemp("alone")
    alone = write_run(folder / "alone", replace(DEMO["hybrid"], steps=(None,)))
    byte_level().save_pretrained(folder / "main")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)).save_pretrained(folder / "main")
    series = json.loads((alone / "checkpoints.json").read_text())
    (alone / "checkpoints.json").write_text(json.dumps([{**series[0], "path": str(folder / "main")}]))
    between = write_run(folder / "between", replace(DEMO["sliding"], **FEW, steps=(20, 500, 2000)))
    doomed = write_run(folder / "doomed", replace(DEMO["linear"], **FEW, steps=(8, 64)))
    torn = write_run(folder / "torn", replace(DEMO["full"], **FEW, steps=(8,)))
    part = Store.open(torn).parts()[0].path
    part.write_bytes(part.read_bytes()[:100])
    failed = Store.create(folder / "failed", job={"checkpoints": "/data/x"}, versions={})
    failed.write_plan({"checkpoints": ["main"], "units": []})
    failed.fail(Failure("main", None, "bad_checkpoint", "model.safetensors: its header is torn", "trace"))
    runs = [alone, synthetic_runs[0], between, doomed, torn, failed.path]
    with served(runs, access="embedders=('http://localhost:*',)") as address:
        yield SimpleNamespace(of=address, doomed=doomed)


@pytest.fixture
def site_with():
    """A site of one page: a function of its body that gives the port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(self.server.body.encode() if self.path == "/" else b"")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as site:
        thread = threading.Thread(target=site.serve_forever, daemon=True)
        thread.start()

        def start(body):
            site.body = body
            return site.server_port

        yield start
        site.shutdown()
        thread.join(10)


def test_one_model_has_an_overview_and_a_click_on_a_cell_opens_the_head(tab, address):
    tab.goto(f"{address.of}/overview?run=alone")
    drawn(tab, "grid")
    tab.wait_for_function("document.querySelector('#grid .js-plotly-plot').broughtTo")
    assert "of 12 heads at induction ≥ 0.4" in tab.locator(".kpi").inner_text()
    assert "one checkpoint" in tab.locator(".kpi").inner_text()
    assert tab.inner_text("#checkpoint-label") == "main"
    drawn(tab, "ranked")
    says(tab, "#numbers", "copy accuracy")
    assert [tab.locator(card).is_visible() for card in ("#emergence", "#strips", "#ridges", ".slider")] == [False] * 4
    says(tab, "#answer", "heads that see the whole context look far, by induction > 0.4 on repeats")
    tab.locator("#grid").scroll_into_view_if_needed()
    box = tab.locator("#grid .nsewdrag").first.bounding_box()
    tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    head = tab.wait_for_function("document.querySelector('#grid .js-plotly-plot')._hoverdata?.[0].customdata")
    tab.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    drawn(tab, "place", "head-grid")
    says(tab, "#head-title", head.json_value())
    assert (urlsplit(tab.url).path, query(tab)["of"]) == ("/head", ["alone"])
    tab.wait_for_selector("#head-badges :text('heads in layer')")
    tab.wait_for_selector("#head-scores tbody tr")
    assert tab.complaints == []


def test_one_model_beside_a_run_over_training_leaves_both_their_cards(tab, address):
    arrive(tab, f"{address.of}/overview?run=alone&run=full")
    assert tab.locator(".kpi").count() == 2
    onsets = tab.locator(".kpi").nth(1).locator(".about span")
    assert re.fullmatch(r"first onset .* tokens · of the strongest, L\dH\d: .* tokens", onsets.inner_text())
    assert onsets.get_attribute("title").startswith("onset: the first checkpoint")
    tab.keyboard.press("[")  # the model of one checkpoint stays beside every step of the other
    says(tab, "#checkpoint-label", "tokens")
    tab.wait_for_function("document.querySelector('#grid .js-plotly-plot').data[0].z.flat().every((z) => z !== null)")
    assert tab.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("runs", ["run=alone", "run=alone&run=full"])
def test_no_page_of_one_model_hangs(tab, address, runs):
    tab.goto(f"{address.of}/compare?{runs}")
    says(tab, "#against", "same checkpoint" if runs == "run=alone" else "full · step3072")
    if "full" in runs:
        says(tab, "#lock-in", "at least two checkpoints")
        says(tab, "#page-compare", "not counted, of one checkpoint: alone")
    assert tab.locator("#lock-in").is_visible() == ("full" in runs)
    for page in ("plan", "jobs", "probe"):
        tab.goto(f"{address.of}/{page}?{runs}")
        tab.wait_for_selector(f"#page-{page}", state="visible")
        tab.wait_for_selector(".waiting", state="hidden")
    assert tab.complaints == []


def test_a_reload_shows_the_same_checkpoint_where_runs_have_other_steps(tab, address):
    arrive(tab, f"{address.of}/overview?run=between&run=full&detector=induction")
    seen = []
    for _ in range(3):
        before = tab.inner_text("#checkpoint-label")
        tab.keyboard.press("[")
        tab.wait_for_function("text => document.querySelector('#checkpoint-label').textContent !== text", arg=before)
        tab.wait_for_function(IN_ADDRESS)
        seen.append((tab.inner_text("#checkpoint-label"), urlsplit(tab.url).query))
    assert len({query for _, query in seen}) == 3
    label, search = seen[1]
    arrive(tab, f"{address.of}/overview?{search}")
    assert (tab.inner_text("#checkpoint-label"), urlsplit(tab.url).query) == (label, search)
    tab.goto(f"{address.of}/head?of=full&head=L0H0&{seen[0][1]}")
    says(tab, "#checkpoint-label", seen[0][0])
    assert tab.complaints == []


def test_a_page_that_is_named_may_frame_a_card_and_no_other_page(tab, address, site_with):
    card = f"{address.of}/embed/grid?run=full&detector=induction&theme=dark"
    port = site_with(f'<iframe src="{card}"></iframe><iframe src="{address.of}/overview"></iframe>')
    tab.goto(f"http://localhost:{port}/")
    frame = tab.frame_locator("iframe >> nth=0")
    frame.locator("#grid .heatmaplayer").first.wait_for(state="attached")
    assert frame.locator(".card:visible").count() == 1
    assert not frame.locator(".wb header").is_visible()
    frame.locator(".wb.dark").wait_for()
    assert sum("frame-ancestors" in text for text in tab.complaints) == 1  # the whole page is refused
    tab.complaints.clear()
    tab.goto(f"http://127.0.0.1:{port}/")  # another origin, which is not named
    tab.wait_for_timeout(500)
    assert sum("frame-ancestors" in text for text in tab.complaints) == 2


def test_an_error_stays_in_its_card_and_says_what_to_run(tab, address):
    arrive(tab, f"{address.of}/overview?run=full&run=doomed&run=torn&run=failed&detector=induction")
    says(tab, "#banners", "torn: cannot be read")
    says(tab, "#banners", "workbench check")
    assert query(tab)["run"] == ["full", "doomed", "failed"]
    says(tab, "#kpis", "its header is torn")
    shutil.rmtree(address.doomed)
    says(tab, "#status", "run folder gone: doomed")
    assert "scan complete" not in tab.inner_text("#status")
    assert tab.locator("#grid .heatmaplayer").count() == 2  # what was read stays
    tab.click("#nav-jobs")
    says(tab, "#scans", "run folder gone")
    says(tab, "#scans", "cannot be read")
    says(tab, "#failed", "its header is torn")
    tab.goto(f"{address.of}/overview?run=torn")
    says(tab, "#grid", "is not a whole part")
    assert tab.complaints == []


@pytest.mark.slow
def test_on_every_page_a_run_that_is_gone_torn_or_failed_leaves_the_others(tab, address):
    shutil.rmtree(address.doomed, ignore_errors=True)
    for page, figure in (("overview", "strips"), ("head", "history"), ("compare", "matrices")):
        tab.goto(f"{address.of}/{page}?run=doomed&run=full&detector=induction")
        drawn(tab, figure)
        tab.goto(f"{address.of}/{page}?run=torn&detector=induction")
        says(tab, f"#{figure}", "is not a whole part")
        tab.wait_for_selector(f"#page-{page} .waiting", state="hidden")
        tab.goto(f"{address.of}/{page}?run=failed")
        tab.wait_for_selector(f"#page-{page} .waiting", state="hidden")
    says(tab, "#matrices", "the scan failed")
    says(tab, "#classes", "the scan failed")
    tab.set_viewport_size({"width": 390, "height": 900})
    tab.goto(f"{address.of}/jobs?run=torn&run=doomed&run=failed")
    says(tab, "#scans", "is not a whole part")
    assert tab.evaluate(FITS)
    assert tab.complaints == []


def probed(tab):
    """Wait for the patterns of a text; the head that is shown."""
    says(tab, "#probe-said", "done in")
    tab.wait_for_selector("#probe-patterns canvas.far")
    return tab.get_attribute("#probe-patterns canvas.map", "aria-label").removeprefix("pattern of ")


def test_who_writes_a_text_has_that_one_run_and_a_checkpoint_is_found_by_its_name(tab, address):
    tab.goto(f"{address.of}/probe?run=full&run=alone")
    tab.wait_for_function("document.querySelector('#probe-checkpoint')?.value === 'alone · main'")
    tab.click("#probe-standard")
    tab.get_by_role("option", name="copied needles").click()
    tab.fill("#probe-text", "5 17 4")
    tab.wait_for_function("document.querySelector('#probe-standard').value === 'my text'")
    tab.fill("#probe-checkpoint", "nonsense")
    tab.get_by_role("option", name="alone").wait_for(state="hidden")
    tab.fill("#probe-checkpoint", "alo")
    tab.get_by_role("option", name="alone").wait_for(state="visible")
    assert tab.complaints == []


@pytest.mark.slow
def test_a_text_is_run_from_a_head_kept_in_the_address_and_run_again_by_the_same_process(tab, address):
    tab.goto(f"{address.of}/head?run=alone&of=alone&head=L1H2")
    tab.click("#head-on-text a")
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
