"""axe-core, the checker of Deque Systems, finds no fault with any page, light or dark, whole or one card alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.app.patterns import add_patterns, patterns
from tests.app.plans import made_plan
from tests.synthetic_run import DEMO, write_run
from workbench.app.registry import pages

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
NAMES = [page.name for page in pages()]


@pytest.fixture(scope="module")
def address(served, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    few = {"steps": (0, 64, 1024)}
    add_patterns(write_run(folder / "full", replace(DEMO["full"], **few)), patterns(), last=1)
    write_run(folder / "hybrid", replace(DEMO["hybrid"], **few))
    torn = write_run(folder / "torn", replace(DEMO["hybrid"], steps=(0,), detectors=("sink",)))
    next(torn.glob("scores/*/*.parquet")).write_bytes(b"half")
    made_plan().save(folder / "kept.json")
    with served([folder]) as address:
        yield address


def violations(tab):
    """What axe finds, with the first elements; `moderate` and `minor` are its two weakest words."""
    found = AXE.Axe().run(tab).response["violations"]
    return [f"{v['impact']} {v['id']}: {[node['html'][:120] for node in v['nodes'][:3]]}" for v in found]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", [*NAMES, "embed/grid"])
def test_a_page_can_be_read_and_used_by_everyone(tab, address, page, theme):
    tab.goto(f"{address}/{page}?run=full&run=hybrid&detector=induction")
    tab.wait_for_selector(".wb .card >> visible=true")
    if page == "head":
        tab.wait_for_selector("#head-patterns canvas.map")
    if (theme == "dark") != (tab.locator("html.dark").count() == 1):
        tab.keyboard.press("d")
    tab.wait_for_selector("html.dark" if theme == "dark" else "html:not(.dark)")
    tab.wait_for_timeout(2500)
    assert violations(tab) == []


@pytest.mark.parametrize("key", ["?", "e", "m"])
def test_dialogs_and_a_card_over_the_window_can_be_read_and_used_by_everyone(tab, address, key):
    tab.goto(f"{address}/overview?run=full&detector=induction")
    tab.wait_for_selector("#grid .heatmaplayer", state="attached")
    tab.locator("[data-card=grid] .maximise").focus()
    tab.keyboard.press(key)
    tab.wait_for_selector(".maximised" if key == "m" else "dialog[open]")
    tab.wait_for_timeout(1000)
    assert violations(tab) == []
