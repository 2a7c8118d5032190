"""The report is one file that needs no network; its claims are those of the runs, and every figure is drawn."""

from __future__ import annotations

import json
import re
import sys
from html import unescape

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.children import run_child
from tests.preloaded import PreloadedReading
from tests.synthetic_run import DEMO, write_run
from workbench.app.answers_of_view import answers
from workbench.app.server.serving import open_content
from workbench.app.state.view import View
from workbench.cli.main import app
from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.report import contents_of, write_page
from workbench.runs import open_run
from workbench.store import Failure, Store

CLASSES = ["induction", "retrieval"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of synthetic scores; the second has a failed checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [write_run(folder / name, DEMO[name]) for name in ("full", "hybrid")]
    failure = Failure("step96", None, "BadCheckpoint", "weights <b>truncated</b> & lost", "traceback", 1)
    Store.open(paths[1]).fail(failure)
    return [open_run(path) for path in paths]


@pytest.fixture(scope="module")
def contents(runs):
    return contents_of(runs, detectors=CLASSES)


@pytest.fixture(scope="module")
def page(contents, tmp_path_factory):
    return write_page(contents, tmp_path_factory.mktemp("report") / "report.html")


def test_claims_count_heads_and_say_when_and_lock_in_says_its_sentence(contents, runs):
    traced = runs[0].emergence("induction")
    there = traced.verdict.isin(["at_first", "emerged"]).sum()
    (claim,) = [c for c in contents.claims if c.startswith("full, induction on repeats: ") and "heads are there" in c]
    assert f"{there} of {len(traced)} heads are there at the end" in claim
    assert f"over at {traced.n50.min():,.0f} tokens" in claim
    assert f"full, induction on repeats: {runs[0].lock_in_sentence('induction')}" in contents.claims


def test_best_heads_come_with_score_interval_n_and_onset(contents, runs):
    best = contents.best[(contents.best.run == "full") & (contents.best.detector == "induction")]
    top = runs[0].top("induction", 5)
    assert best.score.tolist() == top.score.tolist()
    pd.testing.assert_frame_equal(
        best[["ci_lo", "ci_hi", "n", "onset_tokens"]].reset_index(drop=True),
        top[["ci_lo", "ci_hi", "n", "onset_tokens"]],
    )


def test_the_page_loads_nothing_and_is_below_ten_megabytes(page):
    html = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 10e6
    assert html.count("plotly.js v") == 1, "plotly is there once"
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)', html)


def test_the_page_begins_with_which_heads_need_the_whole_context_a_sentence_a_run(page, contents):
    text = unescape(page.read_text(encoding="utf-8"))
    first = text.index("<h2>Which heads need the whole context?</h2>")
    places = [text.index(f"{answer.sentence} {answer.heads[0]}") for answer in contents.answers if answer.heads]
    assert len(contents.answers) == 2
    assert len(places) > 0
    assert all(first < place < text.index("<h2>What was scanned</h2>") for place in places)


def test_the_page_tells_what_failed_as_text_and_not_as_markup(page):
    html = page.read_text(encoding="utf-8")
    assert "<b>truncated</b>" not in html
    assert "weights <b>truncated</b> & lost" in unescape(html)


@pytest.mark.browser
def test_every_figure_is_drawn_offline_without_a_complaint(tab, page):
    urls = []
    tab.on("request", lambda request: urls.append(request.url))
    tab.set_default_timeout(120_000)  # four megabytes of script on a machine that is busy with other tests
    tab.goto(page.as_uri())
    n_figures = tab.locator(".plotly-graph-div").count()
    assert n_figures >= 2 * 4
    tab.wait_for_function(
        "[...document.querySelectorAll('.plotly-graph-div')].every(one => one.querySelector('.main-svg .subplot'))"
    )
    assert tab.locator("h1").inner_text() == "Attention heads of full, hybrid"
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []
    assert tab.complaints == []


def test_the_command_writes_the_file_and_says_the_claims_or_one_document(runs, tmp_path):
    words = ["report", str(runs[0].path), "--out", str(tmp_path / "r.html"), "--detector", "induction"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    content = open_content([runs[0].path], [])
    (answer,) = answers(View(runs=("full",)), content).values()
    assert done.stdout.splitlines()[0] == answer.sentence  # as the Overview of the app begins
    assert "look far, by " in answer.sentence
    assert "the first since " in answer.sentence
    assert "\nfull, induction on repeats: " in done.stdout
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert document["report"] == str(tmp_path / "r.html")
    assert document["runs"]["full"]["checkpoints"] == 20
    assert document["answers"][0]["sentence"] == answer.sentence
    assert document["answers"][0]["heads"] == [str(head) for head in answer.heads]
    assert {"claims", "best_heads", "failures", "classes", "heads", "phase_changes", "lock_in"} <= set(document)


def test_what_cannot_be_reported_is_refused(runs, contents, tmp_path):
    with pytest.raises(WorkbenchError, match="no run was given"):
        contents_of([])
    with pytest.raises(WorkbenchError, match="bear one name"):
        contents_of([runs[0], runs[0]])
    with pytest.raises(StoreNotWritable, match="pass another --out"):
        write_page(contents, tmp_path / "nowhere" / "report.html")


def test_a_report_is_written_without_torch(runs, tmp_path):
    code = (
        "import sys; from workbench.report import contents_of, write_page; from workbench.runs import open_run;"
        "from pathlib import Path; write_page(contents_of([open_run(sys.argv[1])], detectors=['induction']),"
        " Path(sys.argv[2])); assert 'torch' not in sys.modules"
    )
    run_child([sys.executable, "-c", code, runs[0].path, tmp_path / "r.html"], start=PreloadedReading, check=True)
