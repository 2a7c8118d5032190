"""Read distributed checkpoints (DCP) without running code from their index, a pickle that torch reads unrestricted.

The unpickler knows the classes of such an index by their full names and refuses all others. The content is then
checked: file names are plain and the files in the folder itself, the tensors fit the files, and nothing is compressed.
torch stores tensors as they are, so that a compressed archive is a trap: small on disk and too large in memory.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from workbench.checkpoints.formats import DCP_INDEX
from workbench.checkpoints.own_files import own_file
from workbench.heads import BadCheckpoint

_ZIP = b"PK\x03\x04"
# Prefixes of entries that are no weights of the model.
_NO_MODEL = ("optim", "lr_scheduler", "scheduler", "dataloader", "train_state", "rng", "scaler")
_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_INDEX_CLASSES = frozenset(
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
    """The model's tensors of a distributed checkpoint in this folder or a subfolder, on the CPU.

    Raises:
        BadCheckpoint: if the index is not that of a checkpoint, or its tensors cannot be read.
    """
    folder, metadata, tensors = _model_of(path)
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


def _model_of(path: Path) -> tuple[Path, Metadata, dict[str, TensorStorageMetadata]]:
    """The folder whose index lists tensors of a model, its index and these.

    Optimizers and schedulers have folders of their own beside the model's (`optimizer_0`), or names of their own in it.
    """
    own = path / DCP_INDEX
    indices = [own] if own.is_file() else sorted(path.glob(f"*/{DCP_INDEX}"))
    indices = [index for index in indices if index == own or not index.parent.name.startswith(_NO_MODEL)] or indices
    if not indices:
        raise BadCheckpoint(f"{own}: is missing, so that its .distcp files cannot be read; fetch the checkpoint again")
    models: list[tuple[Path, Metadata, dict[str, TensorStorageMetadata]]] = []
    for index in indices:
        metadata = _read_index(path, index)
        tensors = {
            name: entry
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not name.startswith(_NO_MODEL)
        }
        if tensors:
            models.append((index.parent, metadata, tensors))
    if not models:
        raise BadCheckpoint(f"{indices[0]}: lists no tensors of a model")
    if len(models) > 1:
        names = ", ".join(folder.name for folder, _, _ in models)
        raise BadCheckpoint(
            f"{path}: {len(models)} of its folders may be the model ({names}); move the others elsewhere"
        )
    return models[0]


def is_zip(stream: io.BufferedIOBase) -> bool:
    """Whether a stream begins as a zip archive; it is at its beginning, before and after."""
    start = stream.read(len(_ZIP))
    stream.seek(0)
    return start == _ZIP


def refuse_packed(stream: io.BufferedIOBase) -> None:
    """Refuse an archive with compressed entries; the stream is at its beginning, before and after.

    Raises:
        ValueError: naming the first such entry.
        BadZipFile: if the stream is no archive.
    """
    with zipfile.ZipFile(cast("IO[bytes]", stream)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(
                    f"{entry.filename} takes {entry.compress_size} bytes and would become {entry.file_size}; torch "
                    "packs nothing"
                )
    stream.seek(0)


def _read_index(path: Path, index: Path) -> Metadata:
    try:
        metadata = _IndexUnpickler(io.BytesIO(own_file(path, index).read_bytes())).load()
    except (pickle.UnpicklingError, OSError, EOFError, AttributeError, ImportError, ValueError, TypeError) as error:
        raise BadCheckpoint(f"{index}: is not the index of a distributed checkpoint: {error}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise BadCheckpoint(f"{index}: is not the index of a distributed checkpoint: holds {type(metadata).__name__}")
    return metadata


def _refuse_misfit(path: Path, folder: Path, metadata: Metadata, tensors: dict[str, TensorStorageMetadata]) -> None:
    """Refuse an index that names other files than the folder's own, or more bytes than they hold."""
    index = folder / DCP_INDEX
    names: set[str] = set()
    for stored in metadata.storage_data.values():
        name = stored.relative_path
        if not isinstance(name, str) or Path(name).name != name:
            raise BadCheckpoint(f"{index}: names the file {name!r}, which is not opened; expected a plain name")
        if getattr(stored, "transform_descriptors", None):
            raise BadCheckpoint(f"{index}: {name} is packed ({stored.transform_descriptors}); save it without")
        names.add(name)
    present = sum(own_file(path, folder / name).stat().st_size for name in names if (folder / name).exists())
    needed = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in tensors.values())
    if needed > present:
        raise BadCheckpoint(f"{folder}: its tensors cannot be read: they take {needed} bytes, its files have {present}")


class _Reader(FileSystemReader):
    """torch's reader with an index that has been checked; it refuses compressed entries."""

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
        entry = io.BytesIO(file.read(max(0, sinfo.length)))
        if is_zip(entry):
            refuse_packed(entry)
        return entry


class _IndexUnpickler(pickle.Unpickler):
    """Unpickles the classes of a DCP index and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        # Undotted names only: a dotted name, as protocol 4 allows, would reach a function inside a class.
        if is_dtype or (module, name) in _INDEX_CLASSES:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _member_of_enum
        raise pickle.UnpicklingError(f"the index names {module}.{name}")


def _member_of_enum(owner: Any, name: str) -> Any:
    """The nested class that older Pythons pickle as an attribute of its owner; other attributes are refused."""
    member = vars(owner).get(name) if isinstance(owner, type) else None
    if not isinstance(member, type):
        raise pickle.UnpicklingError(f"the index asks for attribute {name} of {owner!r}")
    return member
