"""Distributed checkpoints (DCP): the index is a pickle that torch itself reads without restriction; here it is not.

The index is read by an unpickler that knows the classes such an index is made of by their full names, and nothing is
called but they. What it says is then looked over: file names are plain and the files the folder's own, nothing is
packed, and the tensors fit the files.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from workbench.checkpoints.formats import DCP_INDEX
from workbench.checkpoints.own_files import own_file
from workbench.heads import BadCheckpoint
from workbench.loading.archives import is_zip, refuse_packed

_NO_MODEL = ("optim", "lr_scheduler", "scheduler", "dataloader", "train_state", "rng", "scaler")
_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_PARTS_OF_AN_INDEX = frozenset(
    {
        *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
        *((_METADATA, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        *((_FILES, name) for name in ("_StorageInfo", "_StoragePrefix")),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "Path")),
    }
)


def read_distributed(path: Path) -> dict[str, Tensor]:
    """The model's tensors of a distributed checkpoint in this folder or one of its own, on the CPU.

    Raises:
        BadCheckpoint: if the index is none, or its tensors cannot be read.
    """
    folder = path if (path / DCP_INDEX).is_file() else next((f.parent for f in path.glob(f"*/{DCP_INDEX}")), path)
    metadata = _read_index(path, folder / DCP_INDEX)
    tensors = {
        name: entry
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith(_NO_MODEL)
    }
    if not tensors:
        raise BadCheckpoint(f"{folder / DCP_INDEX}: lists no tensors of a model")
    try:
        _refuse_misfit(path, folder, metadata, tensors)
    except (AttributeError, TypeError) as error:
        raise BadCheckpoint(f"{folder / DCP_INDEX}: its entries are not those of a checkpoint: {error}") from error
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in tensors.items()}
    try:
        load(cast("dict[str, Any]", state), storage_reader=_Reader(folder, metadata), no_dist=True)
    except (CheckpointException, OSError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[-300:]
        raise BadCheckpoint(f"{folder}: its tensors cannot be read: {reason}") from error
    return state


def _read_index(path: Path, index: Path) -> Metadata:
    try:
        metadata = _IndexUnpickler(io.BytesIO(own_file(path, index).read_bytes())).load()
    except (pickle.UnpicklingError, OSError, EOFError, AttributeError, ImportError, ValueError, TypeError) as error:
        raise BadCheckpoint(f"{index}: is not the index of a distributed checkpoint: {error}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise BadCheckpoint(f"{index}: is not the index of a distributed checkpoint: holds {type(metadata).__name__}")
    return metadata


def _refuse_misfit(path: Path, folder: Path, metadata: Metadata, tensors: dict[str, TensorStorageMetadata]) -> None:
    """Refuse an index that sends its reader elsewhere, or for more than the files hold."""
    index = folder / DCP_INDEX
    names: set[str] = set()
    for stored in metadata.storage_data.values():
        name = stored.relative_path
        if not isinstance(name, str) or Path(name).name != name:
            raise BadCheckpoint(f"{index}: names the file {name!r}, which is not opened; expected a plain name")
        if getattr(stored, "transform_descriptors", None):
            raise BadCheckpoint(f"{index}: {name} is packed ({stored.transform_descriptors}); save it without")
        names.add(name)
    held = sum(own_file(path, folder / name).stat().st_size for name in names if (folder / name).exists())
    wanted = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in tensors.values())
    if wanted > held:
        raise BadCheckpoint(f"{folder}: its tensors cannot be read: they take {wanted} bytes, its files have {held}")


class _Reader(FileSystemReader):
    """Reads by an index that has been looked over, and nothing that is packed."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        if self._metadata.storage_meta is None:
            self._metadata.storage_meta = StorageMeta()
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata

    def _slice_file(self, file: Any, sinfo: Any) -> Any:
        file.seek(sinfo.offset)
        kept = io.BytesIO(file.read(max(0, sinfo.length)))
        if is_zip(kept):
            refuse_packed(kept)
        return kept


class _IndexUnpickler(pickle.Unpickler):
    """Knows what the index of a DCP checkpoint is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        # Full names alone: a dotted one, as protocol 4 allows, would reach into a class for its functions.
        if is_dtype or (module, name) in _PARTS_OF_AN_INDEX:
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
