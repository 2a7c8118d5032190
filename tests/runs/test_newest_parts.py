"""A run scanned more than once: readers show the newest request on the weights of now, and say what else there is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.rescanned_run import (
    DETECTORS,
    FIRST,
    N_HEADS,
    SECOND,
    STEPS,
    commit,
    origin_of,
    request,
    scanned,
    score_at,
    settings_of,
    units_of,
)
from workbench.app.state.live_runs import live_runs
from workbench.heads import Row, WorkbenchError
from workbench.runs import open_run
from workbench.store import Store, WrittenProbe, canonical_digest, read_rows


@pytest.fixture(scope="module")
def scanned_once(tmp_path_factory):
    return scanned(tmp_path_factory.mktemp("runs") / "run", (FIRST, 0.0))


@pytest.fixture
def once(scanned_once, tmp_path):
    """A run that was scanned once."""
    return Store(shutil.copytree(scanned_once.path, tmp_path / "once" / "run"))


@pytest.fixture(scope="module")
def scanned_twice(scanned_once, tmp_path_factory):
    store = Store(shutil.copytree(scanned_once.path, tmp_path_factory.mktemp("runs") / "run"))
    request(store, SECOND["rows"])
    commit(store, SECOND["rows"], bias=0.01)
    return store


@pytest.fixture
def store(scanned_twice, tmp_path):
    """A run that was scanned again, with rows."""
    return Store(shutil.copytree(scanned_twice.path, tmp_path / "twice" / "run"))


def readings(run):
    """All that a run can be asked for, as tables without what names the run."""
    head = run.cube("induction").head(0, 1)
    trajectories = run.trajectories("induction", "repeats")
    tables = {
        "scores": run.scores(),
        "columns": run.scores(columns=["score", "step"]),
        "last": run.scores(step="last"),
        "step": run.scores(detector="induction", step=64, head=1),
        "metrics": run.metrics(),
        "layers": run.layers(),
        "layer": run.layer_scores(0),
        "top": run.top(),
        "onsets": run.onsets("induction"),
        "emergence": run.emergence("induction"),
        "lock_in": run.lock_in("induction"),
        "phase_changes": run.phase_changes(),
        "checkpoints": run.checkpoints(),
        "head": head,
        "best": run.cube("induction").top(2, ckpt=None),
        "trajectories": pd.DataFrame(np.asarray(trajectories.score, np.float64)),
        "names": pd.DataFrame({"names": [*run.detectors, *run.probes, *run.probes_of("induction")]}),
        "status": pd.DataFrame([[run.status().planned, run.status().done]]),
    }
    return {name: table.drop(columns="run", errors="ignore") for name, table in tables.items()}


@pytest.mark.parametrize("changed", SECOND)
def test_each_setting_makes_other_rows_and_the_newest_are_shown(once, changed):
    request(once, SECOND[changed])
    commit(once, SECOND[changed], bias=0.01)
    for detector in DETECTORS:
        rows = open_run(once.path).scores(detector=detector, head=0)
        is_touched = settings_of(detector, SECOND[changed]) != settings_of(detector, FIRST)
        assert rows["score"].tolist() == [score_at(step, 0.01 * is_touched) for step in STEPS]
        assert len(open_run(once.path, select="all").scores(detector=detector)) == len(rows) * 4 * (1 + is_touched)


@pytest.mark.parametrize("opens", [open_run, lambda path: live_runs([path])["run"]], ids=["notebook", "app"])
def test_all_readings_after_a_second_scan_are_those_of_a_run_of_its_own(once, tmp_path, opens):
    fresh = scanned(tmp_path / "fresh" / "run", (SECOND["all"], 0.01))
    request(once, SECOND["all"])
    commit(once, SECOND["all"], bias=0.01)
    after_both = readings(opens(once.path))
    for name, table in readings(opens(fresh.path)).items():
        pd.testing.assert_frame_equal(after_both[name], table, obj=name)


def test_repeating_the_first_command_makes_it_the_newest_without_a_new_part(store, scanned_once):
    before = {part.path: part.path.stat().st_mtime_ns for part in store.parts()}
    run = open_run(store.path)
    assert run.scores(detector="induction")["rows"].unique().tolist() == [8]
    digest = run.fingerprint("scores")
    request(store, FIRST)
    assert run.refresh()
    assert run.fingerprint("scores") != digest
    repeated = readings(run)
    for name, table in readings(open_run(scanned_once.path)).items():
        pd.testing.assert_frame_equal(repeated[name], table, obj=name)
    assert {part.path: part.path.stat().st_mtime_ns for part in store.parts()} == before


def test_what_is_not_shown_is_said_with_how_to_have_it(store, once):
    (remark,) = open_run(store.path).left_out
    assert "shown: rows 8, 5 checkpoints; not shown: rows all" in remark
    assert "--setting rows=all" in remark
    assert open_run(store.path, settings={"rows": "all"}).left_out != ()
    assert open_run(once.path).left_out == ()


@pytest.mark.parametrize("settings", [{"rows": None}, {"rows": "all"}, {"rows": "all", "dtype": "torch.float32"}])
def test_other_settings_can_be_chosen_as_python_or_a_command_line_writes_them(store, once, settings):
    chosen, fresh = open_run(store.path, settings=settings), open_run(once.path)
    pd.testing.assert_frame_equal(chosen.scores(detector="induction"), fresh.scores(detector="induction"))
    pd.testing.assert_frame_equal(chosen.emergence("far_mass"), fresh.emergence("far_mass"))
    pd.testing.assert_frame_equal(chosen.cube("induction").head(0, 1), fresh.cube("induction").head(0, 1))
    pd.testing.assert_frame_equal(chosen.metrics(), fresh.metrics())
    assert chosen.top("induction").equals(fresh.top("induction"))
    assert chosen.with_cache(10**6).settings == chosen.settings != {}
    assert len(live_runs([chosen])["run"].scores(detector="induction").query("rows.isna()")) == N_HEADS * len(STEPS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 9}, "no scores with rows 9; there are such with rows 8; rows all"),
        ({"row": 8}, "no setting 'row'; expected dtype, rows, seed, far_window, far_sink"),
        ({"rows": "many"}, "rows 'many' is no value of this setting; expected a whole number or 'all'"),
        ({"seed": True}, "seed True is no value"),
    ],
)
def test_settings_that_are_not_there_are_refused_with_those_that_are(store, settings, message):
    with pytest.raises(WorkbenchError, match=message):
        open_run(store.path, settings=settings).scores()


def test_all_rows_are_marked_and_what_is_computed_is_of_the_newest(store):
    every, newest = open_run(store.path, select="all"), open_run(store.path)
    rows = every.scores()
    assert len(rows) == (2 * 2 + 1) * N_HEADS * len(STEPS)
    is_newest = rows["rows"].eq(8).fillna(False) | (rows["detector"] == "copying")
    assert rows["is_newest"].tolist() == is_newest.tolist()
    assert every.metrics()["is_newest"].tolist() == every.metrics()["rows"].eq(8).fillna(False).tolist()
    pd.testing.assert_frame_equal(every.emergence("induction"), newest.emergence("induction"))
    pd.testing.assert_frame_equal(every.cube("induction").head(0, 1), newest.cube("induction").head(0, 1))
    with pytest.raises(WorkbenchError, match="leave out settings="):
        open_run(store.path, select="all", settings={"rows": 8})


def test_parquet_rows_carry_their_settings(once):
    request(once, SECOND["all"])
    commit(once, SECOND["all"], bias=0.01)
    table = pd.read_parquet(once.path / "scores")
    told_apart = table.groupby(["detector", "dtype", "rows", "seed", "far_window", "far_sink"], dropna=False).size()
    assert len(told_apart) == 2 * len(DETECTORS)
    assert set(told_apart) == {N_HEADS * len(STEPS)}
    metrics = pd.read_parquet(once.path / "metrics")
    assert metrics.groupby(["dtype", "rows", "seed"], dropna=False).size().tolist() == [len(STEPS)] * 2
    assert once.check() == []


def test_a_request_that_has_only_begun_is_shown_as_far_as_it_is(store):
    request(store, SECOND["dtype"])
    run = open_run(store.path)
    assert run.scores(detector="induction")["rows"].unique().tolist() == [8]  # nothing of the newest is there yet
    assert (run.status().planned, run.status().done) == (20, 0)
    commit(store, SECOND["dtype"], steps=STEPS[:2])
    assert run.status().done == 8
    assert run.scores(detector="induction")["step"].unique().tolist() == list(STEPS[:2])
    assert run.scores(detector="induction")["dtype"].unique().tolist() == ["bfloat16"]
    says = "shown: dtype bfloat16, rows all, 2 checkpoints; not shown: dtype float32, rows 8"
    assert any(says in remark for remark in run.left_out)


def test_a_detector_that_the_newest_request_leaves_out_keeps_the_request_that_has_it(store):
    request(store, SECOND["dtype"], detectors=("far_mass",))
    commit(store, SECOND["dtype"], detectors=("far_mass",), bias=0.02)
    run = open_run(store.path)
    assert run.scores(detector="far_mass")["dtype"].unique().tolist() == ["bfloat16"]
    assert run.scores(detector="induction")["rows"].unique().tolist() == [8]
    assert run.detectors == ("copying", "far_mass", "induction")


def test_a_probe_written_in_other_words_is_another_request(store):
    request(store, FIRST, digest="q", written="repeats:n=32")
    commit(store, FIRST, digest="q", bias=0.05, steps=STEPS[:3])
    run = open_run(store.path)
    assert run.scores(detector="induction")["probe_digest"].unique().tolist() == ["q" * 32]
    assert run.scores(detector="induction")["step"].unique().tolist() == list(STEPS[:3])
    request(store, FIRST)
    run.refresh()
    assert run.scores(detector="induction")["probe_digest"].unique().tolist() == ["p" * 32]
    assert len(run.scores(detector="induction")) == N_HEADS * len(STEPS)


def test_the_vocabularies_of_a_request_are_shown_together_and_no_others(tmp_path):
    store = Store.create(tmp_path / "run", job={}, versions={})
    both = {"repeats": WrittenProbe("repeats:n=64", ("p" * 32, "q" * 32))}
    store.write_request(units_of(FIRST), both, checkpoints=Path("/s"))
    commit(store, FIRST, steps=STEPS[:2], digest="p")
    commit(store, FIRST, steps=STEPS[2:], digest="q")
    run = open_run(store.path)
    assert run.scores(detector="induction")["step"].unique().tolist() == list(STEPS)
    assert run.left_out == ()
    store.write_request(units_of(FIRST), {"repeats": WrittenProbe("repeats:n=64", ("q" * 32,))}, checkpoints=Path("/s"))
    run.refresh()
    assert run.scores(detector="induction")["step"].unique().tolist() == list(STEPS[2:])
    assert "another form of the probe are not shown" in run.left_out[0]


def test_a_checkpoint_whose_vocabulary_changed_has_one_score_a_head(once):
    once.write_request(
        units_of(FIRST), {"repeats": WrittenProbe("repeats:n=64", ("p" * 32, "q" * 32))}, checkpoints=Path("/s")
    )
    commit(once, FIRST, steps=(64,), digest="q", bias=0.03)
    run = open_run(once.path)
    assert run.scores(detector="induction", step=64)["probe_digest"].unique().tolist() == ["q" * 32]
    assert len(run.scores(detector="induction")) == N_HEADS * len(STEPS)
    once.note_current(origin_of(64), {"repeats": "p" * 32})
    run.refresh()
    assert run.scores(detector="induction", step=64)["probe_digest"].unique().tolist() == ["p" * 32]


def test_an_overwritten_checkpoint_is_read_by_its_present_weights(once):
    commit(once, FIRST, steps=(256,), weights="other", bias=0.5)
    run = open_run(once.path)
    present = run.scores(detector="induction", step=256)
    assert present["weights"].unique().tolist() == [origin_of(256, "other").weights]
    assert len(present) == N_HEADS
    (remark,) = run.left_out
    assert "other weights now; the scores of the earlier are not shown" in remark
    assert "step256" in remark
    rows = open_run(once.path, select="all").scores(detector="induction", step=256)
    assert rows.groupby("weights", sort=False)["is_newest"].all().to_dict() == {
        origin_of(256).weights: False,
        origin_of(256, "other").weights: True,
    }
    assert list(run.checkpoints()["parts"]) == [4] * 5
    assert len(run.metrics()) == len(STEPS)


def test_an_overwritten_checkpoint_that_is_put_back_has_its_scores_again(once):
    before = open_run(once.path).scores()
    commit(once, FIRST, steps=(256,), weights="other", bias=0.5)
    once.note_current(origin_of(256), {"repeats": "p" * 32})
    pd.testing.assert_frame_equal(open_run(once.path).scores(), before)


def test_an_overwritten_checkpoint_without_scores_yet_has_none(once):
    once.note_current(origin_of(256, "other"), {})
    run = open_run(once.path)
    assert run.scores(detector="induction")["step"].unique().tolist() == [s for s in STEPS if s != 256]
    assert "not scored yet" in run.left_out[0]
    assert run.status().done == 16


def test_a_checkpoint_that_moved_to_another_stage_has_one_score_a_head(once):
    moved = replace(origin_of(1024), stage="anneal")
    part = next(p for p in once.parts() if p.label.ckpt == "step1024" and p.label.detector == "induction")
    rows = [
        Row(0, h, h, "full", None, "induction", 1, "repeats", 0.5, 0.0, 0.0, 0.0, 8, 64, 0.0, 1.0)
        for h in range(part.label.rows)
    ]
    once.note_current(moved, {"repeats": "p" * 32})
    determined = {"weights": moved.weights, "place": ["anneal", None, 1024], **settings_of("induction", FIRST)}
    unit = canonical_digest(determined)
    once.commit_scores(moved, unit, rows, probe_digest="p" * 32, seq_len=64, determined=determined)
    assert open_run(once.path).scores(detector="induction", ckpt="step1024")["stage"].tolist() == ["anneal"] * N_HEADS
    assert "other configuration or place now" in open_run(once.path).left_out[0]


def test_a_run_without_requests_shows_the_settings_of_its_last_job(store):
    for account in ("requests", "current"):
        for path in (store.path / account).glob("*.json"):
            path.unlink()
    assert len(open_run(store.path).scores(detector="induction")) == N_HEADS * len(STEPS)
    for rows, expected in (("", "rows all"), ("rows = 8\n", "rows 8")):
        store.write_job(f"{rows}seed = 0\n")
        run = open_run(store.path)
        assert str(run.settings_of("induction", "repeats")) == f"dtype float32, {expected}, seed 0"
        assert len(run.scores(detector="induction")) == N_HEADS * len(STEPS)


def test_damaged_accounts_are_named_by_check_and_lose_nothing(store):
    path = next((store.path / "requests").glob("*.json"))
    path.write_text("{")
    assert [problem.path for problem in store.check()] == [path]
    assert len(open_run(store.path).scores(detector="induction")) == N_HEADS * len(STEPS)


def test_a_part_of_schema_1_is_renewed_with_its_numbers_and_its_time(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr("workbench.store.run_folder.SCHEMA", 1)
        older.setattr("workbench.store.part_format.COLUMNS", _without_settings())
        store = scanned(tmp_path / "run", (FIRST, 0.0), (SECOND["all"], 0.01))
    before = {part.path: (part.path.stat().st_mtime_ns, read_rows(store.path, part)) for part in store.parts()}
    assert {part.label.schema for part in store.parts()} == {1}
    assert "dtype" not in pd.read_parquet(store.path / "scores").columns
    scores = open_run(store.path).scores()
    store.renew()
    after = {part.path: (part.path.stat().st_mtime_ns, read_rows(store.path, part)) for part in store.parts()}
    assert before == after
    assert {part.label.schema for part in store.parts()} == {2}
    pd.testing.assert_frame_equal(open_run(store.path).scores(), scores)
    # Whether it was float32 or the checkpoint's own was not written down.
    assert set(pd.read_parquet(store.path / "scores")["dtype"].fillna("unknown")) == {"unknown", "bfloat16"}
    assert store.check() == []


def _without_settings():
    import pyarrow as pa

    from workbench.store import METRICS, SCORES, SETTING_NAMES

    tables = {"scores": SCORES, "metrics": METRICS}
    return {name: pa.schema([f for f in schema if f.name not in SETTING_NAMES]) for name, schema in tables.items()}
