"""Detect the format of a checkpoint folder by its file names, list its weight files, and say how to convert it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

Format = Literal["safetensors", "bin", "pt", "dcp", "deepspeed", "megatron", "adapter", "gguf", "none"]

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
DCP_INDEX = ".metadata"
ADAPTER_CONFIG = "adapter_config.json"
# Weights of no model, or in no form that is read, with --allow-pickle or without.
UNREAD: tuple[Format, ...] = ("adapter", "none")

_GGUF = ".gguf"
_GGUF_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
# The image encoder of a multimodal model, which llama.cpp keeps in a file of its own.
_GGUF_ENCODER = "mmproj"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_ADAPTER = re.compile(r"adapter_model\.(safetensors|bin)|adapter.*\.safetensors")
_HF_PICKLE = re.compile(r"pytorch_model.*\.bin(\.index\.json)?")
# Files that are saved beside the weights.
_NO_WEIGHTS = re.compile(
    r"(optim|scheduler|scaler|rng|random_states|training_args|sampler|dataloader|common|trainer).*"
    r"|.*optim_states"
)
_MEGATRON_RANK = re.compile(r"mp_rank_\d\d(_\d+)*")

_SAVE = "then AutoModelForCausalLM.from_config(config), load_state_dict, save_pretrained"
HINTS: dict[Format, str] = {
    "safetensors": "",
    "bin": "pass --allow-pickle (tensors alone are read), or convert: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)",
    "pt": "put it into a folder with its config.json and pass --allow-pickle (tensors alone are read), or convert: "
    f"torch.load(FILE, weights_only=True), {_SAVE}",
    "dcp": "pass --allow-pickle with a config.json in the folder, or convert: "
    f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR OUT.pt, {_SAVE}",
    "deepspeed": "convert: python zero_to_fp32.py DIR OUT --safe_serialization (it lies in DIR)",
    "megatron": "convert to safetensors with Megatron-LM's tools/checkpoint/convert.py or Megatron Bridge",
    "adapter": "merge it into its model: "
    "peft.AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OUT)",
    "gguf": "",
    "none": "",
}


def checkpoint_format(path: Path) -> Format:
    """The format of a checkpoint folder or file; "none" if no file name is that of weights.

    Safetensors have precedence over all other files, because they are what is loaded.
    """
    if not path.is_dir():
        return "pt" if path.suffix in _PICKLES else "gguf" if path.suffix == _GGUF else "none"
    files, folders = _listing(path)
    if ADAPTER_CONFIG in files:
        adapters = {name for name in files if _ADAPTER.fullmatch(name)}
        if not any(name.endswith(".safetensors") or _HF_PICKLE.fullmatch(name) for name in files - adapters):
            return "adapter"
    if any(
        name.endswith(".safetensors") or name == SAFETENSORS_INDEX for name in files - {"adapter_model.safetensors"}
    ):
        return "safetensors"
    if any(_HF_PICKLE.fullmatch(name) for name in files):
        return "bin"
    ranks = [name for name in folders if _MEGATRON_RANK.fullmatch(name)]
    if ranks or "latest_checkpointed_iteration.txt" in files or (_is_dcp(files) and "common.pt" in files):
        return "megatron"
    if _is_deepspeed(files) or any(
        name.startswith("global_step") and _is_deepspeed(_listing(path / name)[0]) for name in folders
    ):
        return "deepspeed"
    if _is_dcp(files) or any(_is_dcp(_listing(path / name)[0]) for name in folders):
        return "dcp"
    if any(_is_pickled_weights(name) for name in files):
        return "pt"
    return "gguf" if any(map(_is_gguf, files)) else "none"


def weight_files(path: Path) -> list[Path]:
    """Every file that holds weights, in a stable order. The fingerprint covers these files."""
    if not path.is_dir():
        return _set_of(path)
    kind = checkpoint_format(path)
    names = sorted(_listing(path)[0])
    if kind == "safetensors":
        if SAFETENSORS in names:
            return [path / SAFETENSORS]
        shards = [name for name in names if _SHARD.fullmatch(name)]
        return [path / name for name in shards or names if name.endswith(".safetensors")]
    if kind == "bin":
        return [path / name for name in names if _HF_PICKLE.fullmatch(name)]
    if kind == "pt":
        return [path / name for name in names if _is_pickled_weights(name)]
    if kind == "adapter":
        return [path / name for name in names if _ADAPTER.fullmatch(name)]
    if kind == "gguf":
        return [file for name in gguf_sets(path) for file in _set_of(path / name)]
    if kind == "none":
        return []
    endings = (*_PICKLES, ".distcp")
    return sorted(f for f in path.rglob("*") if (f.suffix in endings or f.name == DCP_INDEX) and f.is_file())


def gguf_split(name: str) -> tuple[str, int, int] | None:
    """Stem, number from 1, and how many there are, of one of a set of GGUF files; None for another file."""
    match = _GGUF_PART.fullmatch(name)
    return None if match is None else (match[1], int(match[2]), int(match[3]))


def gguf_sets(folder: Path) -> list[str]:
    """The GGUF models in a folder: the names of their files, of a set of files that of the first."""
    names: dict[str, None] = {}
    for name in sorted(filter(_is_gguf, _listing(folder)[0])):
        split = gguf_split(name)
        names[name if split is None else f"{split[0]}-00001-of-{split[2]:05d}{_GGUF}"] = None
    return list(names)


def weights_size(path: Path) -> int:
    """Bytes of the weight files that exist."""
    return sum(file.stat().st_size for file in weight_files(path) if file.exists())


def _listing(path: Path) -> tuple[set[str], set[str]]:
    """Names of files and of folders; both empty if the folder may not be listed."""
    files: set[str] = set()
    folders: set[str] = set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).add(entry.name)
    except PermissionError:
        return set(), set()
    return files, folders


def _is_gguf(name: str) -> bool:
    return name.endswith(_GGUF) and not name.startswith(_GGUF_ENCODER)


def _set_of(file: Path) -> list[Path]:
    """The files that hold one model: of a set of GGUF files all, whether they exist or not; else the file itself."""
    split = gguf_split(file.name)
    if split is None:
        return [file]
    stem, _, n = split
    return [file.parent / f"{stem}-{i:05d}-of-{n:05d}{_GGUF}" for i in range(1, n + 1)]


def _is_dcp(files: set[str]) -> bool:
    return DCP_INDEX in files or any(name.endswith(".distcp") for name in files)


def _is_deepspeed(files: set[str]) -> bool:
    return any(name.endswith("_model_states.pt") or "zero_pp_rank_" in name for name in files)


def _is_pickled_weights(name: str) -> bool:
    stem, ending = os.path.splitext(name)
    return ending in _PICKLES and _NO_WEIGHTS.fullmatch(stem) is None
