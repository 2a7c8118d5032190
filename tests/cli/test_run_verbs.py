"""Verbs on a run that was scanned more than once: the newest request, others on demand, and a word on the others."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tests.rescanned_run import FIRST, N_HEADS, SECOND, STEPS, commit, origin_of, request, scanned, score_at
from workbench.cli.main import app
from workbench.heads import WorkbenchError
from workbench.runs import open_run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return scanned(tmp_path_factory.mktemp("runs") / "run", (FIRST, 0.0), (SECOND["rows"], 0.01)).path


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_top_is_of_the_newest_request_and_says_that_there_is_another(path):
    ended = call("top", path, "--detector", "induction", "--json")
    best = json.loads(ended.stdout)[0]
    assert best["score"] == pytest.approx(score_at(STEPS[-1], 0.01))
    assert best["settings"]["rows"] == 8
    assert "not shown: rows all" in best["remarks"][0]
    assert "--setting rows=all" in ended.stderr


def test_a_setting_chooses_the_other_request(path):
    ended = call("top", path, "--detector", "induction", "--setting", "rows=all", "--json")
    best = json.loads(ended.stdout)[0]
    assert best["score"] == pytest.approx(score_at(STEPS[-1], 0.0))
    assert best["settings"]["rows"] is None
    assert "--setting rows=8" in ended.stderr


@pytest.mark.parametrize("setting", ["rows", "rows=9", "row=8", "rows=x"])
def test_a_setting_that_is_none_is_refused(path, setting):
    with pytest.raises(WorkbenchError, match=r"--setting|no scores with|no setting|no value"):
        call("top", path, "--setting", setting)


def test_emergence_and_status_have_remarks_in_their_documents(path):
    ended = call("emergence", path, "--detector", "induction", "--json")
    document = json.loads(ended.stdout)
    assert document["remarks"] == {"run": list(open_run(path).remarks)}
    assert len(document["heads"]) <= N_HEADS
    assert "not shown" in ended.stderr
    status = call("status", path, "--json")
    assert json.loads(status.stdout)["remarks"] == list(open_run(path).remarks)
    assert (json.loads(status.stdout)["planned"], json.loads(status.stdout)["done"]) == (20, 20)
    assert "not shown" in call("status", path).stderr


def test_a_report_says_its_settings_and_what_is_not_shown(path, tmp_path):
    ended = call("report", path, "--detector", "induction", "--out", tmp_path / "report.html", "--json")
    facts = json.loads(ended.stdout)["runs"]["run"]
    assert "dtype float32, rows 8, seed 0" in facts["settings"]
    assert "not shown: rows all" in facts["remarks"]
    assert "not shown: rows all" in (tmp_path / "report.html").read_text()


def test_an_overwritten_checkpoint_is_said_on_stderr(tmp_path):
    store = scanned(tmp_path / "run", (FIRST, 0.0))
    commit(store, FIRST, steps=STEPS[-1:], weights="other", bias=-0.5)
    ended = call("top", store.path, "--detector", "induction", "--json")
    assert json.loads(ended.stdout)[0]["score"] == pytest.approx(score_at(STEPS[-1], -0.5))
    assert "other weights now" in ended.stderr
    store.note_current(origin_of(STEPS[-1]), {"repeats": "p" * 32})
    request(store, FIRST)
    assert json.loads(call("top", store.path, "--json").stdout)[0]["score"] > 0.8
