"""A run read back: filters with helpful refusals, best heads, how far a scan is, what is still coming in."""

from __future__ import annotations

import sys
from dataclasses import replace

import pandas as pd
import pytest

from tests.children import run_child
from tests.preloaded import PreloadedReading
from tests.synthetic_run import DEMO, DISTANCES, STEPS, Shape, write_run
from workbench.heads import Head, Row, WorkbenchError
from workbench.runs import Run, open_run
from workbench.store import Failure, Origin, Store, canonical_digest, read_beside

FEW = (0, 8, 64, 256, 1024, 3072)
SMALL = replace(DEMO["hybrid"], steps=FEW, detectors=("induction", "retrieval", "learned_sink"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "hybrid", SMALL)


@pytest.fixture
def run(path):
    return open_run(path)


def test_a_run_is_named_after_its_folder(run, path):
    assert run.name == "hybrid"
    assert run.path == path
    assert run.detectors == ("induction", "learned_sink", "retrieval")
    assert run.probes == ("copy_needle", "repeats", "text")


def test_scores_come_with_step_and_tokens_in_series_order(run):
    scores = run.scores(detector="induction")
    assert list(scores["step"].unique()) == list(FEW)
    assert (scores["tokens"] == scores["step"] * 8192).all()
    assert len(scores) == 6 * 3 * 4


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ({"layer": 1}, 3 * 6 * 4),
        ({"head": Head(1, 2)}, 3 * 6),
        ({"head": 2}, 3 * 6 * 3),
        ({"step": 8}, 3 * 12),
        ({"step": "last"}, 3 * 12),
        ({"kind": "full"}, 3 * 6 * 4),
        ({"probe": "repeats"}, 6 * 12),
        ({"detector": "retrieval", "step": 0, "head": Head(0, 0)}, 1),
    ],
)
def test_filters_narrow_the_rows(run, filters, rows):
    assert len(run.scores(**filters)) == rows


@pytest.mark.parametrize("filters", [{"layer": 1}, {"step": 64}, {"ckpt": "step256"}, {"step": 8, "head": 2}])
def test_columns_read_alone_are_those_of_the_whole_rows(run, filters):
    columns = ["kind", "ckpt", "score", "head"]
    pd.testing.assert_frame_equal(run.scores(**filters, columns=columns), run.scores(**filters).loc[:, columns])
    every = run.scores()
    for name, value in filters.items():
        every = every.loc[every[name] == value]
    pd.testing.assert_frame_equal(run.scores(**filters), every.reset_index(drop=True))


def test_onsets_are_those_of_the_courses(run):
    names = ["layer", "head", "onset_step", "onset_tokens", "previous_step", "at_first"]
    pd.testing.assert_frame_equal(run.onsets("induction").loc[:, names], run.emergence("induction").loc[:, names])


def test_rows_are_kept_up_to_a_bound_and_read_again_beyond_it(path, monkeypatch):
    expected = open_run(path).scores()
    monkeypatch.setattr("workbench.store.run_reader._KEPT_BYTES", 20_000)
    run = open_run(path)
    for _ in range(2):
        pd.testing.assert_frame_equal(run.scores(), expected)
        assert sum(rows.nbytes for rows in run._rows.reader._rows.values()) == run._rows.reader._kept_bytes <= 20_000


def test_last_is_the_last_checkpoint_that_has_such_scores(tmp_path):
    store = Store.open(write_run(tmp_path / "run", SMALL))
    last = [part for part in store.parts() if part.label.detector == "retrieval"][-1]
    last.path.unlink()
    run = open_run(tmp_path / "run")
    assert set(run.scores(detector="induction", step="last")["step"]) == {FEW[5]}
    assert set(run.scores(detector="retrieval", step="last")["step"]) == {FEW[4]}


@pytest.mark.parametrize(
    ("filters", "known"),
    [
        ({"detector": "inductoin"}, "induction, learned_sink, retrieval"),
        ({"probe": "needle"}, "copy_needle, repeats, text"),
        ({"step": 99}, "0, 8, 64"),
        ({"kind": "linear"}, "full, sliding"),
        ({"layer": 7}, "0, 1, 2"),
        ({"stage": "stage2"}, "none yet"),
    ],
)
def test_names_that_are_not_there_are_refused_with_those_that_are(run, filters, known):
    with pytest.raises(WorkbenchError, match=known):
        run.scores(**filters)


def test_metrics_can_be_had_by_distance(run):
    accuracy = run.metrics(metric="copy_accuracy", step="last")
    assert list(accuracy["distance"].dropna()) == list(DISTANCES)
    assert len(run.metrics(metric="copy_accuracy", distance=64)) == 6
    assert set(run.metrics(probe="text")["metric"]) == {"loss_nats"}
    with pytest.raises(WorkbenchError, match="copy_accuracy, loss_nats"):
        run.metrics(metric="loss")


def test_checkpoints_are_the_series_with_what_is_committed(run):
    table = run.checkpoints()
    assert list(table["ckpt"]) == [f"step{step}" for step in FEW]
    assert list(table["parts"]) == [5] * 6
    assert table["tokens"].dtype == pd.Int64Dtype()
    assert not table["failed"].any()


def test_a_series_nobody_wrote_is_read_from_the_scores(tmp_path):
    write_run(tmp_path / "run", SMALL)
    (tmp_path / "run" / "checkpoints.json").unlink()
    run = open_run(tmp_path / "run")
    assert list(run.checkpoints()["step"]) == list(FEW)
    assert list(run.scores(detector="induction")["step"].unique()) == list(FEW)


def test_series_order_is_that_of_the_scan_where_steps_restart(tmp_path):
    store = Store.create(tmp_path / "run", job={}, versions={})
    names = [("pre-100", "pre", 100, 100), ("pre-200", "pre", 200, 200), ("anneal-50", "anneal", 50, 250)]
    store.write_checkpoints(
        [{"name": n, "stage": s, "branch": None, "step": a, "step_total": b, "tokens": None} for n, s, a, b in names]
    )
    for name, stage, step, total in reversed(names):
        origin = Origin("run", name, canonical_digest(name), "c" * 32, stage, None, step, total, None)
        row = Row(0, 0, 0, "full", None, "sink", 1, "text", step / 1000, 0.0, 0.0, 0.0, 8, 64, 0.0, 0.0)
        store.commit_scores(origin, canonical_digest([name]), [row], probe_digest="p", seq_len=64)
    run = open_run(tmp_path / "run")
    assert list(run.scores()["step"]) == [100, 200, 50]
    assert list(run.scores(step="last")["stage"]) == ["anneal"]
    assert list(run.scores(stage="pre")["step"]) == [100, 200]
    assert run.emergence("sink", probe="text").iloc[0].final == 0.05


def test_top_lists_the_best_heads_at_the_last_checkpoint(run):
    best = run.top("induction", n=3)
    last = run.scores(detector="induction", step="last").sort_values("score", ascending=False)
    assert list(best["score"]) == list(last["score"].head(3))
    assert list(best.columns) == [
        *("detector", "layer", "head", "kv_head", "kind", "window", "probe"),
        *("score", "ci_lo", "ci_hi", "n", "n_seq", "onset_step", "onset_tokens"),
    ]
    onsets = run.emergence("induction").set_index(["layer", "head"])["onset_step"]
    first = best.iloc[0]
    assert first.onset_step == onsets[first.layer, first["head"]]


def test_top_of_all_detectors_gives_as_many_of_each_and_skips_heads_without_a_score(run):
    best = run.top(n=4)
    assert best.groupby("detector").size().to_dict() == {"induction": 4, "learned_sink": 4, "retrieval": 4}
    sinks = best[best["detector"] == "learned_sink"]
    assert set(sinks["kind"]) == {"sliding"}
    assert sinks["score"].notna().all()


def test_top_lists_a_head_once_with_its_best_probe(tmp_path):
    store = Store.create(tmp_path / "run", job={}, versions={})
    origin = Origin("run", "step1", "a" * 32, "c" * 32, None, None, 1, 1, None)
    for probe, score in (("repeats", 0.3), ("text", 0.6)):
        row = Row(0, 0, 0, "full", None, "sink", 1, probe, score, 0.0, 0.0, 0.0, 8, 64, 0.0, 0.0)
        store.commit_scores(origin, canonical_digest(probe), [row], probe_digest=probe, seq_len=64)
    run = open_run(tmp_path / "run")
    assert list(run.top("sink")["probe"]) == ["text"]
    assert list(run.top("sink", probe="repeats")["score"]) == [0.3]


def test_layers_say_kind_window_and_heads(run):
    table = run.layers()
    assert list(table["kind"]) == ["sliding", "sliding", "full"]
    assert list(table["n_heads"]) == [4, 4, 4]
    assert list(table["window"].fillna(0)) == [64, 64, 0]


def test_status_counts_parts_on_disk_against_the_plan(tmp_path):
    path = write_run(tmp_path / "run", SMALL, upto=2)
    run, store = open_run(path), Store.open(path)
    status = run.status()
    assert (status.planned, status.done, status.failed) == (30, 10, 0)
    assert (status.checkpoints, status.checkpoints_done) == (6, 2)
    assert not status.is_complete

    store.parts()[0].path.unlink()
    store.fail(Failure("step0", "0" * 32, "oom", "no memory", ""))
    for step in FEW[2:]:
        store.fail(Failure(f"step{step}", None, "bad_checkpoint", "truncated", ""))
    status = run.status()
    assert (status.done, status.failed, status.checkpoints_failed) == (9, 21, 5)
    assert status.is_complete
    assert list(run.failures()["kind"]).count("bad_checkpoint") == 4
    assert list(run.checkpoints()["failed"]) == [True, False, True, True, True, True]


def test_status_counts_only_what_the_present_plan_names(tmp_path):
    path = write_run(tmp_path / "run", SMALL)
    plan = Store.open(path).plan()
    narrow = [unit for unit in plan["units"] if unit["detector"] == "induction"]
    Store.open(path).write_plan({"checkpoints": plan["checkpoints"], "units": narrow})
    status = open_run(path).status()
    assert (status.planned, status.done) == (6, 6)


def test_an_empty_run_has_empty_tables_and_no_errors(tmp_path):
    Store.create(tmp_path / "run", job={}, versions={})
    run = open_run(tmp_path / "run")
    assert run.scores().empty
    assert run.metrics().empty
    assert run.checkpoints().empty
    assert run.failures().empty
    assert run.layers().empty
    assert run.top().empty
    assert run.scores(step="last").empty
    assert run.status().planned == 0
    assert run.detectors == ()
    with pytest.raises(WorkbenchError, match="none yet"):
        run.scores(detector="induction")


def test_refresh_brings_in_what_was_written_since(tmp_path):
    path = write_run(tmp_path / "run", SMALL, upto=3)
    run = open_run(path)
    assert run.scores(step="last")["step"].iloc[0] == FEW[2]
    assert not run.refresh()
    write_run(path, SMALL)
    assert run.scores(step="last")["step"].iloc[0] == FEW[2]
    assert run.refresh()
    assert run.scores(step="last")["step"].iloc[0] == FEW[5]


def test_reading_a_run_imports_no_torch(path):
    code = f"""
import sys
from workbench.runs import Run, open_run
run = open_run({str(path)!r})
run.top(), run.status(), run.metrics()
print(sorted({{"torch", "transformers", "transformer_lens"}} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code]
    ended = run_child(command, start=PreloadedReading, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_scan_without_known_tokens_still_has_onsets_by_step(tmp_path):
    shape = Shape(steps=STEPS, tokens_per_step=None, detectors=("induction",), seed=1)
    run = open_run(write_run(tmp_path / "run", shape))
    best = run.top("induction", n=1).iloc[0]
    assert best.onset_step > 0
    assert best.onset_tokens is pd.NA


GONE = [{"step0", "step8"}, {"step64", "step3072"}, {"step1024"}, {f"step{step}" for step in FEW[:-1]}]


@pytest.mark.parametrize("gone", GONE, ids=["first", "middle and last", "one", "all but the last"])
@pytest.mark.parametrize("cache_bytes", [0, 2**24])
def test_checkpoints_that_are_gone_keep_their_place_in_everything_a_run_says(path, gone, cache_bytes):
    full = open_run(path)
    store = Store.open(path)
    series = store.checkpoints()
    store.write_checkpoints([record for record in series if record["name"] not in gone])
    try:
        run = open_run(path).with_cache(cache_bytes)
        names = [f"step{step}" for step in FEW]
        assert list(dict.fromkeys(run.scores()["ckpt"])) == names
        assert list(dict.fromkeys(run.metrics()["ckpt"])) == names
        assert run.checkpoints()["ckpt"].tolist() == names
        assert set(run.checkpoints().loc[lambda t: t["is_gone"], "ckpt"]) == gone
        assert run.cube("induction").ckpts == tuple(names)
        assert [c.name for c in run.trajectories("induction").checkpoints] == names
        assert set(run.scores(step="last")["ckpt"]) == set(run.metrics(step="last")["ckpt"]) == {"step3072"}
    finally:
        store.write_checkpoints(series)
    for read in (
        lambda r: r.top(),
        lambda r: r.emergence("induction"),
        lambda r: r.onsets("induction"),
        lambda r: r.lock_in("induction"),
        lambda r: r.phase_changes(),
        lambda r: r.layers(),
    ):
        pd.testing.assert_frame_equal(read(run), read(full))


def test_what_a_cache_holds_follows_the_order_of_the_series(path):
    run = open_run(path).with_cache(2**24)
    assert list(dict.fromkeys(run.scores()["ckpt"])) == [f"step{step}" for step in FEW]
    store = Store.open(path)
    series = store.checkpoints()
    store.write_checkpoints(series[::-1])
    try:
        assert list(dict.fromkeys(run.scores()["ckpt"])) == [f"step{step}" for step in FEW[::-1]]
    finally:
        store.write_checkpoints(series)


@pytest.mark.parametrize(
    ("detectors", "why", "is_said"),
    [
        (None, "no layer of the model has a sliding window", True),
        (None, "no layer of the model has a learned sink logit", False),
        (["learned_sink"], "no layer of the model has a learned sink logit", True),
    ],
)
def test_a_detector_without_any_score_is_a_remark_where_its_question_arises(tmp_path, detectors, why, is_said):
    store = Store.create(tmp_path / "run", job={"detectors": detectors}, versions={})
    store.write_checkpoints([{"name": "a", "stage": "", "branch": None, "step": 1, "step_total": 1, "tokens": None}])
    origin = Origin("run", "a", canonical_digest("a"), "c" * 32, "", None, 1, 1, None)
    nan = float("nan")
    for probe in ("repeats", "text"):
        row = Row(0, 0, 0, "full", None, "learned_sink", 1, probe, nan, nan, nan, nan, 0, 0, nan, nan, f"no_rows={why}")
        store.commit_scores(origin, canonical_digest([probe]), [row], probe_digest=probe, seq_len=64)
    scored = Row(0, 0, 0, "full", None, "sink", 2, "text", 0.5, 0.0, 0.0, 0.0, 8, 64, 0.0, 0.0)
    store.commit_scores(origin, canonical_digest(["sink"]), [scored], probe_digest="text", seq_len=64)
    sentence = f"learned_sink has no score on repeats, text (all NaN): {why}"
    assert open_run(tmp_path / "run").remarks == ((sentence,) if is_said else ())
    kept = open_run(tmp_path / "run").with_cache(2**20)
    assert kept.remarks == kept.remarks == ((sentence,) if is_said else ())
    later = replace(row, probe="zeros")
    store.commit_scores(origin, canonical_digest(["zeros"]), [later], probe_digest="zeros", seq_len=64)
    kept.refresh()
    assert kept.remarks == ((sentence.replace("text", "text, zeros"),) if is_said else ())


def test_a_folder_that_is_gone_is_refused_and_not_taken_for_a_run_without_scores(tmp_path):
    path = write_run(tmp_path / "run", replace(SMALL, steps=(0, 8)))
    kept = open_run(path).with_cache(2**20)
    before = kept.scores(detector="induction")
    path.rename(tmp_path / "elsewhere")
    for read in (kept.status, kept.refresh, lambda: kept.scores(detector="retrieval"), kept.description):
        with pytest.raises(WorkbenchError, match=r"is gone: .* put it back"):
            read()
    pd.testing.assert_frame_equal(kept.scores(detector="induction"), before)  # what was read stays
    (tmp_path / "elsewhere").rename(path)
    assert kept.status().done == kept.status().planned
    assert not kept.scores(detector="retrieval").empty


def test_one_heads_onset_and_scores_are_those_among_all(path):
    run = Run(Store.open(path), cache_bytes=2**24)
    for detector in ("induction", "learned_sink"):
        every = run.onsets(detector)
        for head in (Head(0, 1), Head(2, 3)):
            own = run.onsets(detector, head=head)
            there = every.loc[(every["layer"] == head.layer) & (every["head"] == head.head)]
            pd.testing.assert_frame_equal(own.reset_index(drop=True), there.reset_index(drop=True))
            pd.testing.assert_frame_equal(open_run(path).onsets(detector, head=head).reset_index(drop=True), own)
    layer = run.layer_scores(1)
    own = run.layer_scores(1, head=Head(1, 2))
    there = layer.loc[layer["head"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, there)


def test_runs_of_one_start_share_untrained_weights_and_no_trained_ones(tmp_path):
    shape = replace(SMALL, detectors=("induction",))
    runs = [
        open_run(write_run(tmp_path / f"{i}" / "run", replace(shape, steps=steps)))
        for i, steps in enumerate([(0, 8), (0, 64), (8, 256), (None,)])
    ]
    shared = [run.weight_digests("induction", trained=True) for run in runs]
    assert runs[0].weight_digests("induction") & runs[1].weight_digests("induction")
    assert not shared[0] & shared[1]
    assert shared[0] & shared[2]
    assert len(shared[3]) == 1  # a model without a step is a trained one


def test_arrays_hold_each_checkpoints_scores_whatever_heads_the_others_have(tmp_path):
    steps = (8, 64, 256)
    path = write_run(tmp_path / "run", replace(SMALL, steps=steps, detectors=("induction", "learned_sink")))
    run = Run(Store.open(path), cache_bytes=2**24)
    for detector in ("induction", "learned_sink"):
        course, rows = run.trajectories(detector), run.scores(detector=detector)
        for i, head in enumerate(course.heads):
            own = rows.loc[(rows["layer"] == head.layer) & (rows["head"] == head.head)].sort_values("step")
            for name in ("score", "ci_lo", "ci_hi", "n"):
                values = pd.Series(getattr(course, name)[i]).round(12).tolist()
                assert str(values) == str(own[name].round(12).tolist())
    other = write_run(tmp_path / "other", replace(SMALL, steps=(8,), n_heads=2, detectors=("induction",)))
    first, second = (
        read_beside(
            folder, next(part for part in Store.open(folder).parts() if part.label.table == "scores"), ("n",), ("head",)
        )
        for folder in (path, other)
    )
    assert first[1] != second[1]
    assert first[0]["n"].to_pylist()
