"""Every way a checkpoint can be bad, done to small models as saved: each is refused with the file and the reason.

Plain `from_pretrained` loads many of these without a word, with random, cast or foreign weights.
"""

from __future__ import annotations

import builtins
import json
import pickle
import resource
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families import tiny
from workbench.checkpoints import find_checkpoints, fingerprint
from workbench.heads import BadCheckpoint, NoCheckpoints
from workbench.loading.pretrained import load_pretrained

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
K_PROJ = "model.layers.0.self_attn.k_proj.weight"
V_PROJ = "model.layers.0.self_attn.v_proj.weight"


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Sound checkpoints by family, and `sharded`, a llama in several files."""
    root = tmp_path_factory.mktemp("saved")
    for family in ("llama", "gpt_neox", "minimax"):
        tiny(family).save_pretrained(root / family)
    tiny("llama").save_pretrained(root / "sharded", max_shard_size="20KB")
    assert len(list((root / "sharded").glob("*.safetensors"))) > 2
    return root


@pytest.fixture
def damage(saved, tmp_path, monkeypatch):
    """A copy of a sound checkpoint to damage; a prompt fails the test."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("the loader asked on the terminal"))

    def copy(family="llama") -> Path:
        return Path(shutil.copytree(saved / family, tmp_path / "step10"))

    return copy


def load(path):
    return load_pretrained(path, device="cpu")


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config |= changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def edit_index(path, change):
    index = json.loads((path / "model.safetensors.index.json").read_text())
    change(index["weight_map"])
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def refusal(path, *told):
    """The message with which loading is refused; it has the folder and every word told."""
    with pytest.raises(BadCheckpoint) as refused:
        load(path)
    message = str(refused.value)
    assert str(path) in message
    for word in told:
        assert word in message
    return message


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "minimax", "sharded"])
def test_what_is_sound_is_loaded(saved, family):
    tokens = torch.arange(20)[None]
    source = tiny("llama" if family == "sharded" else family)
    with torch.no_grad():
        torch.testing.assert_close(load(saved / family).model(tokens).logits, source(tokens).logits, rtol=0, atol=0)


# 1, 2: files that are not whole


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "minimax"])
@pytest.mark.parametrize("kept", [0.5, -1, 0])
def test_truncated_weights_are_refused_with_their_size(damage, family, kept):
    path = damage(family)
    content = (path / "model.safetensors").read_bytes()
    content = content[: int(len(content) * kept) if 0 < kept < 1 else kept]
    (path / "model.safetensors").write_bytes(content)
    refusal(path, "model.safetensors", f"{len(content)} bytes")


def test_a_header_of_impossible_length_is_refused(damage):
    path = damage()
    content = bytearray((path / "model.safetensors").read_bytes())
    content[5] ^= 0x10
    (path / "model.safetensors").write_bytes(content)
    refusal(path, "model.safetensors", "header length")


@pytest.mark.parametrize("length", [99_000_000, 1 << 40, (1 << 63) + 5])
def test_a_header_that_would_fill_the_memory_is_refused_without_reading_it(damage, length):
    path = damage()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(min(length, 1 << 31))  # sparse: as large as it claims and without content
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(path, "model.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


@pytest.mark.parametrize(
    "header",
    ["[" * 100_000, '{"w": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}'],
    ids=["nested", "overflowing"],
)
def test_a_header_that_is_a_trap_for_its_reader_is_refused(damage, header):
    path = damage()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    refusal(path, "model.safetensors")


def test_a_lfs_pointer_is_refused_by_name(damage):
    path = damage()
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refusal(path, "model.safetensors", "git-lfs pointer", "git lfs pull")


# 3: what no format notices


def test_a_flipped_bit_of_data_shows_in_the_fingerprint(damage, saved):
    path = damage()
    content = bytearray((path / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 0x40
    (path / "model.safetensors").write_bytes(content)
    assert fingerprint(path).weights != fingerprint(saved / "llama").weights


# 4, 5, 6: weights that are not all there, or too many


def test_a_missing_shard_is_refused_by_name(damage):
    path = damage("sharded")
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.unlink()
    refusal(path, shard.name, "missing")


@pytest.mark.parametrize(
    ("family", "tensor", "told"),
    [
        ("llama", Q_PROJ, Q_PROJ),
        ("llama", "lm_head.weight", "lm_head.weight"),
        ("gpt_neox", "embed_out.weight", "lm_head"),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value.bias", "query_key_value.bias"),
        ("minimax", "model.layers.0.self_attn.qkv_proj.weight", "qkv_proj"),
    ],
)
def test_a_missing_tensor_is_refused_by_name(damage, family, tensor, told):
    path = damage(family)
    edit_tensors(path, lambda tensors: tensors.pop(tensor))
    refusal(path, "missing", told)


def test_a_missing_expert_is_refused(damage):
    path = damage("minimax")
    edit_tensors(path, lambda tensors: tensors.pop("model.layers.1.block_sparse_moe.experts.1.w2.weight"))
    refusal(path)


@pytest.mark.parametrize(
    ("n_layers", "told"), [(3, ("missing", "model.layers.2")), (1, ("no place", "model.layers.1"))]
)
def test_another_number_of_layers_than_the_config_counts_is_refused(damage, n_layers, told):
    path = damage()
    edit_config(path, num_hidden_layers=n_layers, layer_types=None)
    refusal(path, *told)


def test_a_tensor_nobody_asked_for_is_refused(damage):
    path = damage()
    edit_tensors(path, lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(4)}))
    refusal(path, "no place", "q_norm")


# 7, 8: a config of another model with the same shapes


def test_another_head_count_of_equal_shapes_is_seen_among_its_siblings(damage, saved, tmp_path):
    path = damage()
    edit_config(path, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    load(path)
    for step in (20, 30):
        shutil.copytree(saved / "llama", tmp_path / f"step{step}")
    fatal = [c for c in find_checkpoints(tmp_path).config_changes if c.is_fatal]
    assert {(c.checkpoint, c.setting) for c in fatal} == {
        ("step10", "n_heads"),
        ("step10", "n_kv_heads"),
        ("step10", "d_head"),
    }


def test_another_rope_is_seen_among_its_siblings_and_recorded(damage, saved, tmp_path):
    path = damage()
    edit_config(path, rope_parameters={"rope_theta": 1e6, "rope_type": "default"})
    for step in (20, 30):
        shutil.copytree(saved / "llama", tmp_path / f"step{step}")
    assert [(c.checkpoint, c.setting, c.is_fatal) for c in find_checkpoints(tmp_path).config_changes] == [
        ("step10", "rope", False)
    ]


# 9: a config that does not fit or is no config


def test_another_width_is_refused_with_both_shapes(damage):
    path = damage()
    edit_config(path, hidden_size=48)
    assert "32" in refusal(path, "another shape", "48")


@pytest.mark.parametrize("text", [None, "", "{", '{"model_type": "lla', "[]", "{}", '{"model_type": "nonesuch"}'])
def test_a_config_that_is_no_models_is_refused(damage, text):
    path = damage()
    (path / "config.json").unlink() if text is None else (path / "config.json").write_text(text)
    refusal(path, "config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "wide"},
        {"hidden_act": "nonesuch"},
        {"num_hidden_layers": -1},
        {"rope_parameters": {"rope_type": "nonesuch"}},
        {"vocab_size": 10**9},
        {"dtype": "nonesuch"},
        {"layer_types": ["nonesuch"] * 2},
    ],
    ids=str,
)
def test_a_config_of_impossible_numbers_is_refused(damage, changes):
    path = damage()
    edit_config(path, **changes)
    refusal(path)


# 10: numbers that are none


@pytest.mark.parametrize(("tensor", "value"), [(K_PROJ, float("nan")), (V_PROJ, float("inf")), (V_PROJ, float("-inf"))])
def test_a_number_that_is_not_finite_is_refused_by_parameter(damage, tensor, value):
    path = damage()
    edit_tensors(path, lambda tensors: tensors[tensor].__setitem__((3, 5), value))
    refusal(path, "non-finite", tensor)


def test_a_slope_that_is_not_finite_is_refused(damage):
    path = damage("minimax")
    edit_tensors(path, lambda tensors: tensors["model.layers.0.self_attn.slope_rate"].fill_(float("nan")))
    refusal(path, "non-finite", "slope_rate")


# 11, 12: dtypes


def test_one_tensor_of_int8_is_refused_by_name(damage):
    path = damage()
    edit_tensors(path, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].to(torch.int8)}))
    refusal(path, "model.safetensors", Q_PROJ, "I8")


def test_half_weights_under_a_float_config_are_loaded_and_their_dtype_recorded(damage):
    path = damage()
    edit_tensors(path, lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}))
    loaded = load(path)
    assert loaded.weights.dtype == "F16"
    assert loaded.model.dtype == torch.float32


# 13 - 16: code


class Payload:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00001.bin"])
def test_a_pickle_is_refused_and_not_run(damage, tmp_path, name):
    path, marker = damage(), tmp_path / "ran"
    (path / "model.safetensors").unlink()
    (path / name).write_bytes(pickle.dumps({"w": Payload(marker)}))
    refusal(path, name, "pickle", "not read", "convert")
    assert not marker.exists()


def test_a_pickle_beside_safetensors_is_not_run(damage, tmp_path):
    path, marker = damage(), tmp_path / "ran"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (path / name).write_bytes(pickle.dumps(Payload(marker)))
    load(path)
    assert not marker.exists()


def with_code(path, marker, **config):
    """Point the config, and the tokenizer's, at a module that leaves a file behind when imported."""
    (path / "modeling_evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    auto_map = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
        "AutoTokenizer": ["modeling_evil.EvilTokenizer", None],
    }
    edit_config(path, auto_map=auto_map, **config)
    (path / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map, "tokenizer_class": "EvilTokenizer"}))


def test_code_beside_an_unknown_model_is_refused_and_not_run(damage, tmp_path):
    path, marker = damage(), tmp_path / "ran"
    with_code(path, marker, model_type="evil", architectures=["EvilForCausalLM"])
    refusal(path, "config.json")
    assert not marker.exists()
    assert not any("modeling_evil" in name for name in sys.modules)


def test_code_beside_a_known_model_is_not_run(damage, tmp_path):
    path, marker = damage(), tmp_path / "ran"
    with_code(path, marker)
    loaded = load(path)
    assert type(loaded.model).__module__.startswith("transformers.")
    assert loaded.tokenizer is None
    assert "cannot be read" in loaded.no_tokenizer
    assert not marker.exists()


# 17, 18: an index and its shards


@pytest.mark.parametrize("place", ["../outside.safetensors", "/tmp/outside.safetensors", "sub/outside.safetensors"])
def test_a_shard_outside_the_folder_is_refused(damage, tmp_path, place):
    path = damage("sharded")
    first = sorted(path.glob("*.safetensors"))[0]
    shutil.copy(first, tmp_path / "outside.safetensors")
    moved = next(iter(load_file(first)))
    edit_index(path, lambda weight_map: weight_map.update({moved: place}))
    refusal(path, "index.json", moved, place)


def test_a_shard_linked_from_outside_is_refused(damage, tmp_path):
    path = damage("sharded")
    first = sorted(path.glob("*.safetensors"))[0]
    first.rename(tmp_path / "outside.safetensors")
    first.symlink_to(tmp_path / "outside.safetensors")
    refusal(path, first.name, "symlink")


def test_a_link_into_a_hub_cache_is_loaded(saved, tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in (saved / "sharded").iterdir():
        shutil.copy(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    load(snapshot)


def test_an_index_that_lacks_a_tensor_is_refused_by_name(damage):
    path = damage("sharded")
    edit_index(path, lambda weight_map: weight_map.pop(Q_PROJ))
    refusal(path, "index.json", Q_PROJ, "no shard")


def test_a_tensor_in_two_shards_is_refused_by_name(damage):
    path = damage("sharded")
    first, second, *_ = sorted(path.glob("*.safetensors"))
    doubled = next(iter(load_file(first)))
    save_file({**load_file(second), doubled: load_file(first)[doubled]}, second, metadata={"format": "pt"})
    refusal(path, second.name, doubled)


# 19: one step twice


def test_one_step_twice_is_refused_unless_the_weights_are_the_same(saved, tmp_path):
    shutil.copytree(saved / "llama", tmp_path / "step10")
    copy = Path(shutil.copytree(saved / "llama", tmp_path / "checkpoint-10"))
    assert [c.alias_of for c in find_checkpoints(tmp_path).checkpoints] == [None, "checkpoint-10"]
    edit_tensors(copy, lambda tensors: tensors[Q_PROJ].add_(1))
    with pytest.raises(NoCheckpoints, match="checkpoint-10 and step10"):
        find_checkpoints(tmp_path)


# Beyond the table: what else makes the loader read something other than what was looked over


@pytest.mark.parametrize(
    ("config", "told"),
    [({"transformers_weights": "other.safetensors"}, "transformers_weights"), ({"transformers_weights": 5}, "5")],
)
def test_a_config_that_names_other_weights_is_refused(damage, config, told):
    path = damage()
    shutil.copy(path / "model.safetensors", path / "other.safetensors")
    edit_config(path, **config)
    refusal(path, "config.json", told)


def test_a_config_that_asks_for_kernels_of_the_hub_gets_the_librarys_own(damage):
    path = damage()
    asked = "someone/flash-attention"
    edit_config(path, attn_implementation=asked, experts_implementation=asked, fusion_config={"nonesuch": True})
    assert load(path).model.config._attn_implementation == "sdpa"


def test_a_header_that_shifts_every_tensor_is_refused(damage):
    path = damage()
    content = (path / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = next(n for n in header if n != "__metadata__")
    header[name]["data_offsets"][0] += 4
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    refusal(path, "model.safetensors", name)
