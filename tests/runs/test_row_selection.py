"""Runs as the app reads them: the newest scores alone, as arrays with the numbers of the tables."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.synthetic_run import DEMO, write_run
from workbench import figures
from workbench.app.state.live_runs import live_runs
from workbench.emergence import onsets
from workbench.figures.trajectories import read_trajectories
from workbench.heads import Head
from workbench.runs import open_run
from workbench.store import Store
from workbench.store.part_files import part_files, read_label

FEW = replace(DEMO["hybrid"], steps=(0, 8, 64, 256, 1024), detectors=("induction", "retrieval", "learned_sink"))
ONSET = ["layer", "head", "kind", "onset_step", "onset_tokens", "previous_step", "at_first"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "hybrid", FEW)


@pytest.fixture
def live(folder):
    return live_runs([folder])["hybrid"]


def again(folder, *, digest, score):
    """Score one checkpoint later, on a probe with another digest."""
    store = Store.open(folder)
    path = next(p for p in part_files(folder, "scores") if read_label(folder, p).label.detector == "induction")
    label = read_label(folder, path).label
    rows = [
        replace(row, score=score) for row in rows_of(open_run(folder).scores(detector="induction", ckpt=label.ckpt))
    ]
    written = store.commit_scores(label.origin, digest * 16, rows, probe_digest=digest * 16, seq_len=label.seq_len)
    late = max(p.stat().st_mtime_ns for p in part_files(folder, "scores")) + 10**9
    os.utime(written, ns=(late, late))
    return label.ckpt


def rows_of(table):
    from workbench.heads import Row

    names = ["layer", "head", "kv_head", "kind", "window", "detector", "version", "probe", "score", "half_a", "half_b"]
    names += ["sd_seq", "n_seq", "n", "ci_lo", "ci_hi"]
    plain = table.astype(object).where(table.notna(), None)
    return [Row(**{name: row[name] for name in names}) for row in plain.to_dict("records")]


def test_where_a_probe_has_changed_only_its_newest_scores_count(tmp_path):
    folder = write_run(tmp_path / "run", FEW)
    before = open_run(folder).scores(detector="induction")
    ckpt = again(folder, digest="ab", score=0.75)
    both = open_run(folder, select="all").scores(detector="induction", ckpt=ckpt)
    shown = live_runs([folder])["run"].scores(detector="induction", ckpt=ckpt)
    assert len(both) == 2 * len(shown)
    assert set(shown["score"]) == {0.75}
    assert len(live_runs([folder])["run"].scores(detector="retrieval")) == len(before)


def test_arrays_are_those_of_the_tables(folder, live):
    for detector in live.detectors:
        probe = live.probes_of(detector)[0]
        expected, actual = read_trajectories(open_run(folder), detector, probe), live.trajectories(detector, probe)
        assert actual.heads == expected.heads
        assert actual.layers == expected.layers
        assert actual.checkpoints == expected.checkpoints
        for name in ("score", "ci_lo", "ci_hi", "n"):
            np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), atol=1e-6)
        assert actual.score.dtype == np.float32


def test_rows_that_are_not_the_same_heads_throughout_are_read_all_the_same(tmp_path):
    folder = write_run(tmp_path / "run", FEW)
    path = next(p for p in part_files(folder, "scores") if read_label(folder, p).label.detector == "induction")
    label = read_label(folder, path).label
    rows = rows_of(open_run(folder).scores(detector="induction", ckpt=label.ckpt))[::-1]
    Store.open(folder).commit_scores(
        label.origin, label.unit, rows, probe_digest=label.probe_digest, seq_len=label.seq_len
    )
    expected = read_trajectories(open_run(folder), "induction", "repeats")
    actual = open_run(folder, select="newest").trajectories("induction", "repeats")
    np.testing.assert_allclose(actual.score, expected.score, atol=1e-6)


@pytest.mark.parametrize("detector", FEW.detectors)
def test_onsets_are_those_of_the_run(folder, live, detector):
    probe = live.probes_of(detector)[0]
    tables = [run.onsets(detector, probe=probe).loc[:, ONSET] for run in (open_run(folder), live)]
    expected, actual = (table.astype(object).where(table.notna(), None).to_numpy().tolist() for table in tables)
    assert actual == expected


@pytest.mark.parametrize("detector", FEW.detectors)
def test_onsets_from_arrays_are_those_from_the_rows(folder, detector):
    run = open_run(folder)
    pd.testing.assert_frame_equal(run.onsets(detector), onsets(run.scores(detector=detector)), check_exact=True)


def test_a_heads_history_is_that_of_the_run(folder, live):
    expected, actual = (figures.history(run, Head(1, 2)) for run in (open_run(folder), live))
    assert [line.name for line in actual.data] == [line.name for line in expected.data]
    for line, reference in zip(actual.data, expected.data, strict=True):
        np.testing.assert_allclose(np.array(line.y, float), np.array(reference.y, float), atol=1e-6)
        assert line.x.tolist() == reference.x.tolist()


def test_what_is_kept_stays_within_its_bound(folder, monkeypatch):
    monkeypatch.setattr("workbench.app.state.live_runs._CACHE_BYTES", 20_000)
    live = live_runs([folder])["hybrid"]
    for detector in live.detectors:
        for step in FEW.steps:
            live.scores(detector=detector, step=step)
            assert 0 < live._cache.size <= 20_000
