"""A part says where its checkpoint stands now: another name, other total steps or tokens need no model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.heads import Metric, Row
from workbench.runs import open_run
from workbench.store import MapArrays, Origin, Store, canonical_digest

WRITTEN = Origin("run", "checkpoint-100", "ab" * 16, "cd" * 16, None, None, 100, 100, None)
UNIT = canonical_digest("a unit")
NOW = {
    "renamed": replace(WRITTEN, ckpt="step100"),
    "tokens known": replace(WRITTEN, tokens=204_800),
    "behind another stage": replace(WRITTEN, step_total=5100, tokens=7),
    "the run's folder renamed": replace(WRITTEN, run="other", ckpt="step100"),
}


def row(head, score):
    return Row(0, head, 0, "full", None, "induction", 1, "repeats", score, 0.4, 0.6, 0.1, 8, 100, 0.3, 0.7, "a;b")


ROWS = [row(0, 0.1), row(1, float("nan")), replace(row(1, 0.5), head=None, kv_head=1)]
METRICS = [Metric("repeats", "copy_accuracy", 64, None, 0.5, 0.4, 0.6, 100, 0.3, 0.7)]


def arrays():
    return MapArrays(
        ids=np.arange(4, dtype=np.int32),
        pieces=("a", "b", "c", "d"),
        layers=({"layer": 0, "kind": "full", "mixer": "softmax", "window": None, "n_heads": 1},),
        layer=np.zeros(1, dtype=np.int64),
        head=np.zeros(1, dtype=np.int64),
        is_signed=np.zeros(1, dtype=bool),
        block=2,
        far=2,
        distances=(1, 2),
        peak=np.full((1, 2, 2), 0.5, dtype=np.float32),
        beyond=np.ones((1, 2), dtype=np.float32),
        sink=np.ones(1, dtype=np.float32),
        links=np.zeros((1, 1, 2), dtype=np.int64),
        link_value=np.ones((1, 1), dtype=np.float32),
    )


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "run", job={}, versions={})
    fields = {"probe_digest": "p" * 32, "seq_len": 8, "detector": "induction", "version": 1}
    store.commit_scores(WRITTEN, UNIT, ROWS, **fields)
    store.commit_metrics(WRITTEN, UNIT, METRICS, **fields)
    store.commit_maps(WRITTEN, UNIT, arrays(), probe="repeats", probe_digest="p" * 32)
    return store


@pytest.mark.parametrize("origin", list(NOW.values()), ids=list(NOW))
def test_a_part_is_filed_under_what_its_checkpoint_is_now(store, origin):
    before = open_run(store.path)
    written = sorted(path.stat().st_mtime_ns for path in store.path.glob("*/s*/*"))
    scores, metrics, peak = before.scores(), before.metrics(), before.map(0, 0).values
    assert store.settle("scores", origin, UNIT)
    assert store.settle("metrics", origin, UNIT)
    assert store.settle_maps(origin, UNIT)
    run = open_run(store.path)
    place = {name: getattr(origin, name) for name in ("ckpt", "step_total", "tokens")}
    for table, earlier in ((run.scores(), scores), (run.metrics(), metrics)):
        stored = table.loc[:, list(place)].astype(object).where(lambda t: t.notna(), None)
        assert stored.drop_duplicates().to_dict("records") == [place]
        pd.testing.assert_frame_equal(table.drop(columns=list(place)), earlier.drop(columns=list(place)))
    file = run.maps.find()
    assert file.label.origin == replace(origin, run="run")
    assert file.pieces == ("a", "b", "c", "d")
    np.testing.assert_array_equal(file.map(0, 0).values, peak)
    later = sorted(path.stat().st_mtime_ns for path in store.path.glob("*/s*/*"))
    assert [now - before for now, before in zip(later, written, strict=True)] == [1, 1, 1]
    assert len(store.parts()) == 2
    assert len(run.maps.files()) == 1
    assert store.check() == []


def test_a_part_that_says_its_checkpoint_already_is_not_written_again(store):
    files = [*store.path.glob("*/s*/*")]
    stamps = [path.stat().st_mtime_ns for path in files]
    assert store.settle("scores", WRITTEN, UNIT)
    assert store.settle_maps(WRITTEN, UNIT)
    assert [path.stat().st_mtime_ns for path in files] == stamps


def test_another_unit_or_other_weights_are_not_done(store):
    for origin, unit in ((WRITTEN, canonical_digest("another")), (replace(WRITTEN, weights="ef" * 16), UNIT)):
        assert not store.settle("scores", origin, unit)
        assert not store.settle_maps(origin, unit)


def test_a_damaged_part_stays_as_it_is_for_check_to_name(store):
    path = next(store.path.glob("scores/s*/*"))
    path.write_bytes(b"damaged")
    assert store.settle("scores", NOW["renamed"], UNIT)
    assert [problem.path for problem in store.check()] == [path]
