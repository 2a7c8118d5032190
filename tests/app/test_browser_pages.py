"""Compare, Plan, Jobs, exports and keys in a browser, without a console error."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest

from tests.app.contrast import low_contrast
from tests.app.plans import made_plan
from tests.app.test_browser import arrive, drawn, query, says
from tests.synthetic_run import DEMO, write_run
from workbench.app.registry import CONTROLS
from workbench.store import Failure, Store
from workbench.store.plan_file import Plan

pytestmark = pytest.mark.browser
FITS = "document.documentElement.scrollWidth <= window.innerWidth"  # nothing stands beside the window
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"


@pytest.fixture(scope="module")
def address(served, synthetic_runs):
    plan = synthetic_runs[0].parent / "kept.json"
    made_plan().save(plan)
    with served(synthetic_runs) as address:
        yield address


def shot(tab, name):
    """Keep a screenshot of the page in build/screenshots."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def on(tab, address, page):
    """Open a page and wait until its figures show something."""
    tab.goto(f"{address}/{page}")
    graphs = {
        "compare": ("against", "matrices", "lock-in", "classes"),
        "plan": ("mask", "pareto", "waterfall"),
        "jobs": (),
    }[page.partition("?")[0]]
    drawn(tab, *graphs)
    tab.wait_for_selector(f".wb.on-{page.partition('?')[0]}")


def fits(tab, width):
    """Check that nothing stands beside a window of this width."""
    before = tab.viewport_size
    tab.set_viewport_size({"width": width, "height": 900})
    tab.wait_for_function(FITS, timeout=20_000)
    tab.set_viewport_size(before)


def titles_of_figure_buttons(tab):
    return tab.evaluate("[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)")


def downloaded(tab, selector):
    with tab.expect_download() as waiting:
        tab.click(selector)
    return waiting.value


def test_every_page_has_an_address_and_back_returns_through_them(tab, address):
    arrive(tab, f"{address}/overview?detector=retrieval")
    for page in ("compare", "plan", "jobs"):
        tab.click(f"#nav-{page}")
        tab.wait_for_selector(f"#page-{page}", state="visible")
        assert urlsplit(tab.url).path == f"/{page}"
        assert query(tab)["detector"] == ["retrieval"]
        controls = {"compare": ["runs", "detector", "probe"], "plan": [], "jobs": ["runs"]}[page]
        assert [name for name in CONTROLS if tab.is_visible(f".control-{name} >> nth=0")] == controls
        assert tab.is_visible(".controls") == bool(controls)
        assert [title for title in titles_of_figure_buttons(tab) if re.search("cloud|share|edit", title, re.I)] == []
    tab.set_viewport_size({"width": 390, "height": 900})
    tab.wait_for_function(FITS)
    for page in ("plan", "compare", "overview"):
        tab.go_back()
        tab.wait_for_selector(f"#page-{page}", state="visible")
        tab.wait_for_function("page => location.pathname === `/${page}`", arg=page)
        tab.wait_for_function(FITS)
    assert tab.complaints == []


def test_a_head_is_jumped_to_by_name_and_the_keys_are_listed(tab, address):
    arrive(tab, address)
    tab.keyboard.press("?")
    assert "previous, next checkpoint" in tab.inner_text("dialog")
    tab.keyboard.press("Escape")
    tab.keyboard.press("/")
    tab.keyboard.type("nonsense")
    tab.keyboard.press("Enter")
    assert "is no head" in tab.inner_text("dialog")
    tab.fill("dialog input", "l1h2")
    tab.keyboard.press("Enter")
    says(tab, "#head-title", "L1H2")
    assert query(tab)["head"] == ["L1H2"]
    tab.click("#detector")  # the focus is in a dropdown, on a run's chip, on the slider: keys are keys all the same
    tab.keyboard.press("Escape")
    for control in ("#detector", ".control-runs input >> nth=0", "#checkpoint [role=slider]"):
        tab.locator(control).focus()
        tab.keyboard.press("?")
        assert "jump to a head" in tab.inner_text("dialog")
        tab.keyboard.press("Escape")
        tab.wait_for_selector("dialog", state="detached")
    titles = tab.evaluate("[...document.querySelectorAll('header .buttons button')].map(button => button.title)")
    assert [re.search(r"\((.)\)$", title)[1] for title in titles] == ["/", "e", "?", "d"]
    assert tab.complaints == []


@pytest.mark.slow
def test_two_checkpoints_of_a_run_are_compared_and_a_choice_is_in_the_address(tab, address):
    on(tab, address, "compare?detector=induction&a=full&b=full&at_a=step64&at_b=step1024")
    assert "one lineage" in tab.inner_text("#compare-how")
    assert tab.locator("#moved tbody tr").count() == 12
    shot(tab, "compare")
    tab.get_by_role("textbox", name="Run B").click()
    tab.get_by_role("option", name="hybrid").click()
    tab.wait_for_function("location.search.includes('b=hybrid')")
    says(tab, "#compare-how", "not by name")
    tab.go_back()
    says(tab, "#compare-how", "one lineage")
    tab.locator("#moved tbody tr a").first.click()
    tab.wait_for_selector("#page-head", state="visible")
    assert query(tab)["of"] == ["full"]
    assert tab.complaints == []


def test_a_slider_that_ends_at_the_name_of_a_checkpoint_fits_a_phone(tab, served):
    examples = Path(__file__).parents[2] / "examples"
    with served([examples / "published" / "gemma3-270m", examples / "python_source" / "full"]) as address:
        arrive(tab, f"{address}/overview?detector=induction&probe=repeats")
        assert tab.locator(".mantine-Slider-markLabel").last.inner_text() == "gemma3-270m"
        assert tab.inner_text("#checkpoint-label") == "the last of each run"
        fits(tab, 390)
        assert tab.complaints == []
        tab.goto("about:blank")


@pytest.mark.slow
def test_a_mask_is_edited_by_click_shift_click_lasso_and_budget_and_exported(tab, address, tmp_path):
    on(tab, address, "plan")
    plan = made_plan()

    def keeps():
        return {tuple(head) for head in json.loads(tab.evaluate("JSON.stringify(kept())"))}

    tab.evaluate(
        "window.kept = () => [...document.querySelectorAll('#ranking tbody tr')]"
        ".filter(row => row.children[1].textContent === 'keeps all')"
        ".map(row => row.children[0].textContent.slice(1).split('KV').map(Number))"
    )
    assert keeps() == {tuple(head) for head in plan.keep}
    tab.wait_for_timeout(1500)  # until nothing on the page moves any more
    box = tab.locator("#mask .nsewdrag").first.bounding_box()

    def cell(layer, head):
        return box["x"] + box["width"] * (head + 0.5) / 4, box["y"] + box["height"] * (layer + 0.5) / 2

    def kept_after(n):
        tab.wait_for_function("n => kept().length === n", arg=n)

    tab.mouse.move(*cell(0, 0))
    tab.wait_for_timeout(300)
    tab.mouse.click(*cell(0, 0))
    kept_after(3)
    assert (0, 0) in keeps()
    tab.keyboard.down("Shift")
    tab.mouse.move(*cell(1, 1))
    tab.wait_for_timeout(300)
    tab.mouse.click(*cell(1, 1))
    tab.keyboard.up("Shift")
    kept_after(5)
    assert keeps() == {(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)}
    shot(tab, "plan")
    # well around the middles of two cells: one on the border may be in or out
    corners = [cell(-0.4, 2.6), cell(-0.4, 3.4), cell(1.4, 3.4), cell(1.4, 2.6), cell(-0.4, 2.6)]
    tab.mouse.move(*corners[0])
    tab.mouse.down()
    for corner in corners[1:]:
        tab.mouse.move(*corner, steps=6)
    tab.mouse.up()
    kept_after(7)
    file = tmp_path / "plan.json"
    taken = downloaded(tab, "#plan-away a:has-text('⤓ Plan')")
    assert taken.suggested_filename == "kept-edited-plan.json"
    taken.save_as(file)
    assert {tuple(head) for head in Plan.load(file).keep} == keeps()
    tab.go_back()
    kept_after(5)
    tab.click("text=the plan's own")
    kept_after(2)
    tab.locator("#budget [role=slider]").focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    tab.wait_for_function("kept().length > 2")
    assert tab.complaints == []


@pytest.mark.slow
def test_figures_and_tables_are_exported_and_a_permalink_names_the_version(tab, address, tmp_path):
    arrive(tab, f"{address}/overview?run=full&detector=sink&step=256")
    tab.keyboard.press("e")
    link = tab.input_value("#permalink")
    assert parse_qs(urlsplit(link).query)["v"] == ["sink@1"]
    assert parse_qs(urlsplit(link).query)["step"] == ["256"]
    picture = downloaded(tab, "dialog [data-format=svg]")
    picture.save_as(tmp_path / "figure.svg")
    figure = (tmp_path / "figure.svg").read_text()
    assert "<svg" in figure
    assert re.search(r"full · sink on text · step 256 · 2\.1M tokens · sink@1 · workbench \d", figure)
    assert picture.suggested_filename.startswith("workbench-emergence-full-sink-on-text-step-256-")
    picture = downloaded(tab, "dialog [data-format=png]")
    picture.save_as(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    downloaded(tab, "dialog a[href*='scores.csv']").save_as(tmp_path / "scores.csv")
    table = pd.read_csv(tmp_path / "scores.csv")
    assert set(table["detector"]) == {"sink"}
    assert set(table["run"]) == {"full"}
    tab.keyboard.press("Escape")
    arrive(tab, link.replace("sink%401", "sink@0").replace("sink@1", "sink@0"))
    says(tab, ".wb-notice", "made with sink@0")
    assert tab.complaints == []


@pytest.mark.slow
def test_training_is_counted_in_steps_where_the_address_says_so(tab, address):
    arrive(tab, f"{address}/overview?run=full&detector=retrieval")
    tab.get_by_role("textbox", name="x", exact=True).click()
    tab.get_by_role("option", name="step").click()
    tab.wait_for_function("location.search.includes('x=step')")
    says(tab, "#emergence", "training step (log)")
    assert tab.complaints == []


@pytest.mark.slow
def test_jobs_follow_a_scan_and_give_reasons(tab, served, tmp_path):
    shape = replace(DEMO["full"], detectors=("induction",))
    path = write_run(tmp_path / "growing", shape, upto=3)
    with served([path]) as address:
        on(tab, address, "jobs")
        says(tab, "#scans", "of 60 units")
        says(tab, "#failed", "nothing failed")
        Store.open(path).fail(Failure("step256", None, "bad_checkpoint", "step256/model.safetensors is torn", "trace"))
        says(tab, "#failed", "step256/model.safetensors is torn")
        write_run(path, shape, upto=6)
        tab.wait_for_function("document.querySelectorAll('#job-checkpoints .cell.done').length === 6")
        says(tab, "#status", "failed")
        shot(tab, "jobs")
        assert tab.complaints == []
        tab.goto("about:blank")


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_fit_phones_and_twice_the_zoom_and_their_text_and_focus_are_seen(tab, address, theme):
    for page in ("overview", "head", "compare", "plan", "jobs", "probe"):
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.goto(f"{address}/{page}?detector=retrieval")
        tab.wait_for_selector(f"#page-{page}", state="visible")
        if (theme == "dark") != (tab.locator("html.dark").count() == 1):
            tab.keyboard.press("d")
        tab.wait_for_function("!document.querySelector('.page .waiting')?.offsetParent")
        tab.wait_for_timeout(1000)
        assert low_contrast(tab) == [], page
        for width in (1280, 640, 390):  # 640 CSS pixels are 1280 at 200 %
            fits(tab, width)
            shot(tab, f"{page}-{theme}-{width}")
        for _ in range(6):
            tab.keyboard.press("Tab")
            outline = "getComputedStyle(document.activeElement)"
            assert tab.evaluate(f"{outline}.outlineStyle") != "none", tab.evaluate("document.activeElement.outerHTML")
            assert tab.evaluate(f"parseFloat({outline}.outlineWidth)") >= 2
    assert tab.complaints == []


@pytest.mark.slow
def test_behind_a_prefix_all_is_found(tab, served, synthetic_runs):
    with served(synthetic_runs[:1], access="prefix='/user/me/'") as address:
        arrive(tab, f"{address}/overview?detector=sink")
        tab.click("#nav-head")
        drawn(tab, "history", "place")
        assert urlsplit(tab.url).path == "/user/me/head"
        tab.keyboard.press("e")
        assert downloaded(tab, "dialog a[href*='head.csv']").suggested_filename == "head.csv"
        assert tab.complaints == []
        tab.goto("about:blank")


@pytest.mark.slow
def test_with_a_token_the_app_opens_and_the_address_does_not_keep_it(tab, served, synthetic_runs):
    with served(synthetic_runs[:1], access="token='secret-token'") as address:
        arrive(tab, f"{address}&detector=sink")
        assert "token" not in tab.url
        arrive(tab, f"{address.partition('?')[0]}overview?detector=induction")
        assert tab.complaints == []
        tab.goto("about:blank")


@pytest.mark.slow
def test_a_head_is_pinned_and_annotated_in_the_table_and_both_go_along_to_its_page(tab, address, synthetic_runs):
    notes = synthetic_runs[0] / "notes.json"
    try:
        tab.goto(f"{address}/head_table?of=full&detector=induction")
        row = tab.locator("#head-table .ag-center-cols-container [row-index='0']")
        row.wait_for()
        head = tab.locator("#head-table [row-index='0'] .opens-head").inner_text()
        tab.locator("#head-table [row-index='0'] input[type=checkbox]").click()
        tab.wait_for_function("head => new URLSearchParams(location.search).get('heads') === head", arg=head)
        says(tab, "#head-table-sentence", "1 pinned")
        tab.locator("#head-table .ag-center-cols-viewport").evaluate("view => { view.scrollLeft = view.scrollWidth }")
        tab.locator("#head-table [row-index='0'] [col-id=note]").dblclick()
        tab.keyboard.type("copies names")
        tab.keyboard.press("Enter")
        says(tab, "#head-table-notes", f"kept: the note on {head}")
        tab.locator("#head-table [row-index='0'] .opens-head").click()
        says(tab, "#head-links", "copies names")
        says(tab, "#head-links", "unpin")
        assert (query(tab)["head"], query(tab)["heads"], query(tab)["of"]) == ([head], [head], ["full"])
        tab.click("#nav-overview")
        tab.wait_for_selector("#answer a[data-head]")
        assert query(tab)["heads"] == [head]
        tab.locator("#answer a[data-head]").first.click()
        tab.wait_for_selector("#page-head", state="visible")
        assert tab.complaints == []
    finally:
        notes.unlink(missing_ok=True)


@pytest.mark.slow
def test_of_many_runs_some_are_found_by_name_grouped_and_set_against_a_baseline(tab, served, tmp_path):
    shape = replace(DEMO["full"], steps=(0, 64, 1024), detectors=("induction",))
    many = [write_run(tmp_path / f"{kind}-seed{i}", replace(shape, seed=i)) for i in range(4) for kind in ("a", "b")]
    with served(many) as address:
        arrive(tab, address)
        says(tab, "#emergence", "means alone")
        tab.fill(".run-filter input", "b-")
        assert tab.locator(".chips .mantine-Chip-root:visible").count() == 4
        tab.click("[data-runs=all]")
        tab.wait_for_function("() => document.querySelectorAll('.kpi').length === 4")
        tab.click("[data-runs=one]")
        tab.wait_for_function("() => document.querySelectorAll('.kpi').length === 1")
        arrive(tab, f"{address}/overview?group=by+name&base=a-seed0")
        says(tab, "#emergence", "a · 4 runs")
        says(tab, ".kpi", "(baseline)")
        says(tab, ".kpis", "to the baseline")
        tab.set_viewport_size({"width": 390, "height": 900})
        tab.wait_for_timeout(500)
        assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
        assert tab.complaints == []
        tab.goto("about:blank")
