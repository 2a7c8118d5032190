"""Of a repository's files, those that a checkpoint is read from, in one form of its weights."""

from __future__ import annotations

import pytest

from workbench.checkpoints.formats import checkpoint_format, weight_files
from workbench.checkpoints.hub_candidates import format_of
from workbench.hub import RemoteFile, needed_files

BESIDE = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
BESIDE += ["vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "added_tokens.json", "chat_template.jinja"]
BESIDE += ["qwen.tiktoken", "trainer_state.json", "SHA256SUMS", "model.safetensors.sha256"]
NEVER = ["README.md", ".gitattributes", "modeling_own.py", "optimizer.pt", "scheduler.pt", "rng_state.pth", "run.log"]
NEVER += ["onnx/model.onnx", "original/consolidated.00.pth", "eval_results.json", "image.png", "training_args.bin"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BIN_SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
OTHERS = ["model.gguf", "model.onnx", "flax_model.msgpack", "tf_model.h5", "rust_model.ot"]


def needed(names):
    return [file.name for file in needed_files(RemoteFile(name, 1, name) for name in names)]


# The weights that are there, and those that are fetched.
WEIGHTS = {
    "one file": (["model.safetensors", "pytorch_model.bin", *OTHERS], ["model.safetensors"]),
    "shards": (
        [
            *SHARDS,
            "model.safetensors.index.json",
            *BIN_SHARDS,
            "pytorch_model.bin.index.json",
            "consolidated.safetensors",
        ],
        [*SHARDS, "model.safetensors.index.json"],
    ),
    "one file beside shards": (["model.safetensors", *SHARDS, "model.safetensors.index.json"], ["model.safetensors"]),
    "another name": (["weights.safetensors", "pytorch_model.bin"], ["weights.safetensors"]),
    "pickle": (["pytorch_model.bin", *OTHERS], ["pytorch_model.bin"]),
    "pickle shards": ([*BIN_SHARDS, "pytorch_model.bin.index.json"], [*BIN_SHARDS, "pytorch_model.bin.index.json"]),
    "pt": (["ckpt.pt", "optim.pt", *OTHERS], ["ckpt.pt"]),
    "gguf": (OTHERS, ["model.gguf"]),
    "adapter": (
        ["adapter_config.json", "adapter_model.safetensors"],
        ["adapter_config.json", "adapter_model.safetensors"],
    ),
    "adapter beside the model": (["model.safetensors", "adapter_model.safetensors"], ["model.safetensors"]),
    "none": ([], []),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_one_form_of_the_weights_is_needed_with_its_index_and_what_is_read_beside_it(case):
    there, fetched = WEIGHTS[case]
    assert needed([*there, *BESIDE, *NEVER]) == sorted([*fetched, *BESIDE])


def test_where_there_is_nothing_else_any_form_is_needed():
    assert needed(OTHERS[1:]) == sorted(OTHERS[1:])


@pytest.mark.parametrize("case", [case for case in WEIGHTS if case != "none"])
def test_what_is_needed_is_what_the_folder_would_be_read_from(tmp_path, case):
    there, _ = WEIGHTS[case]
    for name in there:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    files = needed_files(RemoteFile(name, 1, name) for name in [*there, "config.json"])
    assert format_of(files) == checkpoint_format(tmp_path)
    read = {file.name for file in weight_files(tmp_path) if not file.name.endswith(".index.json")}
    assert {file.name for file in files if file.is_weights} == read
