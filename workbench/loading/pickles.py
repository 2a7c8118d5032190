"""Read pickled weights without running code from a pickle: `.bin`, `.pt` of a training loop, distributed (DCP).

torch's restricted reader builds tensors and plain containers and refuses all else. `loading.distributed` reads
distributed checkpoints.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from workbench.checkpoints import TensorInfo, WeightsInfo, checkpoint_format
from workbench.checkpoints.configs import read_json_object
from workbench.checkpoints.formats import HINTS, Format, weight_files
from workbench.checkpoints.own_files import own_file
from workbench.checkpoints.weight_headers import OLD_BUFFERS, weights_info
from workbench.heads import BadCheckpoint
from workbench.loading.distributed import is_zip, read_distributed, refuse_packed

READABLE: tuple[Format, ...] = ("bin", "pt", "dcp")
# Keys under which training loops save the model.
_NESTED = ("model", "state_dict", "model_state_dict", "module", "weights")
# The one file of Accelerate's and Trainer's FULL_STATE_DICT.
_FSDP_FILES = "pytorch_model_fsdp*.bin"
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError)
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The model's tensors from a checkpoint of one of the formats `READABLE`, on the CPU, named as in the files.

    Raises:
        BadCheckpoint: if the files hold anything but tensors, no model, or tensors that are no floats.
    """
    kind = checkpoint_format(path)
    if kind not in READABLE:
        raise BadCheckpoint(f"{path}: {kind} weights are not read, with --allow-pickle or without; {HINTS[kind]}")
    state = {"bin": _read_bin, "pt": _read_pt, "dcp": read_distributed}[kind](path)
    for name, tensor in state.items():
        if tensor.dtype not in _DTYPES and not name.endswith(OLD_BUFFERS):
            raise BadCheckpoint(
                f"{path}: tensor {name} has dtype {tensor.dtype}, expected floats; quantised weights are not scored"
            )
    return state


def pickled_info(path: Path, state: Mapping[str, Tensor]) -> WeightsInfo:
    """The same description of tensors in memory that `inspect_weights` gives of safetensors files."""
    files = tuple(weight_files(path))
    infos = {n: TensorInfo(_DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape), files[0].name) for n, t in state.items()}
    return weights_info(files, infos)


def _read_bin(path: Path) -> dict[str, Tensor]:
    index = path / "pytorch_model.bin.index.json"
    of_fsdp = sorted(file.name for file in path.glob(_FSDP_FILES))
    if (path / "pytorch_model.bin").is_file():
        names = ["pytorch_model.bin"]
    elif index.is_file():
        listed = read_json_object(index).get("weight_map")
        shards = cast("dict[str, object]", listed) if isinstance(listed, dict) else {}
        names = sorted({str(shard) for shard in shards.values()})
        if not names or any("/" in name or "\\" in name or not name.endswith(".bin") for name in names):
            raise BadCheckpoint(f"{index}: expected a weight_map to plain names of .bin files in the same folder")
    elif len(of_fsdp) == 1:
        names = of_fsdp
    elif of_fsdp:
        raise BadCheckpoint(
            f"{path}: {len(of_fsdp)} files may be the model ({', '.join(of_fsdp[:3])}), expected one; ranks of "
            "LOCAL_STATE_DICT are joined by the program that wrote them: save with FULL_STATE_DICT"
        )
    else:
        raise BadCheckpoint(
            f"{path}: has neither pytorch_model.bin nor {index.name}, nor one {_FSDP_FILES}; fetch the checkpoint again"
        )
    state: dict[str, Tensor] = {}
    for name in names:
        if not (path / name).is_file():
            raise BadCheckpoint(f"{path / name}: shard is missing; {len(names)} listed, fetch the checkpoint again")
        state |= _tensors(path / name, _load(own_file(path, path / name)))
    return state


def _read_pt(path: Path) -> dict[str, Tensor]:
    files = weight_files(path)
    if len(files) != 1:
        raise BadCheckpoint(
            f"{path}: {len(files)} pickled files that may be weights ({', '.join(f.name for f in files[:3])}), "
            "expected one; ranks are joined by the program that wrote them"
        )
    return _tensors(files[0], _load(own_file(path if path.is_dir() else path.parent, files[0])))


def _load(file: Path) -> Any:
    """The content of a file, read by torch's reader of tensors and plain containers.

    Raises:
        BadCheckpoint: if the file holds anything else, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            can_be_mapped = is_zip(stream)
            if can_be_mapped:
                refuse_packed(stream)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=can_be_mapped)
    except (zipfile.BadZipFile, *_UNREADABLE) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadCheckpoint(f"{file}: cannot be read as tensors alone, and nothing in it was run: {reason}") from error


def _tensors(file: Path, content: Any) -> dict[str, Tensor]:
    """The mapping of names to tensors in the content that a training loop saved."""
    for name in (None, *_NESTED):
        inner: Any = content if name is None else content.get(name) if isinstance(content, Mapping) else None
        if isinstance(inner, Mapping) and inner and all(isinstance(t, Tensor) for t in inner.values()):
            return dict(cast("Mapping[str, Tensor]", inner))
    keys = list(cast("Mapping[str, Any]", content))[:5] if isinstance(content, Mapping) else type(content).__name__
    raise BadCheckpoint(f"{file}: no mapping of names to tensors in it, nor under {', '.join(_NESTED)}; found {keys}")
