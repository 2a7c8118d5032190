"""The units of a job: settings that change numbers make other units, other words for the same setting do not."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import torch

from tests.series import write_series
from workbench import open_run, probes, scan
from workbench.detectors import find_detectors
from workbench.hooks import open_model
from workbench.loading.series_words import SeriesWords
from workbench.scanning import look_ahead, machine
from workbench.scanning.job import Job
from workbench.scanning.machine import dtype_in_words
from workbench.scanning.units import Units
from workbench.store import Origin, Settings, Store

PROBE = "repeats:n=12,n_sequences=3"
FAST = {"detectors": ["induction", "far_mass", "copying"], "probes": [PROBE], "maps": False}
ORIGIN = Origin("run", "checkpoint-2", "ab" * 16, "cd" * 16, None, None, 2, 2, None)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("series"), "llama", steps=(0, 2))


@pytest.fixture(scope="module")
def first(series, tmp_path_factory):
    return scan(series, tmp_path_factory.mktemp("runs") / "run", **FAST)


@pytest.fixture(scope="module")
def probe(series):
    return probes.build(open_model(series / "checkpoint-2"), PROBE)


def keys(probe, **settings):
    """The unit of each detector on the probe, by name."""
    job = Job(checkpoints="series", out="run", **settings)
    units = Units(job, [], find_detectors(FAST["detectors"]), SeriesWords((), None, "", ()))
    return {unit.name: unit.key for on in (probe, None) for unit in units.of_probe(ORIGIN, on)}


@pytest.mark.parametrize(
    ("settings", "touched"),
    [
        ({"rows": 8}, {"induction", "far_mass", "metrics"}),
        ({"seed": 1}, {"induction", "far_mass", "metrics"}),
        ({"dtype": "bfloat16"}, {"induction", "far_mass", "metrics", "copying"}),
        ({"far_window": 4}, {"far_mass"}),
        ({"far_sink": 1}, {"far_mass"}),
        ({"dtype": "float32"}, set()),
        ({"dtype": "float"}, set()),
        ({"dtype": "float32", "device": "cuda"}, set()),
        ({"device": "cuda"}, {"induction", "far_mass", "metrics", "copying"}),
        ({"device": "cpu", "engine": "local", "workers": 2, "verify": True}, set()),
    ],
)
def test_a_setting_makes_other_units_where_it_changes_numbers(probe, settings, touched, monkeypatch):
    monkeypatch.setattr(machine, "named_device", torch.device)  # a machine that has them all
    first, other = keys(probe), keys(probe, **settings)
    assert {name for name in first if first[name] != other[name]} == touched


def test_where_nobody_chooses_a_gpu_takes_the_checkpoints_own_dtype_and_says_so(monkeypatch):
    assert dtype_in_words(Job(checkpoints="series", out="run", device="cpu")) == "float32"
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    assert dtype_in_words(Job(checkpoints="series", out="run")) == "own"
    assert dtype_in_words(Job(checkpoints="series", out="run", device="mps")) == "own"
    assert dtype_in_words(Job(checkpoints="series", out="run", dtype="half")) == "float16"


@pytest.mark.parametrize(
    "settings", [{"rows": 4}, {"dtype": "bfloat16"}, {"seed": 5}, {"far_window": 4, "far_sink": 1}]
)
def test_a_second_scan_is_read_as_a_run_of_its_own_and_the_first_again_after_it(series, first, tmp_path, settings):
    out = shutil.copytree(first.path, tmp_path / "run")
    before = first.scores().drop(columns="run")
    second = scan(series, out, **FAST, **settings)
    fresh = scan(series, tmp_path / "fresh", **FAST, **settings)
    pd.testing.assert_frame_equal(second.scores().drop(columns="run"), fresh.scores().drop(columns="run"))
    pd.testing.assert_frame_equal(second.metrics(), fresh.metrics())
    pd.testing.assert_frame_equal(second.top(), fresh.top())
    assert second.status() == fresh.status()
    parts = {part.path for part in Store.open(out).parts()}
    again = scan(series, out, **FAST)
    assert {part.path for part in Store.open(out).parts()} == parts
    pd.testing.assert_frame_equal(again.scores().drop(columns="run"), before)
    (name, value), *_ = settings.items()
    chosen = open_run(out, settings={name: value}).scores(detector="far_mass")
    pd.testing.assert_frame_equal(chosen.drop(columns="run"), fresh.scores(detector="far_mass").drop(columns="run"))


def test_maps_are_those_of_the_newest_request(series, tmp_path):
    options = {"detectors": ["sink"], "probes": [PROBE]}
    out = tmp_path / "run"
    first = scan(series, out, **options)
    exact = first.map(0, 0).values
    rounded = scan(series, out, **options, dtype="bfloat16").map(0, 0).values
    assert (exact != rounded).any()
    assert (rounded == scan(series, tmp_path / "fresh", **options, dtype="bfloat16").map(0, 0).values).all()
    assert len(open_run(out).maps.table()) == 2
    assert (open_run(out, settings={"dtype": "float32"}).map(0, 0).values == exact).all()
    assert (scan(series, out, **options).map(0, 0).values == exact).all()


def test_an_outlook_counts_what_the_settings_leave_to_do(series, first):
    job = Job(checkpoints=series, out=first.path, detectors=FAST["detectors"], probes=(PROBE,), maps=False)
    assert look_ahead(job).units_to_do == 0
    assert look_ahead(job.model_copy(update={"rows": 4})).units_to_do == 2 * 3  # copying reads no rows
    assert look_ahead(job.model_copy(update={"dtype": "bfloat16"})).units_to_do == 2 * 4


def test_shards_with_other_settings_add_up_to_the_newest_request(series, first, tmp_path):
    out = shutil.copytree(first.path, tmp_path / "run")
    half = scan(series, out, **FAST, rows=4, shard="0/2")
    assert half.scores(detector="induction")["step"].unique().tolist() == [0]
    assert (half.status().planned, half.status().done) == (8, 5)  # of copying both
    whole = scan(series, out, **FAST, rows=4, shard="1/2")
    assert whole.scores(detector="induction")["step"].unique().tolist() == [0, 2]
    assert whole.status().is_complete


def test_settings_are_read_from_a_units_key_and_written_in_words():
    settings = Settings.of({"dtype": None, "rows": None, "seed": 0, "far": [None, 2]})
    assert str(settings) == "dtype float32, rows all, seed 0, far_window own, far_sink 2"
    assert Settings.from_json(settings.as_dict()) == settings
    assert str(Settings.of({"dtype": "bfloat16"})) == "dtype bfloat16"
    assert str(Settings.of({})) == ""
