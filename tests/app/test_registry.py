"""Pages arrive through one registry: the header, the address, the exports and the browser know each of them."""

from __future__ import annotations

import inspect
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.app.test_browser import arrive, drawn, query, says
from tests.children import run_child
from tests.synthetic_run import DEMO, write_run
from workbench.app import page
from workbench.app.exports import find_exports
from workbench.app.registry import PAGES, pages
from workbench.app.state.address import address_of, settled, view_of
from workbench.app.state.content import Content
from workbench.app.state.live_runs import live_runs
from workbench.app.state.view import View
from workbench.heads import WorkbenchError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "extensions" / "own_page.py"
# The pages that the package names come first, in that order; then those that their folder alone lists.
FIRST = ["overview", "head", "head_table", "compare", "plan", "jobs", "probe"]


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("full", "hybrid"):
        write_run(folder / name, replace(DEMO[name], steps=(0, 64, 1024), detectors=("induction", "sink")))
    return folder


def install(folder, module, source):
    """A package as pip would leave it on the path: a module, and metadata that names it as an entry point."""
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[workbench.pages]\n{module} = {module}\n")


def python(folder, code):
    """Run code in a process that has the packages of a folder."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return run_child([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


@pytest.fixture
def own_page():
    """A page of the test, taken out of the registry after it."""

    def layout(content):
        """Nothing yet."""
        return []

    page("mine", parameters=("colour", "head"))(layout)
    yield "mine"
    PAGES.remove("mine")


def test_the_pages_of_the_workbench_are_registered_in_the_headers_order():
    assert [entry.name for entry in pages()][: len(FIRST)] == FIRST


def test_a_registered_page_is_known_to_the_address_with_its_parameters(own_page, runs_folder):
    view, _ = view_of({"pathname": "/mine", "search": "?colour=red&head=L0H1"})
    assert view == View("mine", head="L0H1").having({"colour": "red"})
    view = settled(view, live_runs([runs_folder]))
    assert view.page == "mine"
    assert address_of(view).endswith("&colour=red&head=L0H1")


def test_the_page_of_the_documentation_is_a_page_and_its_arguments_are_all_described():
    document = (ROOT / "docs" / "app.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", document, re.S)
    try:
        exec(example, {"__name__": "documented"})
        (entry,) = [entry for entry in pages() if entry.name == "notes"]
        assert entry.parameters == ("topic",)
        assert len(entry.layout(Content({}))) == 1
    finally:
        PAGES.remove("notes")
    described = set(re.findall(r"^\| `(\w+)", document, re.M))
    assert set(inspect.signature(page).parameters) - {"name"} <= described


def test_a_name_without_a_page_shows_the_first_page(runs_folder):
    assert settled(View("mine"), live_runs([runs_folder])).page == "overview"


@pytest.mark.parametrize("name", ["Mine", "a page", "../page", "a/b", ""])
def test_a_name_that_no_address_can_carry_is_refused(name):
    with pytest.raises(WorkbenchError, match="cannot stand in an address"):
        page(name)


def test_two_exports_of_one_name_are_refused(own_page):
    def scores(view, content, step):
        raise AssertionError("nobody exports it")

    def layout(content):
        """Nothing yet."""
        return []

    page("other", exports={"scores": scores})(layout)
    try:
        with pytest.raises(WorkbenchError, match="'other' exports 'scores'"):
            find_exports()
    finally:
        PAGES.remove("other")


def test_a_page_of_another_package_is_in_the_header_and_exports_its_table(tmp_path, runs_folder):
    install(tmp_path, "sink_page", EXAMPLE.read_text())
    ended = python(
        tmp_path,
        f"""
import json
from workbench.app import build_app
client = build_app([{str(runs_folder)!r}]).server.test_client()
host = {{"Host": "localhost"}}
layout = client.get("/_dash-layout", headers=host).get_data(as_text=True)
print("nav-sinks" in layout, "page-sinks" in layout)
print(client.get("/", headers=host).get_data(as_text=True).count("#page-sinks"))
print(client.get("/export/sinks.csv?page=sinks&sinks_run=hybrid&step=64", headers=host).get_data(as_text=True))
""",
    )
    assert ended.stderr == ""
    lines = ended.stdout.split()
    assert lines[:4] == ["True", "True", "1", "layer,mean,largest"]
    stored = live_runs([runs_folder])["hybrid"].scores(detector="sink", step=64)
    mean, largest = stored.loc[stored["layer"] == 0, "score"].agg(["mean", "max"])
    assert [float(value) for value in lines[4].split(",")] == pytest.approx([0, mean, largest])


def test_a_page_that_cannot_be_imported_is_left_out_with_a_warning_while_the_app_starts(tmp_path, runs_folder):
    install(tmp_path, "broken_page", "import no_such_module_anywhere")
    ended = python(
        tmp_path,
        f"""
from workbench.app import build_app
from workbench.app.registry import pages
app = build_app([{str(runs_folder)!r}])
assert app.server.test_client().get("/_dash-layout", headers={{"Host": "localhost"}}).status_code == 200
print(*(page.name for page in pages()))
""",
    )
    assert ended.stdout.split() == [entry.name for entry in pages()]
    assert "pages of broken_page are left out" in ended.stderr
    assert "no_such_module_anywhere" in ended.stderr


@pytest.mark.browser
def test_the_example_page_opens_from_the_header_and_follows_the_slider(tab, served, tmp_path, runs_folder):
    install(tmp_path, "sink_page", EXAMPLE.read_text())
    with served([runs_folder], packages=tmp_path) as address:
        arrive(tab, f"{address}/overview?detector=sink")
        tab.click("#nav-sinks")
        drawn(tab, "sinks-figure")
        assert urlsplit(tab.url).path == "/sinks"
        assert query(tab)["sinks_run"] == ["full"]
        assert tab.locator("#sinks-table tbody tr").count() == 3
        last = tab.inner_text("#sinks-table")
        tab.keyboard.press("[")
        tab.wait_for_function("last => document.querySelector('#sinks-table').innerText !== last", arg=last)
        tab.get_by_role("textbox", name="Run", exact=True).click()
        tab.get_by_role("option", name="hybrid").click()
        tab.wait_for_function("location.search.includes('sinks_run=hybrid')")
        tab.goto(f"{address}/sinks?sinks_run=hybrid&step=64")
        drawn(tab, "sinks-figure")
        says(tab, "#page-sinks", "Attention sinks per layer")
        assert tab.complaints == []
        tab.goto("about:blank")
