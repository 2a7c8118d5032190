"""Read the header of a GGUF file and check it against the file's size, before any tensor is read.

A GGUF file holds settings (numbers, texts and arrays under dotted names), a table of tensors, and their data in blocks.
A set of files (`name-00001-of-00003.gguf`) holds one model: the settings stand in the first.

Reference:
    The GGUF specification, github.com/ggml-org/ggml/blob/master/docs/gguf.md; names, sizes and numbers of types as in
    `gguf.constants` of the package gguf 0.19.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from workbench.checkpoints.formats import gguf_sets, weight_files
from workbench.checkpoints.own_files import own_file
from workbench.heads import BadCheckpoint

_MAGIC, _LFS = b"GGUF", b"version https://git-lfs"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Arrays longer than this are words, scores and merges of the tokenizer: their length is kept.
_LONGEST_ARRAY = 4096
_MOST_DIMENSIONS = 4
_FEW = 3
# Type: name, numbers in a block, bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip
_PLAIN = ("F32", "F16", "BF16")
# What `general.file_type` says of the whole file.
_FILE_TYPES = {
    2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S",
    22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
}  # fmt: skip


class GgufTensor(NamedTuple):
    """One tensor: its type's name, its shape as torch has it, and where its bytes lie."""

    type: str
    shape: tuple[int, ...]
    file: Path
    start: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All of a GGUF model but the data.

    `settings`: of an array of texts, and of one of more than 4,096 items, the number of items. `words`: a digest of the
    tokenizer's settings.
    """

    files: tuple[Path, ...]
    settings: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    words: str

    @property
    def architecture(self) -> str:
        """The architecture's name in GGUF."""
        return str(self.settings["general.architecture"])

    @property
    def quantisation(self) -> str:
        """The name of the file's quantisation, as Q4_K_M, else of the type of most numbers; "" for plain floats."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.type] += math.prod(tensor.shape)
        quantised = {name: size for name, size in sizes.items() if name not in _PLAIN}
        if not quantised:
            return ""
        return _FILE_TYPES.get(self.settings.get("general.file_type", -1)) or max(quantised, key=quantised.__getitem__)

    @property
    def types(self) -> dict[str, int]:
        """How many tensors are of each type, the most frequent first."""
        return dict(Counter(tensor.type for tensor in self.tensors.values()).most_common())

    def types_of_layer(self, layer: int) -> str:
        """The quantised types of a layer's tensors, the most frequent first: `Q4_K+Q6_K`; "" for plain floats."""
        of_layer = Counter(t.type for name, t in self.tensors.items() if name.startswith(f"blk.{layer}."))
        return "+".join(name for name, _ in of_layer.most_common() if name not in _PLAIN)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file, of a set of files, or of a folder with one of these.

    Raises:
        BadCheckpoint: naming the file and the reason: no GGUF, truncated, a git-lfs pointer, a part of a set missing,
            an unknown type, a tensor twice or outside of the file, several models in the folder.
    """
    files = gguf_files(path)
    return _read_files(files, tuple(_stamp(file) for file in files))


def gguf_files(path: Path) -> tuple[Path, ...]:
    """The files of the GGUF model that a file or folder names, in order.

    Raises:
        BadCheckpoint: if the folder holds several models, or a part of a set is missing.
    """
    if path.is_dir():
        sets = gguf_sets(path)
        if len(sets) > 1:
            names = ", ".join(sets[:_FEW]) + (f" and {len(sets) - _FEW} more" if len(sets) > _FEW else "")
            raise BadCheckpoint(
                f"{path}: holds {len(sets)} GGUF models ({names}), and which one counts is not known; pass the file of "
                f"one, as {path / sets[0]}"
            )
    files = tuple(weight_files(path))
    for file in files:
        if not file.exists():
            raise BadCheckpoint(f"{file}: is missing; the model has {len(files)} such files, fetch all of them")
        own_file(path if path.is_dir() else path.parent, file)
    return files


def gguf_config(path: Path) -> dict[str, object]:
    """The settings of a GGUF model under the names that config.json has for them, and all of its own under `gguf`."""
    header = read_gguf_header(path)
    architecture = header.architecture
    own = {name.removeprefix(f"{architecture}."): value for name, value in header.settings.items()}
    config: dict[str, object] = {"model_type": _MODEL_TYPES.get(architecture, architecture)}
    config |= {ours: own[name] for name, ours in _CONFIG_NAMES.items() if own.get(name) is not None}
    config.setdefault("vocab_size", header.settings.get("tokenizer.ggml.tokens"))
    prefixes = (f"{architecture}.", "tokenizer.ggml.")
    config["gguf"] = {name: value for name, value in header.settings.items() if name.startswith(prefixes)}
    if header.quantisation:
        config["dequantised_from"] = header.quantisation
    return config


_MODEL_TYPES = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
}
_CONFIG_NAMES = {
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "embedding_length": "hidden_size",
    "attention.sliding_window": "sliding_window",
    "vocab_size": "vocab_size",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}


def _stamp(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@lru_cache(maxsize=64)
def _read_files(files: tuple[Path, ...], stamps: tuple[tuple[int, int, int], ...]) -> GgufHeader:  # noqa: ARG001
    """The headers of the files as one. `stamps`: a file that was overwritten is read again."""
    parts = [_Reader(file).read() for file in files]
    first, name_of_first = parts[0], files[0]
    if "general.architecture" not in first.settings:
        raise BadCheckpoint(f"{name_of_first}: its settings name no general.architecture; fetch the file again")
    tensors: dict[str, GgufTensor] = {}
    for index, part in enumerate(parts):
        _check_part(files[index], part.settings, index, len(files))
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise BadCheckpoint(f"{files[index]}: has tensor {name} that {tensors[name].file.name} has too")
            tensors[name] = tensor
    n_listed = first.settings.get("split.tensors.count", len(tensors))
    if len(files) > 1 and n_listed != len(tensors):
        raise BadCheckpoint(
            f"{name_of_first}: its set lists {n_listed} tensors, the files hold {len(tensors)}; fetch again"
        )
    if not tensors:
        raise BadCheckpoint(f"{name_of_first}: holds no tensor; it is the vocabulary of a model alone")
    return GgufHeader(files, first.settings, tensors, first.words)


def _check_part(file: Path, settings: Mapping[str, Any], index: int, n_files: int) -> None:
    """Refuse a file that is another part, or of another number of parts, than its name says."""
    count, number = settings.get("split.count", 0), settings.get("split.no", 0)
    if (count or 1) != n_files:
        of = "one of a set" if count > 1 else "a whole model"
        raise BadCheckpoint(
            f"{file}: is {of} of {count or 1} files by its header, and {n_files} by its name; keep the names that the "
            "set was published with, as name-00001-of-00003.gguf"
        )
    if n_files > 1 and number != index:
        raise BadCheckpoint(f"{file}: is part {number + 1} by its header, {index + 1} by its name; rename it")


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


class _Part(NamedTuple):
    settings: dict[str, Any]
    tensors: dict[str, GgufTensor]
    words: str


class _Reader:
    """Reads the header of one file; whatever points beyond the file's end is a BadCheckpoint."""

    def __init__(self, file: Path) -> None:
        self._file, self._at, self._size = file, 0, file.stat().st_size
        self._words = hashlib.blake2b(digest_size=16)

    def read(self) -> _Part:
        with self._file.open("rb") as stream:
            first = stream.read(24)
            self._check_start(first)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as self._bytes:
                try:
                    return self._read()
                except (struct.error, UnicodeDecodeError) as error:
                    raise self._bad(f"its header cannot be read at byte {self._at} ({error})") from error

    def _check_start(self, first: bytes) -> None:
        if first.startswith(_LFS[:24]):
            raise BadCheckpoint(f"{self._file}: is a git-lfs pointer of {self._size} bytes; run `git lfs pull`")
        if first[:4] != _MAGIC:
            raise BadCheckpoint(
                f"{self._file}: is no GGUF file, whatever its name says: it begins with {first[:4]!r}, expected "
                f"{_MAGIC!r}; fetch the file again"
            )
        if len(first) < 24:
            raise self._bad("it ends within its first 24 bytes")
        (version,) = struct.unpack_from("<I", first, 4)
        if version & 0xFFFF == 0:
            raise BadCheckpoint(f"{self._file}: is a big-endian GGUF file, which is not read; fetch the little-endian")
        if version not in _VERSIONS:
            raise BadCheckpoint(
                f"{self._file}: is GGUF of version {version}, expected {' or '.join(map(str, _VERSIONS))}; convert it "
                "again with a current llama.cpp"
            )

    def _read(self) -> _Part:
        self._at = 8
        n_tensors, n_settings = self._unpack("QQ")
        settings: dict[str, Any] = {}
        for _ in range(n_settings):
            name, begin = self._text(), self._at
            if name in settings:
                raise self._bad(f"it has the setting {name} twice")
            settings[name] = self._value(*self._unpack("I"))
            if name.startswith("tokenizer."):
                self._words.update(name.encode() + self._bytes[begin : self._at])
        table = [self._tensor() for _ in range(n_tensors)]
        alignment = settings.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._bad(f"its alignment is {alignment!r}, expected a power of two")
        return _Part(settings, self._placed(table, alignment), self._words.hexdigest())

    def _placed(self, table: list[tuple[str, str, tuple[int, ...], int, int]], alignment: int) -> dict[str, GgufTensor]:
        """The tensors by name, after checking that they fill the rest of the file, each at the next aligned byte."""
        tensors: dict[str, GgufTensor] = {}
        start, end = _aligned(self._at, alignment), 0
        for name, kind, shape, offset, n_bytes in sorted(table, key=lambda row: row[3]):
            if name in tensors:
                raise self._bad(f"it has tensor {name} twice")
            if offset != _aligned(end, alignment):
                raise self._bad(
                    f"tensor {name} begins at byte {offset} of the data, expected {_aligned(end, alignment)}"
                )
            end = offset + n_bytes
            tensors[name] = GgufTensor(kind, shape, self._file, start + offset, n_bytes)
        if start + end > self._size:
            raise BadCheckpoint(
                f"{self._file}: has {self._size} bytes, its header says {start + end}; truncated, fetch the file again"
            )
        if self._size - (start + end) >= alignment:
            raise self._bad(f"it has {self._size} bytes, its header says {start + end}")
        return {name: tensors[name] for name, *_ in table}

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int, int]:
        name = self._text()
        (n_dimensions,) = self._unpack("I")
        if n_dimensions > _MOST_DIMENSIONS:
            raise self._bad(f"tensor {name} has {n_dimensions} dimensions, expected at most {_MOST_DIMENSIONS}")
        shape = tuple(reversed(self._unpack("Q" * n_dimensions)))  # the fastest dimension stands first in the file
        kind, offset = self._unpack("IQ")
        if kind not in TYPES:
            raise BadCheckpoint(
                f"{self._file}: tensor {name} is of type {kind}, which is no quantisation that can be read; expected "
                f"{', '.join(known for known, *_ in TYPES.values())}. Convert the model again to one of them"
            )
        type_name, block, n_bytes = TYPES[kind]
        if shape and shape[-1] % block:
            raise self._bad(f"tensor {name} has rows of {shape[-1]} numbers, no multiple of {type_name}'s {block}")
        return name, type_name, shape, offset, math.prod(shape) // block * n_bytes

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise self._bad(f"it has a setting of the unknown type {kind}")
        item, n = self._unpack("IQ")
        if item == _STRING:
            for _ in range(n):
                (length,) = self._unpack("Q")
                self._skip(length)
            return n
        if item not in _SCALARS:
            raise self._bad(f"it has an array of the unknown type {item}")
        n_bytes = struct.calcsize(_SCALARS[item])
        if n > _LONGEST_ARRAY:
            self._skip(n * n_bytes)
            return n
        return list(self._unpack(_SCALARS[item] * n))

    def _text(self) -> str:
        (length,) = self._unpack("Q")
        begin = self._at
        self._skip(length)
        return self._bytes[begin : self._at].decode("utf-8")

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self._bytes, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def _skip(self, n_bytes: int) -> None:
        if n_bytes > self._size - self._at:
            raise self._bad(f"its header names {n_bytes} bytes at byte {self._at}, and the file has {self._size}")
        self._at += n_bytes

    def _bad(self, fault: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self._file}: {fault}; truncated or damaged, fetch the file again")
