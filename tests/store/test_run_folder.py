"""What the store promises: whole parts or none, exact rows back, and errors that say what to do."""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import asdict, astuple, fields, replace
from importlib.util import find_spec

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.files import atomic
from workbench.heads import KINDS, Metric, Row, RunLocked, StoreNotWritable, StoreTooNew, WorkbenchError
from workbench.runs import open_run
from workbench.store import METRICS, SCORES, Failure, Origin, Reader, Store, canonical_digest

ORIGIN = Origin("run", "step100", "ab" * 16, "cd" * 16, "stage1", None, 100, 100, 409_600)
UNIT = "0" * 32
OTHER = "1" * 32


def row(**changes):
    default = Row(0, 1, 0, "full", None, "induction", 1, "repeats", 0.5, 0.4, 0.6, 0.1, 8, 100, 0.3, 0.7)
    return replace(default, **changes)


def metric(**changes):
    return replace(Metric("copy_needle", "copy_accuracy", 64, None, 0.5, 0.4, 0.6, 100, 0.3, 0.7), **changes)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "run", job={"detectors": ["induction"]}, versions={"workbench": "0.1.0"})


def commit(store, unit=UNIT, rows=None, origin=ORIGIN):
    rows = [row()] if rows is None else rows
    return store.commit_scores(origin, unit, rows, probe_digest="p" * 32, seq_len=64, probe="repeats")


def commit_metric(store, unit=UNIT, metrics=None, origin=ORIGIN, probe_digest="p" * 32):
    return store.commit_metrics(
        origin, unit, [metric()] if metrics is None else metrics, probe_digest=probe_digest, seq_len=64
    )


def text(min_size=0):
    return st.text(st.characters(codec="utf-8"), min_size=min_size, max_size=8)


integers = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(width=64)
rows_of_one_unit = st.lists(
    st.builds(
        row,
        layer=integers,
        head=st.none() | integers,
        kv_head=integers,
        kind=st.sampled_from(KINDS),
        window=st.none() | integers,
        n=integers,
        n_seq=integers,
        flags=text(),
        **dict.fromkeys(("score", "half_a", "half_b", "sd_seq", "ci_lo", "ci_hi"), numbers),
    ),
    max_size=6,
)
origins = st.builds(
    Origin,
    run=text(),
    ckpt=text(),
    weights=st.text("0123456789abcdef", min_size=8, max_size=32),
    config=text(),
    stage=st.none() | text(),
    branch=st.none() | text(),
    step=st.none() | integers,
    step_total=st.none() | st.integers(0, 10**10 - 1),
    tokens=st.none() | integers,
)


def as_python(value):
    """A frame's value as the row's: missing is None, and NaN equals itself."""
    if value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def test_digest_ignores_the_order_of_keys_and_nothing_else():
    assert canonical_digest({"a": 1, "b": [1, 2]}) == canonical_digest({"b": [1, 2], "a": 1})
    assert canonical_digest({"a": 1}) != canonical_digest({"a": 2})
    assert canonical_digest([1, 2]) != canonical_digest([2, 1])


def test_digest_is_the_same_on_every_machine():
    assert canonical_digest({"step": 100, "name": "é"}) == "11ba52cf6e6a515487d996f20fcd5add"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(origin=origins, rows=rows_of_one_unit)
def test_scores_come_back_as_they_were_written(store, origin, rows):
    path = commit(store, origin=origin, rows=rows)
    try:
        frame = store.scores()
    finally:
        path.unlink()
    assert list(frame.columns) == SCORES.names
    assert len(frame) == len(rows)
    for record, written in zip(frame.to_dict("records"), rows, strict=True):
        for name, value in (asdict(written) | asdict(origin)).items():
            assert as_python(record[name]) == as_python(value), name


def test_metrics_come_back_as_they_were_written(store):
    wrote = [metric(), metric(distance=None, value=math.nan), metric(position=3)]
    commit_metric(store, metrics=wrote)
    frame = store.metrics()
    assert list(frame.columns)[: len(METRICS.names)] == METRICS.names
    for record, written in zip(frame.to_dict("records"), wrote, strict=True):
        assert [as_python(record[f.name]) for f in fields(Metric)] == [as_python(v) for v in astuple(written)]
    assert set(frame["ckpt"]) == {"step100"}
    assert set(frame["step_total"]) == {100}
    assert set(frame["probe_digest"]) == {"p" * 32}


def test_files_have_exactly_the_documented_columns_for_other_readers(store):
    assert pq.read_schema(commit(store)).names == SCORES.names
    assert pq.read_schema(commit_metric(store)).names == METRICS.names


def test_a_file_says_what_it_is_without_its_rows(store):
    metadata = pq.read_metadata(commit(store)).metadata
    assert metadata[b"wb.schema"] == b"2"
    assert metadata[b"wb.table"] == b"scores"
    assert metadata[b"wb.unit"] == UNIT.encode()
    assert metadata[b"wb.rows"] == b"1"
    assert metadata[b"wb.probe"] == b"repeats"
    assert metadata[b"wb.detector"] == b"induction"
    assert metadata[b"wb.ckpt"] == b"step100"


def test_parts_lie_in_a_folder_per_checkpoint_that_sorts_by_step(store):
    path = commit(store)
    assert path.relative_to(store.path).as_posix() == f"scores/s0000000100-abababab/{UNIT}.parquet"
    unknown = commit(store, origin=replace(ORIGIN, step_total=None))
    assert unknown.parent.name == "s-----------abababab"
    assert not list((store.path / ".tmp").iterdir())


def test_dtypes_do_not_depend_on_what_is_missing(store):
    before = store.scores().dtypes, store.metrics().dtypes
    commit(store, rows=[row(head=None, window=None)], origin=replace(ORIGIN, step=None, tokens=None, stage=None))
    commit_metric(store, metrics=[metric(distance=None)])
    assert store.scores().dtypes.equals(before[0])
    assert store.metrics().dtypes.equals(before[1])
    for name in ("step", "step_total", "tokens", "head", "window"):
        assert before[0][name] == pd.Int64Dtype()


def test_a_unit_without_rows_is_done_all_the_same(store):
    assert not store.has("scores", ORIGIN, UNIT)
    commit(store, rows=[])
    assert store.has("scores", ORIGIN, UNIT)
    assert not store.has("metrics", ORIGIN, UNIT)
    assert store.scores().empty
    (part,) = store.parts()
    assert (part.label.rows, part.label.probe) == (0, "repeats")
    assert store.check() == []


def test_a_unit_that_is_committed_twice_counts_once(store):
    commit(store)
    commit(store)
    assert len(store.parts()) == len(store.scores()) == 1


def test_exact_duplicates_from_two_units_are_dropped_and_everything_else_stays(store):
    commit(store, rows=[row(head=0), row(head=1)])
    commit(store, unit=OTHER, rows=[row(head=1, score=0.9), row(head=2)])
    frame = store.scores()
    assert list(frame["head"]) == [0, 1, 2]
    assert frame["score"].iloc[1] == 0.5
    commit(store, unit="2" * 32, origin=replace(ORIGIN, branch="sliding"))
    assert len(store.scores()) == 4


def test_two_mixers_of_one_layer_are_not_duplicates_of_each_other(store):
    rows = [row(kind="full"), row(kind="linear")]
    commit(store, rows=rows)
    assert list(store.scores()["kind"]) == ["full", "linear"]
    commit(store, unit=OTHER, rows=rows)
    assert list(store.scores()["kind"]) == ["full", "linear"]


def test_metrics_of_another_probe_digest_are_not_duplicates(store):
    commit_metric(store)
    commit_metric(store, unit=OTHER)
    assert len(store.metrics()) == 1
    commit_metric(store, unit="2" * 32, probe_digest="q" * 32)
    assert len(store.metrics()) == 2


def test_a_unit_that_mixes_detectors_is_refused(store):
    with pytest.raises(AssertionError, match="one detector"):
        commit(store, rows=[row(), row(detector="sink")])


def test_a_unit_that_is_no_digest_is_refused(store):
    with pytest.raises(AssertionError, match="32 hex"):
        commit(store, unit="../outside")


def test_creating_a_run_again_keeps_what_it_was_made_for(store):
    first = store.description()
    again = Store.create(store.path, job={"detectors": ["other"]}, versions={})
    assert again.description() == first
    assert first["schema"] == 2
    assert first["job"] == {"detectors": ["induction"]}


def test_opening_a_folder_without_a_run_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(WorkbenchError, match=r"no run\.json.*workbench scan DIR --out"):
        Store.open(tmp_path)
    with pytest.raises(WorkbenchError, match="no such folder"):
        Store.open(tmp_path / "nowhere")


def test_no_run_is_advised_into_a_folder_that_holds_something_else(tmp_path):
    weights = tmp_path / "model"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"")
    for folder in (weights, tmp_path):  # a checkpoint, and a folder of checkpoints
        with pytest.raises(WorkbenchError, match=rf"holds weights.*scan {folder} --out runs/{folder.name}`$"):
            Store.open(folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    with pytest.raises(WorkbenchError, match=r"no run\.json in it; make one with .*--out RUN, another folder`"):
        Store.open(tmp_path / "notes")
    with pytest.raises(WorkbenchError, match=rf"did you mean {weights}\?"):
        Store.open(tmp_path / "modell")


def test_checkpoints_and_plan_are_replaced_as_a_whole(store):
    assert store.checkpoints() == []
    assert store.plan() == {"checkpoints": [], "units": []}
    store.write_checkpoints([{"name": "step1", "step": 1}, {"name": "step2", "step": 2}])
    store.write_checkpoints([{"name": "step3", "step": 3}])
    store.write_plan({"checkpoints": ["step3"], "units": []})
    assert Store.open(store.path).checkpoints() == [{"name": "step3", "step": 3}]
    assert Store.open(store.path).plan()["checkpoints"] == ["step3"]


def test_failures_count_attempts_and_can_be_forgiven(store):
    failure = Failure("step100", UNIT, "oom", "no memory left", "Traceback …")
    assert store.fail(failure).attempts == 1
    assert store.fail(failure).attempts == 2
    store.fail(Failure("step100", None, "bad_checkpoint", "truncated", ""))
    store.fail(Failure("step200", UNIT, "oom", "", "", attempts=3))
    failures = store.failures()
    assert [(f.ckpt, f.unit, f.attempts) for f in failures] == [
        ("step100", None, 1),
        ("step100", UNIT, 2),
        ("step200", UNIT, 3),
    ]
    store.forgive("step100", UNIT)
    store.forgive("step100", UNIT)
    assert [f.unit for f in store.failures()] == [None, UNIT]


def test_events_are_appended_one_a_line(store):
    store.log(event="loaded", ckpt="step100")
    store.log(event="done", seconds=1.5)
    (path,) = (store.path / "log").glob("*.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [e["event"] for e in events] == ["loaded", "done"]


def test_a_reader_folds_in_new_parts_without_reading_the_others_again(store, monkeypatch):
    commit(store)
    reader = Reader(store.path)
    assert len(reader.frame("scores", reader.parts("scores"))) == 1
    assert reader.refresh() == ()

    opened = []
    import workbench.store.run_reader as module

    real = module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda root, part: opened.append(part) or real(root, part))
    commit(store, unit=OTHER, rows=[row(head=2, detector="sink")])
    (new,) = reader.refresh()
    assert new.label.detector == "sink"
    assert len(reader.frame("scores", reader.parts("scores"))) == 2
    assert opened == [new]


def test_a_reader_notices_replaced_and_removed_parts(store):
    path = commit(store)
    reader = Reader(store.path)
    commit(store, rows=[row(), row(head=2)])
    assert len(reader.refresh()) == 1
    assert len(reader.frame("scores", reader.parts("scores"))) == 2
    path.unlink()
    reader.refresh()
    assert reader.parts() == ()


def test_a_reader_filters_by_what_the_parts_are(store):
    commit(store)
    commit(store, unit=OTHER, rows=[row(detector="sink", probe="text")])
    commit_metric(store)
    reader = Reader(store.path)
    assert [p.label.unit for p in reader.parts("scores", detector="sink")] == [OTHER]
    assert [p.label.unit for p in reader.parts("scores", probe="repeats")] == [UNIT]
    assert len(reader.parts()) == 3


def test_reading_a_run_that_is_being_swept_and_written_ignores_temporaries(store):
    commit(store)
    (store.path / ".tmp" / f"{OTHER}.elsewhere.1.abcd").write_bytes(b"half")
    assert len(store.scores()) == 1
    assert store.check() == []


def test_a_newer_run_names_the_version_to_install(store):
    text = json.dumps({"schema": 3, "versions": {"workbench": "9.1"}})
    (store.path / "run.json").write_text(text)
    with pytest.raises(StoreTooNew, match=r"attention-workbench==9\.1") as caught:
        Store.open(store.path)
    assert caught.value.exit_code == 4
    with pytest.raises(StoreTooNew):
        Store.create(store.path, job={}, versions={})
    assert (store.path / "run.json").read_text() == text


def test_locks_exclude_and_are_freed(store):
    with store.locked(), pytest.raises(RunLocked, match=f"process {os.getpid()}") as caught, store.locked():
        pass
    assert caught.value.exit_code == 6
    with store.locked():
        pass


def test_a_file_system_without_locks_is_warned_of_and_used(store, monkeypatch):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"), store.locked():
        commit(store)
    assert len(store.scores()) == 1


def test_sweep_takes_the_temporaries_of_the_dead_and_leaves_those_of_the_living(store, monkeypatch):
    monkeypatch.setattr(atomic.socket, "gethostname", lambda: "node.cluster")
    folder = store.path / ".tmp"
    dead = folder / f"{UNIT}.node.cluster.4194305.ab12"
    for path in (
        dead,
        living := folder / f"{UNIT}.node.cluster.{os.getpid()}.ab12",
        elsewhere := folder / f"{UNIT}.other.4194305.ab12",
    ):
        path.write_bytes(b"half")
    assert store.sweep() == [dead]
    assert sorted(folder.iterdir()) == sorted([living, elsewhere])


def test_a_run_needs_no_warning(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        commit(store)
        commit_metric(store, metrics=[])
        store.scores()
        store.metrics()


def test_a_file_in_place_of_the_folder_is_said_not_to_be_one(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreNotWritable, match="not a folder") as caught:
        Store.create(tmp_path / "run", job={}, versions={})
    assert caught.value.exit_code == 5


def test_a_cube_has_the_scores_of_every_head_and_checkpoint_and_takes_in_new_parts(store):
    def origin_at(step):
        return replace(ORIGIN, ckpt=f"step{step}", step=step, step_total=step, weights=f"{step:032x}")

    def scored(**by_head):
        heads = [row(layer=int(k[1]), head=int(k[3]), score=v) for k, v in by_head.items()]
        return [*heads, row(layer=9, head=None)]

    commit(store, UNIT, scored(L0H1=0.5, L1H0=0.25), origin_at(2))
    commit(store, OTHER, scored(L0H1=0.75, L2H3=0.125), origin_at(10))
    run = open_run(store.path)
    cube = run.cube("induction")
    assert (cube.ckpts, cube.scores.dtype) == (("step2", "step10"), "float32")
    assert list(zip(cube.layers, cube.heads, strict=True)) == [(0, 1), (1, 0), (2, 3)]
    assert cube.head(0, 1).to_dict("list") == {"ckpt": ["step2", "step10"], "step": [2, 10], "score": [0.5, 0.75]}
    assert cube.checkpoint("step10").dropna().to_dict("list") == {
        "layer": [0, 2],
        "head": [1, 3],
        "score": [0.75, 0.125],
    }
    assert cube.top(2, ckpt="step2").score.tolist() == [0.5, 0.25]
    assert cube.top(9, ckpt=None)[["step", "layer", "head"]].to_numpy().tolist() == [
        [10, 0, 1],
        [2, 0, 1],
        [2, 1, 0],
        [10, 2, 3],
    ]
    assert run.cube("induction") is cube
    commit(store, "2" * 32, scored(L3H3=1.0), origin_at(20))
    run.refresh()
    assert run.cube("induction").ckpts == ("step2", "step10", "step20")
    for wrong in (lambda: cube.head(5, 5), lambda: cube.checkpoint("step3"), lambda: run.cube("sink")):
        with pytest.raises(WorkbenchError, match=r"has no scores|is not in"):
            wrong()


def test_the_parts_are_read_by_pandas_and_where_they_are_installed_by_duckdb_and_polars(store):
    commit(store, UNIT, [row(score=0.5), row(head=2, score=0.25)])
    commit(store, OTHER, [row(score=0.75)], replace(ORIGIN, ckpt="step200", step=200, step_total=200))
    parts = f"{store.path}/scores/*/*.parquet"
    one_head = [(100, 0.5), (200, 0.75)]
    frame = pd.read_parquet(store.path / "scores", filters=[("layer", "==", 0), ("head", "==", 1)])
    assert sorted(zip(frame["step"], frame["score"], strict=True)) == one_head
    if find_spec("duckdb"):
        import duckdb

        query = f"select step, score from read_parquet('{parts}') where layer = 0 and head = 1 order by step"
        assert duckdb.sql(query).fetchall() == one_head
    if find_spec("polars"):
        import polars as pl

        selected = pl.scan_parquet(parts).filter((pl.col("layer") == 0) & (pl.col("head") == 1)).sort("step")
        assert selected.select("step", "score").collect().rows() == one_head
