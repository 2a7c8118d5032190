"""What the header and the Jobs page say of a scan is the same: writing, complete, failed, unreadable, gone."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import pytest

from tests.app.test_callbacks import call, view
from tests.synthetic_run import DEMO, write_run
from workbench.app import build_app
from workbench.app.following import status_line
from workbench.app.pages.jobs import scan_card, scans_table
from workbench.app.state.live_runs import live_runs
from workbench.app.state.scan_states import scan_state, unread_state, why_empty
from workbench.store import Failure, Store

FEW = replace(DEMO["full"], steps=(0, 64), detectors=("induction", "sink"))


@pytest.fixture
def runs(tmp_path):
    """Runs in every state, by name."""
    write_run(tmp_path / "complete", FEW)
    write_run(tmp_path / "writing", FEW, upto=1)
    failed = Store.create(tmp_path / "failed", job={"checkpoints": "/data/x"}, versions={})
    failed.write_plan({"checkpoints": ["main"], "units": []})
    failed.fail(Failure("main", None, "bad_checkpoint", "the header is torn", "trace"))
    torn = Store.open(write_run(tmp_path / "torn", FEW)).parts()[0].path
    torn.write_bytes(torn.read_bytes()[:80])
    write_run(tmp_path / "gone", FEW)
    opened = live_runs([tmp_path])
    opened["gone"].status()
    shutil.rmtree(tmp_path / "gone")
    return opened


def test_header_and_jobs_page_use_the_same_words(runs):
    states = {name: scan_state(run, time.time()) for name, run in runs.items()}
    words = {name: state.in_words for name, state in states.items()}
    assert words == {
        "complete": "complete",
        "failed": "ended with failures",
        "gone": "run folder gone",
        "torn": "cannot be read",
        "writing": "writing",
    }
    for name in runs:
        assert words[name] in json.dumps(scan_card(states[name]), default=lambda part: part.to_plotly_json())
        line = json.dumps(status_line([states[name]]), default=lambda part: part.to_plotly_json())
        assert ("scan complete" in line) == (name == "complete")
        assert ("scan 50 %" in line) == (name == "writing")
        assert ("scan ended with failures" in line) == (name == "failed")
        assert ((words[name] in line) and ("failed" in line)) >= (name in {"gone", "torn"})
    table = scans_table(list(runs.values())).set_index("run")
    assert dict(table["state"]) == words
    assert "workbench check" in table["why"]["torn"]


def test_of_several_runs_the_header_is_complete_only_if_all_are(runs):
    def line(*names):
        states = [scan_state(runs[name], time.time()) for name in names]
        return json.dumps(status_line(states), default=lambda part: part.to_plotly_json())

    assert "run folder gone: gone" in line("complete", "gone")
    assert "the rest complete" in line("complete", "gone")
    assert "scan complete" not in line("complete", "gone")
    assert "scan complete" not in line("complete", "writing")
    assert "scan 75 %" in line("complete", "writing")


def test_a_run_says_why_it_is_empty_or_unread(runs):
    assert why_empty([runs["complete"], runs["writing"]]) == ""
    assert "the scan failed at 1 of 1 checkpoints, at main: the header is torn" in why_empty([runs["failed"]])
    assert "put it back, or open the run where it is now" in why_empty([runs["gone"]])
    assert [name for name, run in runs.items() if unread_state(run).reason] == ["gone", "torn"]


def test_a_banner_names_the_run_that_is_gone_once_and_goes_when_it_is_back(tmp_path):
    path = write_run(tmp_path / "run", FEW)
    app = build_app([path])
    view_json = {**view(), "runs": ["run"], "run": "run"}
    first = call(app, "status.children", ["tick.n_intervals"], view=view_json)
    assert first["banners"]["children"] == []
    path.rename(tmp_path / "elsewhere")
    last = first["fingerprints"]["data"]
    gone = call(app, "status.children", ["tick.n_intervals"], view=view_json, fingerprints=last)
    assert "run folder gone" in json.dumps(gone["banners"]["children"])
    assert "scores-changed" not in gone  # what was read stays in sight
    last = gone["fingerprints"]["data"]
    again = call(app, "status.children", ["tick.n_intervals"], view=view_json, fingerprints=last)
    assert "banners" not in again
    (tmp_path / "elsewhere").rename(path)
    back = call(app, "status.children", ["tick.n_intervals"], view=view_json, fingerprints=last)
    assert back["banners"]["children"] == []


def test_a_card_of_a_run_that_is_gone_is_the_reason_and_not_no_scores(tmp_path):
    path = write_run(tmp_path / "run", FEW)
    app = build_app([path])
    shutil.rmtree(path)
    view_json = {**view(detector="sink", probe="text"), "runs": ["run"], "run": "run"}
    for output in ("grid.figure", "strips.figure"):
        answer = call(app, output, ["view.data"], view=view_json)
        assert "is gone" in answer[output.partition(".")[0]]["figure"]["layout"]["annotations"][0]["text"]
    planes = call(app, "planes.data", ["view.data"], view=view_json)["planes"]["data"]
    assert planes["runs"] == {}
    assert "is gone" in planes["reason"]
