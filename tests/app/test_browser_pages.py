"""Compare, Plan, Jobs, exports and keys in a browser, without a console error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest

from tests.app.plans import made_plan
from tests.app.test_browser import arrive, drawn, query, says
from tests.synthetic_run import DEMO, write_run
from workbench.store import Failure, Store
from workbench.store.plan_file import Plan

pytestmark = pytest.mark.browser
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
    for page in ("plan", "compare", "overview"):
        tab.go_back()
        tab.wait_for_selector(f"#page-{page}", state="visible")
        tab.wait_for_function("page => location.pathname === `/${page}`", arg=page)
        tab.wait_for_timeout(250)  # a page that is shown writes its address a moment later
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
    tab.keyboard.press("e")
    file = tmp_path / "plan.json"
    downloaded(tab, "dialog a[href*='plan.json']").save_as(file)
    tab.keyboard.press("Escape")
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
    assert "<svg" in (tmp_path / "figure.svg").read_text()
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
@pytest.mark.parametrize("width", [1280, 640])  # 640 CSS pixels are 1280 at 200 %
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_fit_at_1280_pixels_and_at_twice_the_zoom(tab, address, theme, width):
    tab.set_viewport_size({"width": width, "height": 900})
    for page in ("overview", "head", "compare", "plan", "jobs"):
        tab.goto(f"{address}/{page}?detector=retrieval")
        tab.wait_for_selector(f"#page-{page}", state="visible")
        if (theme == "dark") != (tab.locator("html.dark").count() == 1):
            tab.keyboard.press("d")
        tab.wait_for_function("!document.querySelector('.page .waiting')?.offsetParent")
        tab.wait_for_timeout(1000)
        shot(tab, f"{page}-{theme}-{width}")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
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
