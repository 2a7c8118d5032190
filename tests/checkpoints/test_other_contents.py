"""What is no checkpoint to be read is called what it is, with the next step, wherever it is handed in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoints.folders import checkpoint, safetensors
from workbench.checkpoints import checkpoint_format, find_checkpoints, fingerprint, inspect_weights
from workbench.checkpoints.other_contents import why_no_weights
from workbench.heads import BadCheckpoint, NoCheckpoints

KEPT_RUN = Path(__file__).parent.parent / "kept" / "run"


def adapter(folder, **settings):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    (folder / "adapter_model.safetensors").write_bytes(safetensors({"w": ("F32", [1], b"\0" * 4)}))
    (folder / "training_args.bin").write_bytes(b"")
    return folder


def files(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_an_adapter_is_named_with_its_model_and_how_to_merge_it(tmp_path):
    path = adapter(tmp_path / "lora", base_model_name_or_path="org/name")
    assert checkpoint_format(path) == "adapter"
    message = (
        r"is an adapter \(LORA of org/name\), not a model\. Merge it .*merge_and_unload\(\)\.save_pretrained\(OUT\)"
    )
    for refused in (inspect_weights, fingerprint):
        with pytest.raises(BadCheckpoint, match=message):
            refused(path)
    with pytest.raises(NoCheckpoints, match=message):
        find_checkpoints(path)
    with pytest.raises(BadCheckpoint, match=r"adapter_model\.safetensors: is a file of an adapter"):
        inspect_weights(path / "adapter_model.safetensors")


@pytest.mark.parametrize("content", ["", "[]", '{"peft_type": 3, "base_model_name_or_path": null}'])
def test_a_broken_description_of_an_adapter_is_still_one(tmp_path, content):
    path = adapter(tmp_path / "lora")
    (path / "adapter_config.json").write_text(content)
    assert "is an adapter" in why_no_weights(path)


def test_an_adapter_beside_the_weights_of_its_model_is_refused(tmp_path):
    path = checkpoint(tmp_path / "both")
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"")
    assert checkpoint_format(path) == "safetensors"
    with pytest.raises(BadCheckpoint, match="is an adapter beside the model's weights"):
        inspect_weights(path)


def test_a_series_of_adapters_is_refused_at_once_and_one_among_models_is_listed(tmp_path):
    for step in (100, 200):
        adapter(tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(NoCheckpoints, match=r"is an adapter .*\(all 2 checkpoints there are such\)"):
        find_checkpoints(tmp_path / "run")
    checkpoint(tmp_path / "run" / "checkpoint-300")
    formats = {c.name: c.format for c in find_checkpoints(tmp_path / "run").checkpoints}
    assert formats == {"checkpoint-100": "adapter", "checkpoint-200": "adapter", "checkpoint-300": "safetensors"}


def test_gguf_is_named_as_what_it_is_where_safetensors_are_expected(tmp_path):
    path = files(tmp_path / "gguf", "gemma.gguf", "config.json")
    for what in (path, path / "gemma.gguf"):
        with pytest.raises(BadCheckpoint, match="is a GGUF model and has no safetensors; open_model"):
            inspect_weights(what)


def test_gguf_beside_safetensors_is_passed_over(tmp_path):
    path = checkpoint(tmp_path / "both")
    (path / "model-q4.gguf").write_bytes(b"")
    assert inspect_weights(path).files == (path / "model.safetensors",)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_file_of_a_checkpoint_leads_to_its_folder(tmp_path, name):
    path = checkpoint(tmp_path / "step1")
    (path / "model.safetensors.index.json").write_text("{}")
    for refused, error in ((inspect_weights, BadCheckpoint), (find_checkpoints, NoCheckpoints)):
        with pytest.raises(error, match=rf"is a file of a checkpoint, expected its folder; pass {path}"):
            refused(path / name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loose.safetensors", "put it as model.safetensors into a folder with its config.json"),
        ("loose.bin", "put it into a folder with its config.json and pass --allow-pickle"),
        ("job.toml", "a job file is run with `workbench scan"),
        ("model.onnx", "of ONNX, which is not read"),
        ("notes.txt", "no weights"),
    ],
)
def test_other_files_are_named(tmp_path, name, expected):
    path = files(tmp_path / "folder", name) / name
    with pytest.raises(BadCheckpoint) as refused:
        inspect_weights(path)
    assert "is a file" in str(refused.value)
    assert expected in str(refused.value)


def test_weights_that_are_a_link_to_nothing_are_no_pickle(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    assert "model.safetensors: is named and not there: a download broke off" in why_no_weights(tmp_path)


def test_a_pickle_in_its_checkpoint_leads_to_the_folder(tmp_path):
    path = files(tmp_path / "step1", "pytorch_model.bin", "config.json")
    assert f"pass {path} and --allow-pickle" in why_no_weights(path / "pytorch_model.bin")


def test_a_run_is_named_with_its_checkpoints(tmp_path):
    run = Path(shutil.copytree(KEPT_RUN, tmp_path / "runs" / "full"))
    source = json.loads((run / "run.json").read_text())["job"]["checkpoints"]
    message = rf"is a run that `workbench scan` wrote, without weights; open it with wb\.open_run .*{source}"
    with pytest.raises(NoCheckpoints, match=message):
        find_checkpoints(run)
    with pytest.raises(BadCheckpoint, match=message):
        inspect_weights(run)
    checkpoint(tmp_path / "runs" / "step1")
    assert find_checkpoints(tmp_path / "runs").ignored["full"].startswith("a run that `workbench scan` wrote")


def test_another_programs_run_is_none_of_ours(tmp_path):
    path = files(tmp_path / "other")
    (path / "run.json").write_text('{"id": 3}')
    assert "holds no weights" in why_no_weights(path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tokenizer.json", "vocab.json"], "there is a tokenizer alone"),
        (["config.json", "tokenizer.json"], "there is a config.json and a tokenizer alone"),
        (["tf_model.h5", "config.json"], "tf_model.h5 is of TensorFlow, which is not read"),
        ([], "Put the weights there, or check the path"),
    ],
)
def test_a_folder_without_weights_is_told_by_what_there_is(tmp_path, names, expected):
    message = why_no_weights(files(tmp_path / "folder", *names))
    assert "holds no weights" in message
    assert expected in message


def test_a_series_given_as_a_checkpoint_leads_to_its_checkpoints(tmp_path):
    for step in range(5):
        checkpoint(tmp_path / "series" / f"step{step}")
    with pytest.raises(BadCheckpoint, match=r"pass one of them \(step0, step1, step2 and 2 more\)"):
        inspect_weights(tmp_path / "series")
