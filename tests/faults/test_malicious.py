"""Checkpoints made to harm whoever reads them: nothing in them runs, nothing outside is read, each is reported.

Python's audit events tell of files, processes and connections; the times of last access tell of files that other
languages opened. Pickles are allowed throughout, which is the harder case.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystem

from tests.children import run_child
from tests.families import tiny
from tests.preloaded import Preloaded
from workbench.checkpoints import find_checkpoints, fingerprint
from workbench.checkpoints.digests import same_weights, verify_digests
from workbench.heads import BadCheckpoint
from workbench.loading.pretrained import load_pretrained

OUTSIDE_FILES = ("config.json", "tokenizer.json", "generation_config.json", "model.safetensors", "pytorch_model.bin")


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound checkpoints as `safetensors`, `bin` and `dcp`."""
    from torch.distributed.checkpoint import save

    root = tmp_path_factory.mktemp("sound")
    model = tiny("llama")
    for form in ("safetensors", "bin", "dcp"):
        model.save_pretrained(root / form)
    for form in ("bin", "dcp"):
        (root / form / "model.safetensors").unlink()
    torch.save(model.state_dict(), root / "bin" / "pytorch_model.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its distributed checkpoints
        save({"model": model.state_dict()}, checkpoint_id=str(root / "dcp"), no_dist=True)
    return root


@pytest.fixture
def outside(sound, tmp_path):
    """A folder that no checkpoint may look into, with files worth reading."""
    folder = Path(shutil.copytree(sound / "safetensors", tmp_path / "outside"))
    shutil.copy(sound / "bin" / "pytorch_model.bin", folder)
    for file in sound.glob("dcp/*.distcp"):
        shutil.copy(file, folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "SHA256SUMS").write_text("0" * 64 + "  model.safetensors\n")
    return folder


def link(path, outside):
    path.unlink(missing_ok=True)
    path.symlink_to(outside / path.name)


def payload_bin(path, outside):
    torch.save({"x": Call(os.remove, str(outside / "config.json"))}, path / "pytorch_model.bin")


def payload_index(path, outside):
    (path / ".metadata").write_bytes(pickle.dumps(Call(os.remove, str(outside / "config.json"))))


def method_in_index(path, outside):
    """What a list of allowed modules lets through: a function that is reached by a dotted name."""
    (path / ".metadata").write_bytes(pickle.dumps(Call(FileSystem.rm_file, None, outside / "config.json"), protocol=5))


def edited_index(path, change):
    index = pickle.loads((path / ".metadata").read_bytes())
    change(index)
    (path / ".metadata").write_bytes(pickle.dumps(index))


def traversal_in_index(path, outside):
    def change(index):
        for stored in index.storage_data.values():
            stored.relative_path = f"../../outside/{stored.relative_path}"

    edited_index(path, change)


def enormous_index(path, outside):
    def change(index):
        entry = next(iter(index.state_dict_metadata.values()))
        entry.size = torch.Size([1 << 20, 1 << 20])

    edited_index(path, change)


def linked_part(path, outside):
    link(next(path.glob("*.distcp")), outside)


def linked_index(path, outside):
    shutil.copy(path / ".metadata", outside)
    link(path / ".metadata", outside)


def packed_bin(path, outside):
    """A few kilobytes that become half a gigabyte."""
    with zipfile.ZipFile(path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 29))
        archive.writestr("archive/version", "3\n")


def code(path, outside):
    (path / "modeling_evil.py").write_text(f"import os\nos.remove({str(outside / 'config.json')!r})\n")
    config = json.loads((path / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}}
    config |= {"model_type": "evil", "architectures": ["Evil"]}
    (path / "config.json").write_text(json.dumps(config))


def traversal_in_shards(path, outside):
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../outside/model.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def traversal_in_pickled_shards(path, outside):
    (path / "pytorch_model.bin").rename(path / "pytorch_model-00001-of-00002.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../outside/pytorch_model.bin"}}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def pipe(path, outside):
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


def config_pipe(path, outside):
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")


ATTACKS = {
    "payload": ("bin", payload_bin, "nothing in it was run"),
    "payload in an index": ("dcp", payload_index, "the index names"),
    "function by a dotted name": ("dcp", method_in_index, "the index names"),
    "traversal in an index": ("dcp", traversal_in_index, "which is not opened"),
    "enormous tensor": ("dcp", enormous_index, "its files have"),
    "linked part": ("dcp", linked_part, "symlink"),
    "linked index": ("dcp", linked_index, "symlink"),
    "packed archive": ("bin", packed_bin, "would become 536870912"),
    "code": ("safetensors", code, "config.json"),
    "traversal": ("safetensors", traversal_in_shards, "which is not opened"),
    "traversal in pickled shards": ("bin", traversal_in_pickled_shards, "plain names"),
    "pipe": ("safetensors", pipe, "no regular file"),
    "pipe for a config": ("safetensors", config_pipe, "no regular file"),
    **{
        f"linked {name}": (
            "bin" if name == "pytorch_model.bin" else "safetensors",
            lambda path, outside, name=name: link(path / name, outside),
            "symlink",
        )
        for name in OUTSIDE_FILES
    },
}


def attacked(name, sound, path, outside):
    form, attack, told = ATTACKS[name]
    shutil.copytree(sound / form, path)
    attack(path, outside)
    return told


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_is_refused_with_the_file_and_does_nothing(sound, outside, tmp_path, name):
    path = tmp_path / "series" / "step1"
    told = attacked(name, sound, path, outside)
    before = content(outside)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadCheckpoint) as refused:
        load_pretrained(path, device="cpu", allow_pickle=True)
    assert told in str(refused.value)
    assert str(path) in str(refused.value)
    assert content(outside) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300_000  # KiB


@pytest.mark.parametrize("name", ["linked model.safetensors", "linked pytorch_model.bin", "linked part", "pipe"])
def test_weights_from_elsewhere_are_not_even_summed_up(sound, outside, tmp_path, name):
    path = tmp_path / "series" / "step1"
    told = attacked(name, sound, path, outside)
    sums = {p.name: hashlib.sha256(p.read_bytes() if p.is_file() else b"").hexdigest() for p in path.iterdir()}
    (path / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    for look in (fingerprint, verify_digests):
        with pytest.raises(BadCheckpoint, match=told):
            look(path)
    other = Path(shutil.copytree(path, tmp_path / "series" / "checkpoint-1", symlinks=True, ignore=_pipes))
    assert not same_weights(path, other)


def _pipes(folder, names):
    return [name for name in names if (Path(folder) / name).is_fifo()]


def test_a_digest_list_from_elsewhere_is_not_read(sound, outside, tmp_path):
    path = Path(shutil.copytree(sound / "safetensors", tmp_path / "step1"))
    link(path / "SHA256SUMS", outside)
    with pytest.raises(BadCheckpoint, match="SHA256SUMS: is a symlink"):
        verify_digests(path)


def test_a_scan_of_a_directory_of_attacks_reports_each_and_scores_the_sound_one(sound, outside, tmp_path):
    series = tmp_path / "series"
    names = {f"step{i}": name for i, name in enumerate(ATTACKS)}
    for step, name in names.items():
        attacked(name, sound, series / step, outside)
    shutil.copytree(sound / "safetensors", series / "step999")
    before = content(outside)
    for file in outside.iterdir():
        os.utime(file, ns=(0, file.stat().st_mtime_ns))
    command = [sys.executable, str(Path(__file__).with_name("scan_watched.py"))]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    told = run_child(
        [*command, str(series), str(tmp_path / "run"), str(outside)],
        start=Preloaded,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    said = json.loads(told.stdout)
    assert said["seen"] == []
    assert [file.name for file in outside.iterdir() if file.stat().st_atime_ns] == []
    assert content(outside) == before
    assert said["scored"] == ["step999"]
    assert said["failures"].keys() == names.keys()
    for step, name in names.items():
        assert ATTACKS[name][2] in said["failures"][step]


def test_the_settings_of_a_series_are_not_compared_with_a_file_from_elsewhere(sound, outside, tmp_path):
    for step in (1, 2, 3):
        shutil.copytree(sound / "safetensors", tmp_path / "series" / f"step{step}")
    config = json.loads((outside / "config.json").read_text())
    (outside / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    link(tmp_path / "series" / "step2" / "config.json", outside)
    assert find_checkpoints(tmp_path / "series").config_changes == ()
