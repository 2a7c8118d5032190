"""A scan and checkpoints that change: overwritten, put back, or overwritten while they are scanned."""

from __future__ import annotations

import os
import shutil

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from tests.series import write_series
from workbench import open_run, scan
from workbench.scanning import worker
from workbench.store import Store

WITH_MAPS = {"detectors": ["sink"], "probes": ["repeats:n=12,n_sequences=2"]}
FAST = {**WITH_MAPS, "maps": False}
N_UNITS = 3  # a detector, the metrics and the patterns


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("series"), "llama", steps=(0, 2))


@pytest.fixture(scope="module")
def scanned(source, tmp_path_factory):
    return scan(source, tmp_path_factory.mktemp("runs") / "run", **WITH_MAPS).path


@pytest.fixture
def series(source, tmp_path):
    return shutil.copytree(source, tmp_path / "series")


@pytest.fixture
def out(scanned, tmp_path):
    return shutil.copytree(scanned, tmp_path / "run")


def overwrite(folder, factor=1.5):
    """Put other weights into the same file, as long and as old as before."""
    file = folder / "model.safetensors"
    stat = file.stat()
    tensors = {name: factor * t for name, t in load_file(file).items()}
    save_file(tensors, folder / "new", {"format": "pt"})
    file.write_bytes((folder / "new").read_bytes())
    (folder / "new").unlink()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def parts(out):
    store = Store.open(out)
    return {*out.glob("scores/*/*"), *out.glob("metrics/*/*"), *out.glob("maps/*/*")}, store.check()


def fresh_scores(series, out):
    return scan(series, out, **FAST).scores().drop(columns="run")


def test_an_overwritten_checkpoint_is_scanned_and_shown_as_in_a_run_of_its_own(series, out, tmp_path):
    first, _ = parts(out)
    scan(series, out, **WITH_MAPS)  # the files of the copy are in the cache of digests now
    old_map = open_run(out).map(0, 0, step=2).values
    overwrite(series / "checkpoint-2")
    run = scan(series, out, **WITH_MAPS)
    assert len(parts(out)[0] - first) == N_UNITS
    fresh = scan(series, tmp_path / "fresh", **WITH_MAPS)
    pd.testing.assert_frame_equal(run.scores().drop(columns="run"), fresh.scores().drop(columns="run"))
    pd.testing.assert_frame_equal(run.metrics(), fresh.metrics())
    assert (run.map(0, 0, step=2).values == fresh.map(0, 0, step=2).values).all()
    assert (run.map(0, 0, step=2).values != old_map).any()
    assert len(run.maps.table()) == 2
    assert run.status() == fresh.status()
    assert "other weights now" in run.left_out[0]


def test_a_checkpoint_that_is_put_back_is_shown_again_without_computing(source, series, out):
    before = open_run(out).scores()
    overwrite(series / "checkpoint-2")
    scan(series, out, **FAST)
    every, _ = parts(out)
    shutil.copy(source / "checkpoint-2" / "model.safetensors", series / "checkpoint-2" / "model.safetensors")
    run = scan(series, out, **FAST)
    assert parts(out) == (every, [])
    pd.testing.assert_frame_equal(run.scores(), before)


def test_a_checkpoint_overwritten_by_a_broken_one_shows_no_scores_of_the_earlier(series, out):
    file = series / "checkpoint-2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    run = scan(series, out, **FAST)
    assert run.failures()["ckpt"].tolist() == ["checkpoint-2"]
    assert sorted(run.scores()["step"].unique()) == [0]
    assert "not scored yet" in run.left_out[0]


def test_weights_that_are_overwritten_while_they_are_scanned_leave_no_scores(series, tmp_path, monkeypatch):
    real = worker.measure

    def measuring(model, *args, **kwargs):
        if model.name == "checkpoint-2":
            file = series / "checkpoint-2" / "model.safetensors"
            overwrite(series / "checkpoint-2")
            os.utime(file)
        return real(model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "measure", measuring)
        run = scan(series, tmp_path / "run", **FAST)
    assert run.failures()["unit"].isna().tolist() == [True]
    assert "overwritten while it was scanned" in run.failures()["message"].item()
    assert sorted(run.scores()["step"].unique()) == [0]
    again = scan(series, tmp_path / "run", **FAST)
    assert again.failures().empty
    pd.testing.assert_frame_equal(again.scores().drop(columns="run"), fresh_scores(series, tmp_path / "fresh"))


def test_weights_that_are_deleted_while_they_are_scanned_are_scored(series, tmp_path, monkeypatch):
    real = worker.measure

    def measuring(model, *args, **kwargs):
        if model.name == "checkpoint-2":
            (series / "checkpoint-2" / "model.safetensors").unlink(missing_ok=True)
        return real(model, *args, **kwargs)

    monkeypatch.setattr(worker, "measure", measuring)
    run = scan(series, tmp_path / "run", **FAST)
    assert sorted(run.scores()["step"].unique()) == [0, 2]


def test_failures_of_overwritten_weights_are_forgotten(series, tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError("the kernel fell over")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "measure", failing)
        assert len(scan(series, tmp_path / "run", **FAST).failures()) >= 2
    for step in (0, 2):
        overwrite(series / f"checkpoint-{step}")
    assert scan(series, tmp_path / "run", **FAST).failures().empty
