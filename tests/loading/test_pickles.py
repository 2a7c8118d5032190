"""Pickled weights: the same model as from safetensors, bit for bit, by opt-in; no code in a pickle is run."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint

from tests.families import tiny
from workbench.heads import BadCheckpoint
from workbench.loading.pretrained import load_pretrained

FAMILIES = ["llama", "gpt_neox", "minimax"]


class Payload:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def saved(family, folder, form, *, change=None):
    """A checkpoint of one of the pickled forms; `change` is made to the state before it is saved."""
    model = tiny(family)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if change is not None:
        change(state)
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif form == "shards":
        names = sorted(state)
        parts = {"a.bin": names[::2], "b.bin": names[1::2]}
        for file, mine in parts.items():
            torch.save({n: state[n] for n in mine}, folder / f"pytorch_model-{file}")
        listed = {n: f"pytorch_model-{file}" for file, mine in parts.items() for n in mine}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": listed}))
    elif form == "legacy":
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif form == "pt":
        torch.save({"step": 1, "model": {f"module.{k}": v for k, v in state.items()}}, folder / "ckpt.pt")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about saving without a group of processes
            torch.distributed.checkpoint.save(
                {"model": state, "optimizer": {"m": torch.ones(2)}}, checkpoint_id=str(folder), no_dist=True
            )
    return folder


@pytest.mark.parametrize("form", ["bin", "shards", "legacy", "pt", "dcp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pickled_weights_make_the_same_model_bit_for_bit(tmp_path, family, form):
    path = saved(family, tmp_path / "step1", form)
    with pytest.raises(BadCheckpoint, match="--allow-pickle"):
        load_pretrained(path, device="cpu")
    loaded = load_pretrained(path, device="cpu", allow_pickle=True)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).logits, tiny(family)(tokens).logits)
    assert loaded.weights.dtype == "F32"
    assert loaded.weights.n_parameters >= sum(p.numel() for p in tiny(family).parameters())


def drop(state):
    del state["model.layers.1.self_attn.q_proj.weight"]


def add(state):
    state["model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)


def widen(state):
    state["model.layers.1.self_attn.q_proj.weight"] = torch.ones(4, 4)


def spoil(state):
    state["model.layers.0.self_attn.v_proj.weight"][1, 2] = torch.inf


def quantise(state):
    name = "model.layers.1.self_attn.q_proj.weight"
    state[name] = state[name].to(torch.int8)


@pytest.mark.parametrize("form", ["bin", "pt", "dcp"])
@pytest.mark.parametrize(
    ("change", "told"),
    [(drop, "missing"), (add, "no place"), (widen, "another shape"), (spoil, "non-finite"), (quantise, "int8")],
)
def test_pickled_weights_are_as_strictly_looked_over_as_safetensors(tmp_path, form, change, told):
    path = saved("llama", tmp_path / "step1", form, change=change)
    with pytest.raises(BadCheckpoint, match=told):
        load_pretrained(path, device="cpu", allow_pickle=True)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "ckpt.pt"])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path, file):
    path, marker = saved("llama", tmp_path / "step1", "bin"), tmp_path / "ran"
    (path / "pytorch_model.bin").unlink()
    torch.save({"model": tiny("llama").state_dict(), "x": Payload(marker)}, path / file)
    with pytest.raises(BadCheckpoint, match="nothing in it was run"):
        load_pretrained(path, device="cpu", allow_pickle=True)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 5])
def test_an_index_of_a_distributed_checkpoint_that_calls_something_is_refused_and_calls_nothing(tmp_path, protocol):
    path, marker = saved("llama", tmp_path / "step1", "dcp"), tmp_path / "ran"
    (path / ".metadata").write_bytes(pickle.dumps(Payload(marker), protocol=protocol))
    with pytest.raises(BadCheckpoint, match=r"\.metadata: is not the index"):
        load_pretrained(path, device="cpu", allow_pickle=True)
    assert not marker.exists()


def test_a_distributed_checkpoint_without_some_of_its_data_is_refused(tmp_path):
    path = saved("llama", tmp_path / "step1", "dcp")
    file = next(path.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        load_pretrained(path, device="cpu", allow_pickle=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a pickle", pickle.dumps({"a": 1})])
def test_a_file_that_is_no_weights_is_refused_by_name(tmp_path, content):
    path = saved("llama", tmp_path / "step1", "bin")
    (path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"pytorch_model\.bin"):
        load_pretrained(path, device="cpu", allow_pickle=True)


def test_two_pickles_that_may_be_the_weights_are_refused_with_their_names(tmp_path):
    path = saved("llama", tmp_path / "step1", "pt")
    buffer = io.BytesIO()
    torch.save(tiny("llama").state_dict(), buffer)
    (path / "other.pt").write_bytes(buffer.getvalue())
    with pytest.raises(BadCheckpoint, match=r"2 pickled files.*ckpt\.pt, other\.pt"):
        load_pretrained(path, device="cpu", allow_pickle=True)
