"""The app in a browser: pages, links, keys, clicks, and a scan that is still writing, without a console error."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from tests.browser import watched_page
from tests.figures.colour_differences import contrast
from tests.synthetic_run import DEMO, STEPS, write_run
from workbench.figures.style import PALETTES, Scale, colour_scale
from workbench.store import Store

pytestmark = pytest.mark.browser

HEADINGS = """[...document.querySelectorAll('h1, h2, h3, h4')]
  .filter(heading => heading.getClientRects().length).map(heading => Number(heading.tagName[1]))"""
# Whether all figures in sight have this colour of text, in what plotly has drawn.
GROUNDS = """colour => [...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.offsetParent)
  .every(plot => plot._fullLayout.font.color === colour && plot._fullLayout.yaxis.tickfont.color !== colour)"""
# The figures in sight that are not as wide as their card, or as they need.
WRONG_WIDTH = """() => [...document.querySelectorAll('main .js-plotly-plot')].filter(plot => plot.offsetParent)
  .filter(plot => plot._fullLayout.width - 1 > Math.max(plot.parentElement.clientWidth, plot.layout.meta?.width || 0)
    || plot._fullLayout.width + 1 < plot.parentElement.clientWidth).map(plot => plot.parentElement.id)"""
# How a figure that has not been drawn yet would look.
SKELETON = """() => {
  const box = document.querySelector('#grid');
  box.classList.add('waiting');
  const look = { animation: getComputedStyle(box).animationName, words: getComputedStyle(box, '::after').content };
  box.classList.remove('waiting');
  return look;
}"""
# The colour and the score of every number in a cell of the grid.
NUMBERS = """() => [...document.querySelectorAll('#grid .heatmap-label text')].map(({ style, __data__ }) =>
  ['#' + style.fill.match(/\\d+/g).map(c => Number(c).toString(16).padStart(2, '0')).join(''), __data__.z])"""
# What gives a drawn figure its colours, figure by figure: styles, the stops of colour bars, the pixels of heatmaps.
COLOURED = """() => [...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.offsetParent).flatMap(plot =>
  [...plot.querySelectorAll('.main-svg *')].filter(e => !e.closest('.cursors, .modebar')).flatMap(e =>
    [e.style.fill, e.style.stroke, e.getAttribute('stop-color'), e.tagName === 'image' && e.href.baseVal]
      .filter(colour => colour && !colour.startsWith('url(')).map(colour => `${e.tagName} ${colour}`)))"""
STEP = """key => new Promise(done => {
  const plot = document.querySelector('#grid .js-plotly-plot');
  const before = plot.broughtTo;
  const start = performance.now();
  const twoFramesLater = then => requestAnimationFrame(() => requestAnimationFrame(then));
  const look = () => {
    if (plot.broughtTo !== before) twoFramesLater(() => done(performance.now() - start));
    else if (performance.now() - start > 5000) done(-1);
    else setTimeout(look, 1);
  };
  document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
  look();
})"""


def colour_of(score, scale):
    """The colour of a score from -1 to 1, between the stops of a scale."""
    stops, colours = zip(*scale, strict=True)
    channels = np.array([list(bytes.fromhex(colour[1:])) for colour in colours])
    return "#" + bytes(round(float(np.interp((1 + score) / 2, stops, each))) for each in channels.T).hex()


def query(tab):
    return parse_qs(urlsplit(tab.url).query)


def says(tab, selector, text):
    """Wait until an element contains a text; plotly writes spaces as no-break spaces."""
    tab.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.replaceAll('\\u00a0', ' ').includes(text)",
        arg=[selector, text],
    )


def drawn(tab, *graphs):
    """Wait until these figures show data and the grid is at the slider's checkpoint."""
    for graph in graphs:
        tab.wait_for_function(
            "id => { const plot = document.querySelector(`#${id} .js-plotly-plot`);"
            " return plot && plot.data && plot.data.length > 0 && plot.offsetParent; }",
            arg=graph,
        )


def arrive(tab, address, page="overview"):
    tab.goto(address)
    if page == "overview":
        drawn(tab, "emergence", "strips", "grid", "figure-left", "figure-right")
        tab.wait_for_function("document.querySelector('#grid .js-plotly-plot').broughtTo")
    else:
        drawn(tab, "history", "place", "head-grid")


@pytest.fixture(scope="module")
def address(served, synthetic_runs):
    with served(synthetic_runs) as address:
        yield address


@pytest.fixture(scope="module")
def loaded(window, address):
    """An Overview that is loaded once for the tests that only use it."""
    page = watched_page(window)
    arrive(page, f"{address}/overview?detector=retrieval")
    page.wait_for_timeout(500)
    yield page
    page.close()


@pytest.fixture
def overview(loaded):
    """The loaded Overview in front, at the last checkpoint and without complaints."""
    loaded.bring_to_front()
    loaded.evaluate("dash_clientside.set_props('checkpoint', { value: workbench.planes().stops.length - 1 })")
    says(loaded, "#checkpoint-label", f"step {STEPS[-1]:,}")
    loaded.complaints.clear()
    return loaded


def test_the_overview_opens_without_a_complaint_and_counts_its_heads(tab, address):
    arrive(tab, address)
    assert query(tab)["detector"] == ["induction"]
    assert query(tab)["run"] == ["full", "hybrid", "linear", "sliding"]
    assert tab.locator(".kpi").count() == 4
    assert "of 12 heads at induction ≥ 0.4" in tab.locator(".kpi").first.inner_text()
    assert "scan complete" in tab.inner_text("#status")
    assert tab.evaluate("document.documentElement.lang") == "en"
    headings = tab.evaluate(HEADINGS)
    assert headings[:3] == [1, 2, 3]
    assert all(after - before <= 1 for before, after in pairwise(headings))
    tab.wait_for_function(  # the slider is there before its handle is named
        "document.querySelector('#checkpoint [role=slider]').ariaValueText"
        " === document.querySelector('#checkpoint-label').innerText"
    )
    # No figure stays at plotly's own width.
    tab.wait_for_function(f"({WRONG_WIDTH})().length === 0")
    assert tab.complaints == []


def test_an_app_that_does_not_answer_is_said_to_until_it_does(overview):
    tab = overview
    tab.context.set_offline(True)
    says(tab, "#not-answering", "does not answer")
    assert tab.locator("#grid .heatmaplayer").count() == 4  # what was read stays
    skeleton = tab.evaluate(SKELETON)  # nothing seems to be on its way
    assert skeleton == {"animation": "none", "words": '"not read before the app stopped answering"'}
    for ground in ("dark", "light"):  # the browser changes the theme of figures by itself
        tab.keyboard.press("d")
        tab.wait_for_function(GROUNDS, arg=PALETTES[ground].text)
        inks, scores = zip(*tab.evaluate(NUMBERS), strict=True)
        cells = [colour_of(score, colour_scale(Scale(-1, 1, ""), ground)) for score in scores]
        assert set(inks) == {"#000000", "#ffffff"}
        assert min(contrast(ink, cell) for ink, cell in zip(inks, cells, strict=True)) >= 4.5
    tab.context.set_offline(False)
    tab.wait_for_selector("#not-answering", state="detached")
    assert [text for text in tab.complaints if "DISCONNECTED" not in text and "did not respond" not in text] == []


def test_a_card_fills_the_window_by_its_key_and_the_focus_returns(overview):
    tab = overview
    button = tab.locator("[data-card=grid] button.maximise")
    before = tab.locator("#grid").bounding_box()["height"]
    button.focus()
    tab.keyboard.press("m")
    tab.wait_for_selector("[data-card=grid].maximised[role=dialog]")
    tab.wait_for_function("document.querySelector('#grid .js-plotly-plot')._fullLayout.height > 700")
    assert tab.locator("[data-card=grid]").bounding_box() == {"x": 0, "y": 0, "width": 1280, "height": 900}
    assert tab.evaluate("document.querySelector('header').inert && document.querySelector('[data-card=strips]').inert")
    tab.keyboard.press("[")  # the slider's keys go on
    says(tab, "#checkpoint-label", f"step {STEPS[-2]:,}")
    tab.keyboard.press("Escape")
    tab.wait_for_selector(".maximised", state="detached")
    assert button.evaluate("button => button === document.activeElement")
    assert tab.locator("#grid").bounding_box()["height"] == before
    assert tab.evaluate("document.querySelector('header').inert") is False
    assert tab.complaints == []


def test_a_deep_link_opens_the_same_view(tab, address):
    arrive(tab, f"{address}/overview?run=hybrid&run=full&detector=retrieval&probe=copy_needle&step=256")
    assert tab.inner_text("#checkpoint-label") == "step 256 · 2.1M tokens"
    assert tab.locator("#detector").input_value() == "retrieval"
    assert tab.locator(".kpi").count() == 2
    assert query(tab)["step"] == ["256"]
    arrive(tab, f"{address}/head?of=linear&head=L0H1&detector=sink&step=256", "head")
    assert tab.inner_text("#head-title") == "L0H1"
    assert tab.title() == "L0H1 · attention workbench"
    assert tab.locator("#head-run").input_value() == "linear"
    tab.wait_for_selector("#head-scores tbody tr")
    assert tab.complaints == []


@pytest.mark.slow
def test_a_link_to_what_is_not_there_opens_the_nearest_view(tab, address):
    arrive(tab, f"{address}/nowhere?run=other&detector=typo&step=99999999")
    assert query(tab)["detector"] == ["induction"]
    arrive(tab, f"{address}/head?of=other&head=L99H99&detector=<script>", "head")
    assert tab.inner_text("#head-title").startswith("L")
    assert tab.complaints == []


def test_another_checkpoint_is_shown_without_a_request(overview):
    tab = overview
    requests = []
    tab.on("request", lambda request: requests.append(request.post_data or ""))
    times = [tab.evaluate(STEP, "[") for _ in range(8)]
    print(f"checkpoint step: median {sorted(times)[4]:.0f} ms of", [round(ms) for ms in times])
    assert min(times) > 0
    assert tab.inner_text("#checkpoint-label").startswith(f"step {STEPS[-9]}")
    about_figures = [body for body in requests if ".figure" in body or "planes" in body]
    assert about_figures == []
    tab.wait_for_function(f"new URLSearchParams(location.search).get('step') === '{STEPS[-9]}'")
    assert tab.evaluate(STEP, "]") > 0
    assert tab.complaints == []


@pytest.mark.slow
def test_the_grid_shows_the_scores_of_the_checkpoint(tab, address, synthetic_runs):
    arrive(tab, f"{address}/overview?run=full&detector=retrieval&step=256")
    cells = tab.evaluate("document.querySelector('#grid .js-plotly-plot').data[0].z")
    scores = Store.open(synthetic_runs[0]).scores()
    stored = scores[(scores["detector"] == "retrieval") & (scores["step"] == 256)].sort_values(["layer", "head"])
    assert [value for row in cells for value in row] == pytest.approx(list(stored["score"]), abs=1e-4)


def test_a_click_on_a_cell_opens_the_head_and_back_returns(tab, address):
    arrive(tab, f"{address}/overview?detector=retrieval&step=512")
    tab.wait_for_selector(".kpi")
    tab.locator("#grid").scroll_into_view_if_needed()
    tab.wait_for_function("document.querySelectorAll('#grid .nsewdrag').length === 4")
    tab.wait_for_timeout(300)  # cards above may still grow as their figures come
    box = sorted((drag.bounding_box() for drag in tab.locator("#grid .nsewdrag").all()), key=lambda b: b["x"])[2]
    tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    pointed = tab.wait_for_function("document.querySelector('#grid .js-plotly-plot')._hoverdata?.[0].customdata")
    head = pointed.json_value()
    tab.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    drawn(tab, "history", "place")
    assert urlsplit(tab.url).path == "/head"
    assert (query(tab)["of"], query(tab)["head"], query(tab)["step"]) == (["linear"], [head], ["512"])
    tab.go_back()
    tab.wait_for_selector("#page-overview", state="visible")
    assert query(tab)["step"] == ["512"]
    tab.go_forward()
    tab.wait_for_selector("#page-head", state="visible")
    assert tab.inner_text("#head-title") == head
    assert tab.complaints == []


@pytest.mark.slow
def test_keys_move_between_heads_without_filling_the_history(tab, address):
    arrive(tab, f"{address}/head?of=full&head=L0H0", "head")
    for key, head in (("l", "L0H1"), ("j", "L1H1"), ("h", "L1H0"), ("k", "L0H0"), ("h", "L0H0")):
        tab.keyboard.press(key)
        says(tab, "#head-title", head)
    tab.click("#nav-overview")
    tab.wait_for_selector("#page-overview", state="visible")
    tab.go_back()
    tab.wait_for_selector("#page-head", state="visible")
    assert query(tab)["head"] == ["L0H0"]
    assert tab.complaints == []


@pytest.mark.slow
def test_dark_is_remembered(tab, address):
    arrive(tab, address)
    tab.keyboard.press("d")
    tab.wait_for_selector(".wb.dark")
    arrive(tab, address)
    tab.wait_for_selector(".wb.dark")
    assert tab.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("page", ["overview", "head"])
def test_a_figure_that_becomes_dark_in_the_browser_is_the_one_that_the_server_draws_dark(tab, address, page):
    arrive(tab, f"{address}/{page}?detector=retrieval", page)
    if tab.locator(".wb.dark").count():
        tab.keyboard.press("d")
        tab.wait_for_function(GROUNDS, arg=PALETTES["light"].text)
    tab.wait_for_timeout(1500)  # until all that the server sends is there
    asked = []
    tab.on("request", lambda request: asked.append(request.post_data or ""))
    tab.keyboard.press("d")
    tab.wait_for_function(GROUNDS, arg=PALETTES["dark"].text)
    tab.wait_for_timeout(500)
    assert [body for body in asked if ".figure" in body] == []
    here = tab.evaluate(COLOURED)
    arrive(tab, f"{address}/{page}?detector=retrieval", page)
    tab.wait_for_timeout(1500)
    assert len(here) > 200
    assert tab.evaluate(COLOURED) == here
    assert tab.complaints == []


@pytest.mark.slow
def test_another_detector_is_a_new_entry_in_the_history(tab, address):
    arrive(tab, f"{address}/overview?detector=retrieval")
    tab.click("#detector")
    tab.get_by_role("option", name="entropy").click()
    tab.wait_for_function("location.search.includes('detector=entropy')")
    says(tab, ".kpi", "nats, mean entropy")
    tab.go_back()
    says(tab, ".kpi", "retrieval")
    assert tab.locator("#detector").input_value() == "retrieval"
    assert tab.complaints == []


Y_RANGE = "document.querySelector('#emergence .js-plotly-plot')._fullLayout.yaxis.range"


@pytest.mark.slow
def test_a_scan_that_is_still_writing_is_followed(tab, served, tmp_path):
    shape = replace(DEMO["full"], detectors=("induction", "sink"))
    path = write_run(tmp_path / "growing", shape, upto=4)
    with served([path]) as address:
        arrive(tab, address)
        assert "scan 20 %" in tab.inner_text("#status")
        assert tab.inner_text("#checkpoint-label").startswith(f"step {STEPS[3]} ")
        box = tab.locator("#emergence .nsewdrag").first.bounding_box()
        tab.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.4 * box["height"])
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.8 * box["height"], steps=5)
        tab.mouse.up()
        tab.wait_for_function(f"{Y_RANGE}[1] < 0.9")
        zoomed = tab.evaluate(Y_RANGE)
        write_run(path, shape, upto=9)
        says(tab, "#checkpoint-label", f"step {STEPS[8]} ")
        says(tab, "#status", "scan 45 %")
        tab.wait_for_function("document.querySelector('#strips .js-plotly-plot')._fullData[0].x.length === 9 + 1")
        assert tab.evaluate(Y_RANGE) == zoomed
        assert tab.complaints == []
        tab.goto("about:blank")


@pytest.mark.slow
def test_an_empty_run_says_what_to_run_and_fills_when_the_scan_starts(tab, served, tmp_path):
    Store.create(tmp_path / "new", job={}, versions={})
    with served([tmp_path / "new"]) as address:
        tab.goto(address)
        says(tab, "#emergence", "workbench scan DIR --out new")
        write_run(tmp_path / "new", replace(DEMO["full"], detectors=("induction",)), upto=3)
        drawn(tab, "emergence", "grid")
        tab.wait_for_selector(".kpi .of")
        assert tab.complaints == []
        tab.goto("about:blank")


@pytest.mark.slow
def test_a_part_that_is_not_whole_is_named_and_the_page_stays(tab, served, tmp_path):
    path = write_run(tmp_path / "run", replace(DEMO["full"], detectors=("induction",)), upto=3)
    with served([path]) as address:
        arrive(tab, address)
        torn = Store.open(path).parts()[0].path.with_name("f" * 32 + ".parquet")
        torn.write_bytes(b"half")
        says(tab, "#banners", "workbench check")
        says(tab, "#status", "cannot be read: run")
        assert tab.locator(".kpi").count() == 1
        torn.unlink()
        tab.wait_for_function("document.querySelector('#banners').childElementCount === 0")
        says(tab, "#status", "scan ")
        assert tab.complaints == []
        tab.goto("about:blank")


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_text_of_a_page_lies_over_another_or_outside_the_window(tab, address, theme):
    for page in ("overview", "head"):
        arrive(tab, f"{address}/{page}?detector=retrieval", page)
        if (theme == "dark") != (tab.locator(".wb.dark").count() == 1):
            tab.keyboard.press("d")
        # Figures move while others are laid out; the test waits until they are at rest.
        tab.wait_for_function(
            "[...document.querySelectorAll('.card .js-plotly-plot')].filter(e => e.offsetParent)"
            ".every(e => e.getBoundingClientRect().bottom <= e.closest('.card').getBoundingClientRect().bottom + 1)"
        )
        tab.wait_for_timeout(800)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
        cards = tab.evaluate(
            "[...document.querySelectorAll('.page .card')].filter(e => e.offsetParent)"
            ".map(e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })"
        )
        for i, (left, top, right, bottom) in enumerate(cards):
            for other in cards[i + 1 :]:
                assert right <= other[0] or left >= other[2] or bottom <= other[1] or top >= other[3]
        inside = tab.evaluate(
            "[...document.querySelectorAll('.card .js-plotly-plot')].filter(e => e.offsetParent)"
            ".every(e => e.getBoundingClientRect().bottom <= e.closest('.card').getBoundingClientRect().bottom + 1)"
        )
        assert inside


@pytest.mark.slow
def test_the_demo_opens_as_it_was_really_trained(tab, served, demo_runs):
    with served(demo_runs) as address:
        arrive(tab, f"{address}/overview?detector=previous_token")
        assert tab.locator(".kpi").count() == len(demo_runs)
        times = [tab.evaluate(STEP, "[") for _ in range(5)]
        print(f"checkpoint step of the demo: median {sorted(times)[2]:.0f} ms")
        tab.click("#nav-head")
        drawn(tab, "history", "place", "head-grid")
        tab.wait_for_selector("#head-scores tbody tr")
        assert tab.complaints == []
        tab.goto("about:blank")
