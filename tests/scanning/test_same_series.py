"""A run holds one training: the same series moved, grown or resumed goes on, another one is refused untouched."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.series import write_series
from workbench import open_run, scan
from workbench.cli.main import app
from workbench.heads import WorkbenchError
from workbench.scanning import look_ahead
from workbench.scanning.job import Job
from workbench.store import Store

FAST = {"detectors": ["sink"], "probes": ["repeats:n=12,n_sequences=2"], "maps": False}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("first") / "series", steps=(0, 2))


@pytest.fixture(scope="module")
def scanned(series, tmp_path_factory):
    return scan(series, tmp_path_factory.mktemp("runs") / "run", **FAST)


@pytest.fixture
def out(scanned, tmp_path):
    return shutil.copytree(scanned.path, tmp_path / "run")


def contents(folder):
    """Every file but the locks and logs of the last try."""
    files = {path for path in folder.rglob("*") if path.is_file() and path.parent.name not in ("log", ".tmp")}
    return {path: path.read_bytes() for path in files if path.name not in ("run.lock", "fingerprints.json")}


def other_seed(series, target, steps=(0, 2)):
    """A series of the same config and names with weights of its own."""
    for step in steps:
        folder = shutil.copytree(series / f"checkpoint-{step}", target / f"checkpoint-{step}")
        tensors = load_file(folder / "model.safetensors")
        save_file({name: -t for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return target


def test_another_model_is_refused_before_anything_is_computed_or_written(series, out, tmp_path):
    other = write_series(tmp_path / "other", "llama", steps=(5,))
    before = contents(out)
    with pytest.raises(WorkbenchError) as refused:
        scan(other, out, **FAST)
    for words in (str(other), str(series), str(out), "model_type", "another --out"):
        assert words in str(refused.value)
    assert "--same-series" not in str(refused.value)
    with pytest.raises(WorkbenchError, match="another series"):
        scan(other, out, **FAST, same_series=True, shard="0/1")
    with pytest.raises(WorkbenchError, match="another series"):
        look_ahead(Job(checkpoints=other, out=out, probes=("repeats:n=12,n_sequences=2",)))
    assert contents(out) == before


def test_the_command_line_refuses_another_model_without_a_traceback(out, tmp_path):
    other = write_series(tmp_path / "other", "llama", steps=(5,))
    ended = CliRunner().invoke(app, ["scan", str(other), "--out", str(out)])
    assert ended.exit_code != 0
    assert isinstance(ended.exception, WorkbenchError | SystemExit)


def test_the_same_model_trained_from_another_seed_is_refused_unless_said_to_be_the_same(series, out, tmp_path):
    other = other_seed(series, tmp_path / "seed2")
    before = contents(out)
    with pytest.raises(WorkbenchError, match=r"no checkpoint has the weights of one in the run.*--same-series"):
        scan(other, out, **FAST)
    assert contents(out) == before
    run = scan(other, out, **FAST, same_series=True)
    assert len(run.left_out) == 1
    assert run.scores(detector="sink").groupby(["step", "layer", "head"]).size().eq(1).all()


def test_another_model_in_the_directory_of_the_run_is_refused_too(series, scanned, tmp_path):
    copy = shutil.copytree(series, tmp_path / "series")
    out = scan(copy, tmp_path / "run", **FAST).path
    shutil.rmtree(copy)
    write_series(copy, "llama", steps=(0, 2))
    with pytest.raises(WorkbenchError, match="model_type"):
        scan(copy, out, **FAST)


def set_vocabulary(series, size):
    """Resize the vocabulary of every checkpoint, as its config and its weights say."""
    for folder in series.glob("checkpoint-*"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
        tensors = load_file(folder / "model.safetensors")
        old = config["vocab_size"]
        resized = {n: torch.randn(size, *t.shape[1:]) if t.shape[:1] == (old,) else t for n, t in tensors.items()}
        save_file(resized, folder / "model.safetensors", {"format": "pt"})


def test_a_model_of_another_vocabulary_in_the_directory_of_the_run_is_refused_too(series, tmp_path):
    copy = shutil.copytree(series, tmp_path / "series")
    out = scan(copy, tmp_path / "run", **FAST).path
    set_vocabulary(copy, 40)
    with pytest.raises(WorkbenchError, match=r"vocab_size 40, and the run has \d+; no checkpoint has the weights"):
        scan(copy, out, **FAST)


def test_a_vocabulary_that_grew_with_the_series_goes_on(series, tmp_path):
    copy = shutil.copytree(series, tmp_path / "series")
    out = scan(copy, tmp_path / "run", **FAST).path
    later = other_seed(series, tmp_path / "later", steps=(2,))
    size = json.loads((later / "checkpoint-2" / "config.json").read_text())["vocab_size"]
    set_vocabulary(later, size + 1)
    (later / "checkpoint-2").rename(copy / "checkpoint-64")
    run = scan(copy, out, **FAST)
    assert sorted(run.scores(detector="sink")["step"].unique()) == [0, 2, 64]


def grown(series, target):
    shutil.copytree(series, target)
    shutil.copytree(series / "checkpoint-2", target / "checkpoint-32")
    return target


def moved(series, target):
    return shutil.copytree(series, target)


def last_and_next(series, target):
    """What a trainer keeps that deletes all but its last two."""
    shutil.copytree(series / "checkpoint-2", target / "checkpoint-2")
    shutil.copytree(series / "checkpoint-0", target / "checkpoint-64")
    return target


def one_checkpoint(series, target):
    return shutil.copytree(series / "checkpoint-2", target / "checkpoint-2")


@pytest.mark.parametrize("change", [moved, grown, last_and_next, one_checkpoint])
def test_the_same_series_moved_or_grown_goes_on(series, out, tmp_path, change):
    directory = change(series, tmp_path / "elsewhere")
    before = {part.path.name for part in Store.open(out).parts()}
    run = scan(directory, out, **FAST)
    after = {part.path.name for part in Store.open(out).parts()}
    assert before <= after
    assert len(after - before) == {"grown": 2, "last_and_next": 2}.get(change.__name__, 0)
    assert run.left_out == ()


def test_a_directory_whose_old_checkpoints_are_all_gone_goes_on(series, tmp_path):
    copy = shutil.copytree(series, tmp_path / "series")
    out = scan(copy, tmp_path / "run", **FAST).path
    for folder in copy.iterdir():
        shutil.rmtree(folder)
    other_seed(series, tmp_path / "later", steps=(2,))
    (tmp_path / "later" / "checkpoint-2").rename(copy / "checkpoint-64")
    run = scan(copy, out, **FAST)
    assert sorted(run.scores(detector="sink")["step"].unique()) == [0, 2, 64]


def test_shards_of_the_same_series_go_on(series, out):
    for shard in ("0/2", "1/2"):
        assert scan(series, out, **FAST, shard=shard, join=True).status().is_complete


def test_a_run_without_scores_takes_any_series(series, tmp_path):
    broken = write_series(tmp_path / "broken", "llama", steps=(0,))
    (broken / "checkpoint-0" / "model.safetensors").write_bytes(b"nothing")
    out = tmp_path / "run"
    assert scan(broken, out, **FAST).scores().empty
    assert scan(series, out, **FAST).status().checkpoints_failed == 0


def test_a_run_that_kept_no_shapes_refuses_a_model_without_its_layers(scanned, out, tmp_path):
    (out / "architectures.json").unlink()
    (out / "checkpoints.json").write_text("[]")
    last = int(scanned.scores()["layer"].max())
    other = write_series(tmp_path / "other", "llama", steps=(5,))
    config = other / "checkpoint-5" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(WorkbenchError, match=f"1 layers, and the run has scores of layer {last}"):
        scan(other, out, **FAST)


def test_a_setting_that_a_config_leaves_to_the_default_contradicts_nothing(series, out):
    shapes = json.loads((out / "architectures.json").read_text())
    (out / "architectures.json").write_text(json.dumps([{**shape, "n_kv_heads": "null"} for shape in shapes]))
    assert scan(series, out, **FAST).status().is_complete
    assert len(open_run(out).scores()) == len(open_run(out, select="all").scores())
