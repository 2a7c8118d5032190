"""Headers are checked byte for byte before any tensor is read; any damage is a BadCheckpoint naming the file."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints.folders import checkpoint, safetensors
from workbench.checkpoints import fingerprint, inspect_weights, read_config
from workbench.heads import BadCheckpoint


def with_tensors(tmp_path, tensors):
    path = checkpoint(tmp_path / "step10")
    (path / "model.safetensors").write_bytes(safetensors(tensors))
    return path


def with_header(tmp_path, header, data=b""):
    path = checkpoint(tmp_path / "step10")
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def sharded(tmp_path, weight_map):
    """Two shards of one tensor each, a and b, and an index of our making."""
    path = checkpoint(tmp_path / "step10")
    (path / "model.safetensors").unlink()
    for i, name in enumerate("ab", start=1):
        content = safetensors({name: ("F32", [1], bytes(4))})
        (path / f"model-0000{i}-of-00002.safetensors").write_bytes(content)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def test_a_sound_folder_is_described(tmp_path):
    path = with_tensors(tmp_path, {"w": ("BF16", [2, 3], bytes(12)), "position_ids": ("I64", [4], bytes(32))})
    info = inspect_weights(path)
    assert info.files == (path / "model.safetensors",)
    assert info.tensors["w"].shape == (2, 3)
    assert (info.dtype, info.n_parameters) == ("BF16", 6)
    assert info.n_bytes == (path / "model.safetensors").stat().st_size


def test_sound_shards_are_described(tmp_path):
    info = inspect_weights(sharded(tmp_path, SHARDS))
    assert [f.name for f in info.files] == sorted(SHARDS.values())
    assert {name: t.file for name, t in info.tensors.items()} == SHARDS


@pytest.mark.parametrize("cut", [1, 20, "all"])
def test_a_truncated_file_is_refused_with_its_size(tmp_path, cut):
    path = checkpoint(tmp_path / "step10")
    content = (path / "model.safetensors").read_bytes()
    kept = b"" if cut == "all" else content[:-cut]
    (path / "model.safetensors").write_bytes(kept)
    with pytest.raises(BadCheckpoint, match=rf"model\.safetensors: .*{len(kept)} bytes"):
        inspect_weights(path)


@given(content=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_bytes_are_refused_not_crashed_on(tmp_path, content):
    if not (tmp_path / "step10").exists():
        checkpoint(tmp_path / "step10")
    (tmp_path / "step10" / "model.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
        inspect_weights(tmp_path / "step10")


@given(place=st.integers(0, 79), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
def test_a_flipped_header_bit_never_changes_what_is_read_as_data(tmp_path, place, bit):
    path = tmp_path / "step10"
    if not path.exists():
        checkpoint(path)
    sound = safetensors({"w": ("F32", [2, 2], bytes(16))})
    content = bytearray(sound)
    content[place % (len(sound) - 16)] ^= 1 << bit
    (path / "model.safetensors").write_bytes(bytes(content))
    try:
        tensors = inspect_weights(path).tensors
    except BadCheckpoint:
        return
    (tensor,) = tensors.values()
    assert math.prod(tensor.shape) == 4


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({}, "no tensor"),
        ({"w": 5}, "w is no object"),
        ({"w": {"dtype": "F32", "shape": [1]}}, "w lacks"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "w lacks"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "w has 4 bytes"),
        ({"w": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}}, "starts at byte 4"),
        (b"[" * 5000, "not JSON"),
        (b'{"w": 1, "w": 2}', "w twice"),
        (b'\xff\xfe"}', "not JSON"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, header, told):
    with pytest.raises(BadCheckpoint, match=told):
        inspect_weights(with_header(tmp_path, header))


def test_bytes_after_the_tensors_are_refused(tmp_path):
    path = checkpoint(tmp_path / "step10")
    with (path / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BadCheckpoint, match="its header says"):
        inspect_weights(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_lfs_pointer_is_called_one(tmp_path, name):
    path = checkpoint(tmp_path / "step10")
    (path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n")
    with pytest.raises(BadCheckpoint, match=rf"{name}: is a git-lfs pointer.*git lfs pull"):
        inspect_weights(path)


@pytest.mark.parametrize("dtype", ["I8", "U8", "I32", "BOOL", "F8_E8M0"])
def test_weights_that_are_no_floats_are_refused(tmp_path, dtype):
    size = 4 if dtype == "I32" else 1
    with pytest.raises(BadCheckpoint, match=rf"q_proj\.weight has dtype {dtype}"):
        inspect_weights(with_tensors(tmp_path, {"q_proj.weight": (dtype, [1], bytes(size))}))


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_floats_of_every_width_are_read(tmp_path, dtype):
    size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
    assert inspect_weights(with_tensors(tmp_path, {"w": (dtype, [1], bytes(size))})).dtype == dtype


def test_an_integer_projection_bias_is_no_mask(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"c_attn\.bias"):
        inspect_weights(with_tensors(tmp_path, {"h.0.attn.c_attn.bias": ("U8", [1], b"\0")}))


def test_a_causal_mask_may_be_bytes(tmp_path):
    inspect_weights(with_tensors(tmp_path, {"w": ("F32", [1], bytes(4)), "h.0.attn.bias": ("U8", [1], b"\1")}))


@pytest.mark.parametrize(
    ("weight_map", "told"),
    [
        ({"a": SHARDS["a"], "b": "../outside.safetensors"}, r"b is mapped to '\.\./outside"),
        ({"a": SHARDS["a"], "b": "/etc/outside.safetensors"}, "b is mapped to '/etc"),
        ({"a": SHARDS["a"], "b": "sub\\x.safetensors"}, "b is mapped"),
        ({"a": SHARDS["a"], "b": "model.bin"}, "b is mapped"),
        ({"a": SHARDS["a"], "b": 7}, "b is mapped to 7"),
        (
            {"a": SHARDS["a"], "b": "model-00003-of-00002.safetensors"},
            "model-00003-of-00002.safetensors: shard is missing",
        ),
        ({"a": SHARDS["b"], "b": SHARDS["a"]}, "places tensor a in"),
        ({**SHARDS, "c": SHARDS["a"]}, "places tensor c in .* it is in none"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path, weight_map, told):
    with pytest.raises(BadCheckpoint, match=told):
        inspect_weights(sharded(tmp_path, weight_map))


def test_an_index_that_leaves_a_tensor_out_is_refused(tmp_path):
    path = sharded(tmp_path, SHARDS)
    both = {name: ("F32", [1], bytes(4)) for name in ("b", "extra")}
    (path / SHARDS["b"]).write_bytes(safetensors(both))
    with pytest.raises(BadCheckpoint, match="places tensor extra in no shard"):
        inspect_weights(path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    path = sharded(tmp_path, SHARDS)
    both = {name: ("F32", [1], bytes(4)) for name in "ab"}
    (path / SHARDS["b"]).write_bytes(safetensors(both))
    with pytest.raises(BadCheckpoint, match="has tensor a that model-00001"):
        inspect_weights(path)


def test_shards_without_an_index_are_refused(tmp_path):
    path = sharded(tmp_path, SHARDS)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"index\.json: is missing"):
        inspect_weights(path)


def test_a_link_out_of_the_checkpoint_is_refused(tmp_path):
    path = checkpoint(tmp_path / "step10")
    (path / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (path / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: is a symlink to .*elsewhere"):
        inspect_weights(path)


def test_links_within_the_checkpoint_and_into_a_hub_cache_are_followed(tmp_path):
    snapshot = checkpoint(tmp_path / "models--a--b" / "snapshots" / "c0ffee")
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (snapshot / "model.safetensors").rename(tmp_path / "models--a--b" / "blobs" / "00ff")
    (snapshot / "model.safetensors").symlink_to("../../blobs/00ff")
    inspect_weights(snapshot)
    inner = checkpoint(tmp_path / "step10")
    (inner / "model.safetensors").rename(inner / "weights.safetensors")
    (inner / "model.safetensors").symlink_to("weights.safetensors")
    inspect_weights(inner)
    (tmp_path / "link").symlink_to(inner)
    inspect_weights(tmp_path / "link")


def test_a_dangling_link_is_called_one(tmp_path):
    path = checkpoint(tmp_path / "step10")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("nowhere")
    with pytest.raises(BadCheckpoint, match="symlink to nothing"):
        inspect_weights(path)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["pytorch_model.bin"], r"pytorch_model\.bin: .*pickle files and not read.*save_pretrained"),
        (["mp_rank_00_model_states.pt"], "zero_to_fp32"),
        (["mp_rank_00/model_optim_rng.pt"], "Megatron"),
        ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
        (["consolidated.pth"], "torch.load"),
        ([], "holds no weights"),
    ],
)
def test_other_formats_are_refused_with_the_way_to_convert_them(tmp_path, files, told):
    path = checkpoint(tmp_path / "step10")
    (path / "model.safetensors").unlink()
    for name in files:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"x")
    with pytest.raises(BadCheckpoint, match=told):
        inspect_weights(path)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"x")
    with pytest.raises(BadCheckpoint, match=r"last\.ckpt: is a file \(pickle"):
        inspect_weights(tmp_path / "last.ckpt")
    with pytest.raises(BadCheckpoint, match="no such folder"):
        inspect_weights(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("adapter_config.json", "is an adapter"),
        ("shard-00000-model-00001-of-00001.safetensors", "distributed shard"),
    ],
)
def test_files_that_would_replace_the_weights_are_refused(tmp_path, name, told):
    path = checkpoint(tmp_path / "step10")
    (path / name).write_text("{}")
    with pytest.raises(BadCheckpoint, match=told):
        inspect_weights(path)


def test_a_config_that_names_other_weights_is_refused(tmp_path):
    path = checkpoint(tmp_path / "step10", config={"model_type": "llama", "transformers_weights": "other.safetensors"})
    with pytest.raises(BadCheckpoint, match=r"transformers_weights names 'other"):
        inspect_weights(path)


@pytest.mark.parametrize(("text", "told"), [(None, "is missing"), ("{", "is not JSON"), ("[1]", "holds list")])
def test_a_config_that_is_none_is_refused(tmp_path, text, told):
    path = checkpoint(tmp_path / "step10")
    (path / "config.json").unlink() if text is None else (path / "config.json").write_text(text)
    for look in (inspect_weights, read_config, fingerprint):
        with pytest.raises(BadCheckpoint, match=rf"config\.json: {told}"):
            look(path)
