"""Check a checkpoint by its headers, before any tensor is read, and refuse what would load wrongly.

Hugging Face loads without an error: a shard outside the folder, an int8 tensor cast to float, other weights that
config.json names. All of these are refused here. Pickle files are never opened.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from workbench.checkpoints.configs import CONFIG, read_config, read_json_object
from workbench.checkpoints.formats import (
    ADAPTER_CONFIG,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    checkpoint_format,
    weight_files,
)
from workbench.checkpoints.other_contents import why_no_weights
from workbench.checkpoints.own_files import own_file
from workbench.heads import BadCheckpoint

_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
# Buffers that older releases saved: masks and positions, of any dtype.
OLD_BUFFERS = ("position_ids", "inv_freq", ".bias_mask", ".masked_bias", ".attn.bias", ".attention.bias")
_MAX_HEADER = 100_000_000
_LFS = b"version https://git-lfs"
# Weight files that transformers prefers to model.safetensors.
_DISTRIBUTED = "shard-[0-9][0-9][0-9][0-9][0-9]-model-*.safetensors"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its header describes it. `dtype` is safetensors' name (F32, BF16, ...)."""

    dtype: str
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """The contents of a checkpoint's headers.

    `n_bytes` is the size of the weight files. `dtype` is that of most parameters.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    n_parameters: int
    n_bytes: int
    dtype: str


def inspect_weights(path: Path) -> WeightsInfo:
    """Check a checkpoint folder's config.json and safetensors headers against the files; reads no tensor.

    Raises:
        BadCheckpoint: naming the file and the reason: truncated, a git-lfs pointer, a shard missing, outside the
            folder or unlisted, a tensor twice, a dtype that is no float, pickled weights, an adapter.
    """
    if not path.is_dir() or checkpoint_format(path) != "safetensors":
        raise BadCheckpoint(why_no_weights(path))
    _refuse_other_weights(path, read_config(path))
    listed = _weight_map(path)
    files = _shards(path, listed)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, tensor in _read_header(file).items():
            if name in tensors:
                raise BadCheckpoint(f"{file}: has tensor {name} that {tensors[name].file} has too")
            tensors[name] = tensor
    _refuse_disagreement(path, listed, tensors)
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS and not name.endswith(OLD_BUFFERS):
            raise BadCheckpoint(
                f"{path / tensor.file}: tensor {name} has dtype {tensor.dtype}, expected floats"
                f" ({', '.join(sorted(_FLOATS))}); quantised weights are not scored"
            )
    return weights_info(files, tensors)


def _refuse_other_weights(path: Path, config: dict[str, object]) -> None:
    """Refuse whatever makes the loader read other weights than the checked ones."""
    named = config.get("transformers_weights")
    if named is not None and named not in (SAFETENSORS, SAFETENSORS_INDEX):
        raise BadCheckpoint(f"{path / CONFIG}: transformers_weights names {named!r}, expected {SAFETENSORS}; remove it")
    if (path / ADAPTER_CONFIG).exists():
        raise BadCheckpoint(
            f"{path / ADAPTER_CONFIG}: is an adapter beside the model's weights, and which of them count is not known; "
            "move it elsewhere, or merge it into the model and save that"
        )
    if distributed := sorted(path.glob(_DISTRIBUTED)):
        raise BadCheckpoint(f"{distributed[0]}: is a distributed shard; save the model with save_pretrained instead")


def _weight_map(path: Path) -> dict[str, str] | None:
    """Tensor name to shard name from the index; None if one file holds all tensors, because that file is loaded."""
    if (path / SAFETENSORS).exists() or (path / SAFETENSORS).is_symlink():
        return None
    index = path / SAFETENSORS_INDEX
    if not index.exists():
        present = ", ".join(file.name for file in weight_files(path)[:3])
        raise BadCheckpoint(f"{index}: is missing, as is {SAFETENSORS}; found {present}")
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise BadCheckpoint(f"{index}: has no weight_map of tensor names to shards")
    for name, shard in cast("dict[str, object]", listed).items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise BadCheckpoint(
                f"{index}: tensor {name} is mapped to {shard!r}, which is not opened; expected the plain"
                " name of a .safetensors file in the same folder"
            )
    return cast("dict[str, str]", listed)


def _is_plain(name: str) -> bool:
    return name.endswith(".safetensors") and not set("/\\\0") & set(name) and not name.startswith(".")


def _shards(path: Path, listed: dict[str, str] | None) -> tuple[Path, ...]:
    names = [SAFETENSORS] if listed is None else sorted(set(listed.values()))
    for name in names:
        if not (path / name).exists():
            dangling = "is a symlink to nothing" if (path / name).is_symlink() else "is missing"
            raise BadCheckpoint(f"{path / name}: shard {dangling}; {len(names)} listed, fetch the checkpoint again")
        own_file(path, path / name)
    return tuple(path / name for name in names)


def _read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, after checking that they and the header fill the file exactly."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        if first + stream.read(len(_LFS) - 8) == _LFS:
            raise BadCheckpoint(f"{file}: is a git-lfs pointer of {size} bytes, not weights; run `git lfs pull`")
        length: int = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise BadCheckpoint(f"{file}: header length {length} does not fit the file of {size} bytes; truncated?")
        stream.seek(8)
        header = _parse_header(file, stream.read(length))
    spans = sorted(_span(file, name, entry) for name, entry in header.items())
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise BadCheckpoint(f"{file}: tensor {name} starts at byte {start} of the data, expected {end}")
        end = stop
    if 8 + length + end != size:
        raise BadCheckpoint(f"{file}: has {size} bytes, its header says {8 + length + end}; truncated or overwritten")
    return {
        name: TensorInfo(str(entry["dtype"]), tuple(cast("list[int]", entry["shape"])), file.name)
        for name, entry in header.items()
    }


def _parse_header(file: Path, content: bytes) -> dict[str, dict[str, object]]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            names = [name for name, _ in pairs]
            raise BadCheckpoint(f"{file}: header names {next(n for n in names if names.count(n) > 1)} twice")
        return parsed

    try:
        parsed: object = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{file}: header of {len(content)} bytes is not JSON: {error}") from error
    header = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    header.pop("__metadata__", None)
    if not header:
        raise BadCheckpoint(f"{file}: header names no tensor")
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise BadCheckpoint(f"{file}: header entry {name} is no object")
    return cast("dict[str, dict[str, object]]", header)


def _span(file: Path, name: str, entry: dict[str, object]) -> tuple[int, int, str]:
    """First and one past the last byte of a tensor, after checking that their number fits its shape."""
    dtype, shape, offsets = (
        entry.get("dtype"),
        _integers(entry.get("shape")),
        _integers(entry.get("data_offsets")),
    )
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise BadCheckpoint(f"{file}: header entry {name} lacks dtype, shape or data_offsets")
    if dtype in _BYTES and offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise BadCheckpoint(
            f"{file}: tensor {name} has {offsets[1] - offsets[0]} bytes, {dtype}{shape} needs"
            f" {math.prod(shape) * _BYTES[dtype]}"
        )
    return offsets[0], offsets[1], name


def _integers(value: object) -> list[int] | None:
    """The value as a list of natural numbers, if it is one."""
    if not isinstance(value, list):
        return None
    numbers = cast("list[object]", value)
    return cast("list[int]", numbers) if all(type(n) is int and n >= 0 for n in numbers) else None


def _refuse_disagreement(path: Path, listed: dict[str, str] | None, tensors: dict[str, TensorInfo]) -> None:
    """Refuse an index that gives another shard for a tensor than the files do, or lacks one."""
    if listed is None:
        return
    for name in sorted(listed.keys() | tensors.keys()):
        shard, file = listed.get(name), tensors[name].file if name in tensors else None
        if shard != file:
            raise BadCheckpoint(
                f"{path / SAFETENSORS_INDEX}: places tensor {name} in {shard or 'no shard'}, it is in {file or 'none'}"
            )


def weights_info(files: tuple[Path, ...], tensors: dict[str, TensorInfo]) -> WeightsInfo:
    """Summarise files: the number of floating-point parameters, and the dtype of most of them."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    floats = {dtype: size for dtype, size in sizes.items() if dtype in _FLOATS}
    return WeightsInfo(
        files=files,
        tensors=tensors,
        n_parameters=sum(floats.values()),
        n_bytes=sum(file.stat().st_size for file in files),
        dtype=max(floats, key=floats.__getitem__, default="none"),
    )
