"""Read pickled weights without running what a pickle may hold: `.bin`, `.pt` of a training loop, distributed (DCP).

torch's own restricted reader builds tensors and plain containers and refuses all else. The index of a DCP checkpoint is
a pickle that torch itself reads without restriction; here it is first read by an unpickler that knows only the classes
such an index is made of.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from workbench.checkpoints import TensorInfo, WeightsInfo, checkpoint_format
from workbench.checkpoints.configs import read_json_object
from workbench.checkpoints.formats import DCP_INDEX, HINTS, Format, weight_files
from workbench.checkpoints.weights import OLD_BUFFERS, weights_info
from workbench.heads import BadCheckpoint

READABLE: tuple[Format, ...] = ("bin", "pt", "dcp")
# Where training loops put the model among the rest, and what wrappers write before each name.
_NESTED = ("model", "state_dict", "model_state_dict", "module", "weights")
_PREFIXES = ("", "module.", "_orig_mod.", "_forward_module.", "model.", "model.module.", "model._orig_mod.")
_NO_MODEL = ("optim", "lr_scheduler", "scheduler", "dataloader", "train_state", "rng", "scaler")
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def read_pickled(path: Path, expected: Iterable[str]) -> dict[str, Tensor]:
    """The model's tensors from a checkpoint of one of the formats `READABLE`, on the CPU.

    `expected` are the model's own names: they say which prefix of a wrapper is to be taken off.

    Raises:
        BadCheckpoint: if the files cannot be read as tensors alone, hold no model, or tensors that are no floats.
    """
    kind = checkpoint_format(path)
    if kind not in READABLE:
        raise BadCheckpoint(f"{path}: {kind} weights are not read, with --allow-pickle or without; {HINTS[kind]}")
    state = {"bin": _read_bin, "pt": _read_pt, "dcp": _read_dcp}[kind](path)
    state = _without_prefix(state, set(expected))
    for name, tensor in state.items():
        if tensor.dtype not in _DTYPES and not name.endswith(OLD_BUFFERS):
            raise BadCheckpoint(
                f"{path}: tensor {name} has dtype {tensor.dtype}, expected floats; quantised weights are not scored"
            )
    return state


def pickled_info(path: Path, state: Mapping[str, Tensor]) -> WeightsInfo:
    """What `inspect_weights` tells of safetensors, of tensors in memory."""
    files = tuple(weight_files(path))
    named = {n: TensorInfo(_DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape), files[0].name) for n, t in state.items()}
    return weights_info(files, named)


def _read_bin(path: Path) -> dict[str, Tensor]:
    index = path / "pytorch_model.bin.index.json"
    if (path / "pytorch_model.bin").is_file():
        names = ["pytorch_model.bin"]
    elif index.is_file():
        listed = read_json_object(index).get("weight_map")
        shards = cast("dict[str, object]", listed) if isinstance(listed, dict) else {}
        names = sorted({str(shard) for shard in shards.values()})
        if not names or any("/" in name or "\\" in name or not name.endswith(".bin") for name in names):
            raise BadCheckpoint(f"{index}: expected a weight_map to plain names of .bin files in the same folder")
    else:
        raise BadCheckpoint(f"{path}: has neither pytorch_model.bin nor {index.name}")
    state: dict[str, Tensor] = {}
    for name in names:
        if not (path / name).is_file():
            raise BadCheckpoint(f"{path / name}: shard is missing; {len(names)} listed, fetch the checkpoint again")
        state |= _tensors(path / name, _load(path / name))
    return state


def _read_pt(path: Path) -> dict[str, Tensor]:
    files = weight_files(path)
    if len(files) != 1:
        raise BadCheckpoint(
            f"{path}: {len(files)} pickled files that may be weights ({', '.join(f.name for f in files[:3])}), "
            "expected one; ranks are joined by the program that wrote them"
        )
    return _tensors(files[0], _load(files[0]))


def _load(file: Path) -> Any:
    """What the file holds, by torch's reader of tensors and plain containers.

    Raises:
        BadCheckpoint: if it holds anything else, or is no such file.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadCheckpoint(f"{file}: cannot be read as tensors alone, and nothing in it was run: {reason}") from error


def _is_zip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _tensors(file: Path, held: Any) -> dict[str, Tensor]:
    """The mapping of names to tensors in what a training loop saved."""
    for name in (None, *_NESTED):
        inner: Any = held if name is None else held.get(name) if isinstance(held, Mapping) else None
        if isinstance(inner, Mapping) and inner and all(isinstance(t, Tensor) for t in inner.values()):
            return dict(cast("Mapping[str, Tensor]", inner))
    found = list(cast("Mapping[str, Any]", held))[:5] if isinstance(held, Mapping) else type(held).__name__
    raise BadCheckpoint(f"{file}: no mapping of names to tensors in it, nor under {', '.join(_NESTED)}; found {found}")


def _without_prefix(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Without the wrapper's prefix under which most names are the model's own."""
    candidates = [{n.removeprefix(p): t for n, t in state.items() if n.startswith(p)} for p in _PREFIXES]
    best = max(candidates, key=lambda c: len(c.keys() & expected))
    lost = len(state) - len(best)
    return best if not lost else state


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes that the index of a DCP checkpoint is made of, and no other."""

    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    _OTHERS = frozenset(
        {
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
            ("pathlib", "Path"),
            ("builtins", "getattr"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        is_class_of_index = module in self._MODULES and name.lstrip("_")[:1].isupper()
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_class_of_index or is_dtype or ((module, name) in self._OTHERS and name != "getattr"):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _member_of_enum
        raise pickle.UnpicklingError(f"the index names {module}.{name}")


def _member_of_enum(owner: Any, name: str) -> Any:
    """How older Pythons pickle a member of a nested enum; no other attribute is looked up."""
    found = vars(owner).get(name) if isinstance(owner, type) else None
    if not isinstance(found, type):
        raise pickle.UnpicklingError(f"the index asks for attribute {name} of {owner!r}")
    return found


def _read_dcp(path: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    folder = path if (path / DCP_INDEX).is_file() else next((f.parent for f in path.glob(f"*/{DCP_INDEX}")), path)
    index = folder / DCP_INDEX
    try:
        metadata = _IndexUnpickler(io.BytesIO(index.read_bytes())).load()
    except (pickle.UnpicklingError, OSError, EOFError, AttributeError, ImportError, ValueError, TypeError) as error:
        raise BadCheckpoint(f"{index}: is not the index of a distributed checkpoint: {error}") from error
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "size") and not name.startswith(_NO_MODEL)
    }
    if not tensors:
        raise BadCheckpoint(f"{index}: lists no tensors of a model")
    try:
        load(cast("dict[str, Any]", tensors), storage_reader=FileSystemReader(folder), no_dist=True)
    except (CheckpointException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise BadCheckpoint(f"{folder}: its tensors cannot be read: {reason}") from error
    return tensors
