"""Names of wrappers are taken out of the names of tensors where everything then fits, in every format, else never."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import torch.distributed.checkpoint
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from tests.families import tiny
from workbench.heads import BadCheckpoint
from workbench.loading.pretrained import load_pretrained
from workbench.loading.wrapped_names import proposed_names

TOKENS = torch.arange(20)[None]
RENAMINGS = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "in parallel": lambda name: f"module.{name}",
    "compiled in parallel": lambda name: f"module._orig_mod.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('.self_attn.', '._fsdp_wrapped_module.self_attn.')}",
    "Lightning": lambda name: f"model.{name}",
    "Lightning, compiled": lambda name: f"model._orig_mod.{name}",
    "Lightning under its own strategy": lambda name: f"_forward_module.model.{name}",
    "an attribute of one's own": lambda name: f"net.lm.{name}",
    "layers compiled one by one": lambda name: name.replace(".mlp.", "._orig_mod.mlp."),
    "activation checkpointing": lambda name: name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
}


@pytest.fixture(scope="module")
def state():
    return {name: tensor.clone() for name, tensor in tiny("llama").state_dict().items()}


def saved(folder, state, form="safetensors", config=None):
    (config or tiny("llama").config).save_pretrained(folder)
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    elif form == "shards":
        parts = {f"model-0000{i}-of-00002.safetensors": sorted(state)[i - 1 :: 2] for i in (1, 2)}
        for file, names in parts.items():
            save_file({name: state[name] for name in names}, folder / file, metadata={"format": "pt"})
        listed = {name: file for file, names in parts.items() for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return folder


def logits(folder):
    with torch.no_grad():
        return load_pretrained(folder, device="cpu", allow_pickle=True).model(TOKENS).logits


@pytest.mark.parametrize("wrapper", RENAMINGS)
def test_the_names_of_a_wrapper_lead_to_the_same_model(tmp_path, state, wrapper):
    rename = RENAMINGS[wrapper]
    folder = saved(tmp_path, {rename(name): tensor for name, tensor in state.items()})
    with torch.no_grad():
        assert torch.equal(logits(folder), tiny("llama")(TOKENS).logits)


@pytest.mark.parametrize("form", ["shards", "bin"])
def test_in_shards_and_pickles_too(tmp_path, state, form):
    rename = RENAMINGS["FSDP"]
    folder = saved(tmp_path, {rename(name): tensor for name, tensor in state.items()}, form)
    with torch.no_grad():
        assert torch.equal(logits(folder), tiny("llama")(TOKENS).logits)


def test_a_family_whose_tensors_are_stored_otherwise_than_they_are_held(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=30, num_attention_heads=2, num_key_value_heads=1, **sizes))
    model.save_pretrained(tmp_path / "plain")
    stored = {}
    for file in (tmp_path / "plain").glob("*.safetensors"):
        stored |= load_file(file)
    assert not set(stored) <= set(model.state_dict())
    (tmp_path / "wrapped").mkdir()
    wrapped = saved(tmp_path / "wrapped", {f"_orig_mod.{n}": t for n, t in stored.items()}, config=model.config)
    assert torch.equal(logits(wrapped), logits(tmp_path / "plain"))


def drop(state):
    del state["_orig_mod.model.layers.1.self_attn.q_proj.weight"]


def add(state):
    state["_orig_mod.model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)


def stand_beside(state):
    state["ema.weight"] = torch.ones(4)


def repeat(state):
    state["model.norm.weight"] = torch.full_like(state["_orig_mod.model.norm.weight"], 7.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(drop, "missing from the files"), (add, "no place"), (stand_beside, "no place"), (repeat, "no place")],
)
def test_wrapped_weights_that_do_not_fit_exactly_are_refused(tmp_path, state, change, reason):
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    change(wrapped)
    with pytest.raises(BadCheckpoint, match=reason):
        load_pretrained(saved(tmp_path, wrapped), device="cpu")


def test_two_names_never_become_one():
    expected = {"a.weight", "b.weight"}
    assert proposed_names(["_orig_mod.a.weight", "a.weight"], expected) == []
    assert proposed_names(["a.weight", "b.weight"], expected) == []
    (renaming,) = proposed_names(["module.a.weight", "module.b.weight"], expected)
    assert renaming == {"module.a.weight": "a.weight", "module.b.weight": "b.weight"}


# Folders that Trainer and Accelerate write with FSDP


def distributed(folder, state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about saving without a group of processes
        torch.distributed.checkpoint.save(state, checkpoint_id=str(folder), no_dist=True)


@pytest.fixture
def sharded(tmp_path, state):
    tiny("llama").config.save_pretrained(tmp_path)
    distributed(tmp_path / "pytorch_model_fsdp_0", {"model": state})
    distributed(tmp_path / "optimizer_0", {"optimizer": {"state": torch.ones(2)}})
    return tmp_path


def test_the_model_is_found_beside_its_optimizer(sharded):
    with torch.no_grad():
        assert torch.equal(logits(sharded), tiny("llama")(TOKENS).logits)


@pytest.mark.parametrize("name", ["ema", "a_folder_whose_name_comes_first"])
def test_a_folder_without_tensors_of_a_model_is_passed_over(sharded, name):
    distributed(sharded / name, {"optimizer": {"state": torch.ones(2)}})
    with torch.no_grad():
        assert torch.equal(logits(sharded), tiny("llama")(TOKENS).logits)


def test_two_models_in_one_folder_are_refused_with_their_names(sharded, state):
    distributed(sharded / "pytorch_model_fsdp_1", {"model": state})
    with pytest.raises(
        BadCheckpoint, match=r"2 of its folders may be the model \(pytorch_model_fsdp_0, pytorch_model_f"
    ):
        logits(sharded)


def test_one_file_of_fsdp_is_the_model(tmp_path, state):
    tiny("llama").config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model_fsdp.bin")
    torch.save({"state": {}}, tmp_path / "optimizer.bin")
    with torch.no_grad():
        assert torch.equal(logits(tmp_path), tiny("llama")(TOKENS).logits)


def test_a_file_for_each_rank_is_refused_with_the_way_out(tmp_path, state):
    tiny("llama").config.save_pretrained(tmp_path)
    for rank in (0, 1):
        torch.save(state, tmp_path / f"pytorch_model_fsdp_rank{rank}.bin")
    with pytest.raises(BadCheckpoint, match=r"2 files may be the model .*FULL_STATE_DICT"):
        logits(tmp_path)


def test_wrappers_of_torch_give_the_names_that_are_taken_out():
    model = nn.Linear(2, 2, bias=False)
    (of_compile,) = torch.compile(model).state_dict()
    (of_parallel,) = nn.DataParallel(model).state_dict()
    for name in (of_compile, of_parallel):
        assert proposed_names([name], {"weight"}) == [{name: "weight"}]
