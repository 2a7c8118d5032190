"""The table of every head: all detectors with their intervals, what is pinned, notes, and the export of the same."""

from __future__ import annotations

import io
import os
from dataclasses import replace

import pandas as pd
import pytest

from tests.app.test_callbacks import call, view
from tests.synthetic_run import DEMO, write_run
from workbench.app import build_app
from workbench.app.head_tables import every_head, score_columns
from workbench.runs import open_run
from workbench.store.head_notes import read_notes

HERE = {"Host": "127.0.0.1"}
FEW = replace(DEMO["hybrid"], steps=(0, 1024), detectors=("induction", "learned_sink", "entropy"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "hybrid", FEW)


@pytest.fixture(scope="module")
def app(path):
    return build_app([path])


def shown(app, **changes):
    more = [["heads", "L1H2.L9H9"]]
    return call(app, "rowData", ["view.data"], view={**view(page="head_table"), "more": more}, **changes)


def test_every_head_has_a_row_with_the_scores_and_intervals_of_every_detector(path):
    run = open_run(path)
    table = every_head(run, "step1024", probe="repeats")
    assert score_columns(table) == ["entropy on text", "induction", "learned_sink on text"]
    assert len(table) == 12
    for row in table.to_dict("records"):
        (own,) = run.scores(detector="induction", ckpt="step1024", layer=row["layer"], head=row["number"]).to_dict(
            "records"
        )
        assert (row["induction"], row["induction ci_lo"]) == (own["score"], own["ci_lo"])
        assert (row["head"], row["kv_head"]) == (f"L{own['layer']}H{own['head']}", own["kv_head"])
        assert pd.isna(row["learned_sink on text"]) == (row["kind"] == "full")


def test_the_table_shows_what_is_pinned_and_ticks_it_and_no_score_is_no_number(app):
    answer = shown(app)["head-table"]
    rows = {row["head"]: row for row in answer["rowData"]}
    assert [head for head, row in rows.items() if row["pinned"]] == ["L1H2"]
    assert answer["selectedRows"] == {"ids": ["L1H2"]}
    assert rows["L2H0"]["learned_sink on text"] is None
    columns = {column["field"]: column for column in answer["columnDefs"]}
    assert columns["induction"]["initialSort"] == "desc"
    assert columns["entropy on text"]["headerName"] == "entropy on text (nats)"
    assert columns["note"]["editable"] is True


def test_a_note_is_kept_with_its_checkpoint_and_an_error_is_said(app, path):
    change = [{"colId": "note", "value": "finds names", "data": {"head": "L1H2"}}]
    view_json = view(page="head_table")
    at = {"run_checkpoints": {"hybrid": "step0"}}
    answer = call(app, "rowData", ["head-table.cellValueChanged"], view=view_json, head_table=change, **at)
    assert "kept: the note on L1H2 at step0" in answer["head-table-notes"]["children"]
    assert [(note.head, note.ckpt, note.text) for note in read_notes(path)] == [("L1H2", "step0", "finds names")]
    head = call(app, "head-title.children", ["view.data"], view=view(page="head", head="L1H2"))
    assert "note at step0: finds names" in str(head["head-links"])
    (path / "notes.json").write_text("{")
    answer = call(app, "rowData", ["head-table.cellValueChanged"], view=view_json, head_table=change, **at)
    assert "holds no notes" in str(answer["head-table-notes"])
    assert (path / "notes.json").read_text() == "{"
    (path / "notes.json").unlink()


def test_a_read_only_run_says_so_and_its_notes_cannot_be_edited(app, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    answer = shown(app)
    assert "is read-only: notes cannot be kept" in answer["head-table-notes"]["children"]
    assert answer["head-table"]["columnDefs"][-1]["editable"] is False


def test_the_table_is_exported_with_intervals_pins_and_notes_and_unknown_heads_are_refused(app):
    client = app.server.test_client()
    query = "page=head_table&of=hybrid&probe=repeats&heads=L0H1.L1H2"
    table = pd.read_csv(io.BytesIO(client.get(f"/export/head_table.csv?{query}", headers=HERE).data))
    assert table.loc[table["pinned"] == "pinned", "head"].tolist() == ["L0H1", "L1H2"]
    assert {"induction ci_lo", "note", "ckpt", "run"} <= set(table.columns)
    refused = client.get("/export/head_table.csv?of=hybrid&heads=L0H1.L9H9", headers=HERE)
    assert (refused.status_code, "there is no head L9H9" in refused.text) == (404, True)


def test_a_head_that_does_not_exist_is_said_on_the_head_page(app):
    more = {"more": [["no_head", "L99H99"]]}
    answer = call(app, "head-title.children", ["view.data"], view={**view(page="head", head="L2H0"), **more})
    assert answer["head-notice"]["children"] == "there is no head L99H99 in hybrid: this is L2H0, its strongest"
