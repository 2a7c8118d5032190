"""A GGUF header is checked against the file before anything is read; every fault is refused by name."""

import shutil
import struct
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gguf_files import LLAMA, gguf, llama_tensors, write_llama, write_split
from workbench.checkpoints import architecture, find_checkpoints, fingerprint, parse_name, read_config
from workbench.checkpoints.gguf_headers import TYPES, gguf_files, read_gguf_header
from workbench.heads import BadCheckpoint, NoCheckpoints


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("gguf") / "model.gguf", settings={"general.file_type": 3})


def damaged(whole, path, change):
    content = bytearray(whole.read_bytes())
    path.write_bytes(bytes(change(content) or content))
    return path


def test_sizes_of_blocks_are_those_of_the_package_gguf():
    sizes = {t.value: (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType if t.value in TYPES}
    assert sizes == TYPES


def test_a_header_says_what_the_package_gguf_reads(whole):
    header, reader = read_gguf_header(whole), gguf.GGUFReader(whole)
    assert header.architecture == "llama"
    assert header.quantisation == "Q4_1"
    for tensor in reader.tensors:
        own = header.tensors[tensor.name]
        assert own.type == tensor.tensor_type.name
        assert list(reversed(own.shape)) == tensor.shape.tolist()
        assert (own.start, own.n_bytes) == (tensor.data_offset, tensor.n_bytes)
    assert {name: header.settings[f"llama.{name}"] for name in LLAMA} == pytest.approx(LLAMA)


def test_the_quantisation_is_named_by_the_file_else_by_most_numbers_and_floats_have_none(tmp_path):
    mixed = write_llama(tmp_path / "a.gguf", lambda name: "Q6_K" if "ffn_down" in name else "Q4_0")
    assert read_gguf_header(mixed).quantisation == "Q4_0"
    assert read_gguf_header(mixed).types_of_layer(1) == "Q4_0+Q6_K"
    labelled = write_llama(tmp_path / "b.gguf", "Q4_0", settings={"general.file_type": 15})
    assert read_gguf_header(labelled).quantisation == "Q4_K_M"
    assert read_gguf_header(write_llama(tmp_path / "c.gguf", "F16")).quantisation == ""


@settings(max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(whole, share):
    cut = whole.with_name("cut.gguf")
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(BadCheckpoint, match=r"cut\.gguf: "):
        read_gguf_header(cut)


@settings(max_examples=60)
@given(at=st.integers(0, 1 << 12), byte=st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_read_and_never_hangs(whole, at, byte):
    flipped = whole.with_name("flipped.gguf")
    content = bytearray(whole.read_bytes())
    content[at] = byte
    flipped.write_bytes(content)
    with suppress(BadCheckpoint):
        assert len(read_gguf_header(flipped).tensors) == len(llama_tensors())


def put(at, layout, value):
    return lambda content: struct.pack_into(layout, content, at, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(0, "4s", b"GGML"), r"is no GGUF file, whatever its name says: it begins with b'GGML'"),
        (put(4, "<I", 1), "is GGUF of version 1, expected 2 or 3"),
        (put(4, ">I", 3), "is a big-endian GGUF file"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
        (put(8, "<Q", 1 << 60), "truncated or damaged"),
        (put(16, "<Q", 1 << 60), "truncated or damaged"),
        (put(24, "<Q", 1 << 62), "names 4611686018427387904 bytes"),
    ],
)
def test_a_damaged_header_is_refused_with_the_reason(whole, tmp_path, change, message):
    with pytest.raises(BadCheckpoint, match=message):
        read_gguf_header(damaged(whole, tmp_path / "bad.gguf", change))


def test_a_truncated_file_is_refused_with_both_sizes(whole, tmp_path):
    path = damaged(whole, tmp_path / "cut.gguf", lambda content: content[:-1])
    size = whole.stat().st_size
    with pytest.raises(BadCheckpoint, match=rf"has {size - 1} bytes, its header says {size}; truncated"):
        read_gguf_header(path)


def table_entry(content, name):
    """Where the table's entry of a tensor has its type; the offset follows."""
    at = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    (n,) = struct.unpack_from("<I", content, at)
    return at + 4 + 8 * n


def test_an_unknown_quantisation_is_refused_with_its_tensor_and_what_is_known(whole, tmp_path):
    def change(content):
        struct.pack_into("<I", content, table_entry(content, "blk.1.attn_q.weight"), 9)  # Q8_1

    with pytest.raises(BadCheckpoint, match=r"tensor blk\.1\.attn_q\.weight is of type 9.*expected F32, .*Q4_K"):
        read_gguf_header(damaged(whole, tmp_path / "bad.gguf", change))


def test_tensors_that_overlap_or_have_one_name_are_refused(whole, tmp_path):
    def overlap(content):
        struct.pack_into("<Q", content, table_entry(content, "blk.1.attn_q.weight") + 4, 0)

    with pytest.raises(BadCheckpoint, match=r"tensor blk\.1\.attn_q\.weight begins at byte 0 of the data, expected"):
        read_gguf_header(damaged(whole, tmp_path / "a.gguf", overlap))
    twice = damaged(whole, tmp_path / "b.gguf", lambda c: c.replace(b"blk.1.attn_k.weight", b"blk.1.attn_v.weight"))
    with pytest.raises(BadCheckpoint, match=r"has tensor blk\.1\.attn_v\.weight twice"):
        read_gguf_header(twice)


def test_a_file_that_is_overwritten_is_read_again(tmp_path):
    path = write_llama(tmp_path / "model.gguf", "Q4_0")
    assert read_gguf_header(path).quantisation == "Q4_0"
    write_llama(path, "Q8_0")
    assert read_gguf_header(path).quantisation == "Q8_0"


def test_a_set_of_files_is_one_model_by_any_of_its_names(tmp_path):
    first = write_split(tmp_path / "set")
    second = first.with_name("model-00002-of-00003.gguf")
    headers = [read_gguf_header(path) for path in (first, second, tmp_path / "set")]
    assert headers[0] == headers[1] == headers[2]
    assert set(headers[0].tensors) == set(llama_tensors())
    assert len(headers[0].files) == 3


def test_a_set_with_a_part_missing_misnamed_or_of_another_set_is_refused(tmp_path):
    first = write_split(tmp_path / "a")
    first.with_name("model-00002-of-00003.gguf").unlink()
    with pytest.raises(BadCheckpoint, match=r"model-00002-of-00003\.gguf: is missing; the model has 3 such files"):
        read_gguf_header(first)
    with pytest.raises(BadCheckpoint, match="is part 2 by its header, 1 by its name"):
        read_gguf_header(write_split(tmp_path / "b", first=1))
    with pytest.raises(BadCheckpoint, match="its set lists 5 tensors, the files hold 21"):
        read_gguf_header(write_split(tmp_path / "c", n_tensors=5))
    alone = shutil.copy(write_split(tmp_path / "d"), tmp_path / "alone.gguf")
    with pytest.raises(BadCheckpoint, match=r"is one of a set of 3 files by its header, and 1 by its name"):
        read_gguf_header(Path(alone))


def test_a_folder_with_several_models_is_refused_with_the_names_and_one_with_an_encoder_is_read(tmp_path):
    for name in ("a-Q4_1.gguf", "a-Q8_0.gguf"):
        write_llama(tmp_path / "two" / name)
    for refuse, error in ((gguf_files, BadCheckpoint), (find_checkpoints, NoCheckpoints)):
        with pytest.raises(error, match=r"holds 2 GGUF models \(a-Q4_1\.gguf, a-Q8_0\.gguf\).*pass the file of one"):
            refuse(tmp_path / "two")
    model = write_llama(tmp_path / "one" / "model.gguf")
    (tmp_path / "one" / "mmproj-model.gguf").write_bytes(b"an image encoder")
    assert gguf_files(tmp_path / "one") == (model,)


def test_a_link_out_of_the_folder_is_refused(whole, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.gguf").symlink_to(whole)
    with pytest.raises(BadCheckpoint, match="is a symlink to"):
        read_gguf_header(tmp_path / "in")


def test_steps_are_read_from_names_of_files_with_quantisations_and_parts():
    assert parse_name("step1000.gguf").step == 1000
    assert parse_name("model-step2000-Q4_K_M.gguf").step == 2000
    assert parse_name("step500-IQ2_XXS-00001-of-00003.gguf").step == 500
    assert parse_name("checkpoint-100.Q8_0.gguf").step == 100
    for name in ("SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf", "llama-3.2-1b-f16.gguf"):
        assert not parse_name(name).gives_position
        assert parse_name(name).doubts == ()


def test_files_named_by_steps_are_a_series_in_their_order_and_a_set_is_one_of_them(tmp_path):
    for step in (1000, 200):
        write_llama(tmp_path / f"step{step}-Q4_1.gguf", seed=step)
    write_split(tmp_path, name="step500")
    write_llama(tmp_path / "notes.gguf")
    series = find_checkpoints(tmp_path)
    assert [c.step for c in series.checkpoints] == [200, 500, 1000]
    assert {c.format for c in series.checkpoints} == {"gguf"}
    assert series.ignored == {"notes.gguf": "a bare GGUF file, and its name gives no step; pass the file itself"}


def test_the_configuration_has_the_names_of_config_json_and_the_quantisation(whole):
    config = read_config(whole)
    assert config["model_type"] == "llama"
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]) == (2, 4, 2)
    assert config["dequantised_from"] == "Q4_1"
    assert architecture(whole)["quantisation"] == '"Q4_1"'
    assert architecture(whole)["n_layers"] == "2"


def test_fingerprints_tell_weights_and_settings_apart(tmp_path):
    a = fingerprint(write_llama(tmp_path / "a.gguf"))
    other_weights = fingerprint(write_llama(tmp_path / "b.gguf", seed=1))
    assert a.weights != other_weights.weights
    assert a.config == other_weights.config
    assert a.config != fingerprint(write_llama(tmp_path / "c.gguf", settings={"llama.rope.freq_base": 5e5})).config
    copy = Path(shutil.copy(tmp_path / "a.gguf", tmp_path / "another-name.gguf"))
    assert fingerprint(copy) == a


def test_headers_are_read_without_torch_and_without_the_package_gguf(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    read_gguf_header(whole)
    assert np.prod(read_gguf_header(whole).tensors["output.weight"].shape) == 96 * 256
