"""Digests of what a checkpoint is: the bytes of its weights, and its config in canonical form.

blake2b with 128 bits. A 13 GB checkpoint takes about 20 s to read, so a cache keeps each file's digest for as
long as its size, modification time, inode and first bytes stay the same. Time enters only there, never into a
digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, cast

from workbench.atomic import replace_file
from workbench.checkpoints.configs import read_config
from workbench.checkpoints.formats import weight_files
from workbench.checkpoints.own_files import own_file
from workbench.heads import BadCheckpoint

_BLOCK = 4 << 20
_HEAD = 64 << 10
_SAMPLE = 4 << 10
_N_SAMPLES = 16
# Written by whoever saved the file last; the same model with or without them.
_NO_MODEL = ("_name_or_path", "transformers_version")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Hexadecimal digests, 32 digits each, of a checkpoint's weight files and of its config.json."""

    weights: str
    config: str


def fingerprint(checkpoint_path: Path, cache: Path | None = None) -> Fingerprint:
    """Digest a checkpoint's weights and config; `cache` is a JSON file that is read and replaced.

    The weights' digest is that of the files' own digests in order, whatever the files are called. The
    config's is of its JSON with sorted keys, without `_name_or_path` and `transformers_version`.

    Raises:
        BadCheckpoint: if there are no weights or no config.json, or one of them is a link out of the folder.
        StoreNotWritable: if the cache cannot be written.
    """
    files = [own_file(_folder(checkpoint_path), file) for file in weight_files(checkpoint_path) if file.exists()]
    if not files:
        raise BadCheckpoint(f"{checkpoint_path}: holds no weights to fingerprint")
    config = {key: value for key, value in read_config(checkpoint_path).items() if key not in _NO_MODEL}
    known = {} if cache is None else _read_cache(cache)
    keys = {file: _cache_key(file) for file in files}
    digests = {key: known.get(key) or _file_digest(file) for file, key in keys.items()}
    if cache is not None and not digests.items() <= known.items():
        _write_cache(cache, digests)
    weights = _blake2b("".join(digests[keys[file]] for file in files).encode())
    return Fingerprint(weights=weights, config=_blake2b(_canonical(config)))


def same_weights(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same weight files, byte for byte and in order.

    Different sizes or a different block among a few settle it; only equal ones are read to the end.
    """
    files_a, files_b = weight_files(a), weight_files(b)
    if len(files_a) != len(files_b) or not files_a or not all(file.exists() for file in (*files_a, *files_b)):
        return False
    if not all(_is_own(_folder(path), file) for path, files in ((a, files_a), (b, files_b)) for file in files):
        return False
    pairs = [pair for pair in zip(files_a, files_b, strict=True) if not os.path.samefile(*pair)]
    return all(all(map(same, pairs)) for same in (_same_size, _same_samples, _same_bytes))


def _folder(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def _is_own(folder: Path, file: Path) -> bool:
    try:
        own_file(folder, file)
    except BadCheckpoint:
        return False
    return True


def _blake2b(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _canonical(config: dict[str, object]) -> bytes:
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _file_digest(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        for block in _blocks(stream):
            digest.update(block)
    return digest.hexdigest()


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block


def _cache_key(file: Path) -> str:
    with file.open("rb") as stream:
        head = _blake2b(stream.read(_HEAD))
    stat = file.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}-{head}"


def _read_cache(cache: Path) -> dict[str, str]:
    """The cached digests; none where the file cannot be read, as they can be computed again."""
    try:
        parsed: object = json.loads(cache.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(parsed, dict):
        return {}
    entries = cast("dict[str, object]", parsed)
    return {key: value for key, value in entries.items() if isinstance(value, str) and len(value) == 32}


def _write_cache(cache: Path, digests: dict[str, str]) -> None:
    """Add digests to the cache. Of two processes that write at once, one loses its additions and nothing else."""
    merged = json.dumps(_read_cache(cache) | digests, sort_keys=True, indent=0)
    # The run's own folder of temporaries is swept at the start of every scan.
    replace_file(cache, merged.encode(), temporaries=cache.parent / ".tmp")


def _same_size(pair: tuple[Path, Path]) -> bool:
    return pair[0].stat().st_size == pair[1].stat().st_size


def _same_samples(pair: tuple[Path, Path]) -> bool:
    """Compare a few blocks spread over the file, the first and the last among them."""
    last = max(0, pair[0].stat().st_size - _SAMPLE)
    with pair[0].open("rb") as a, pair[1].open("rb") as b:
        for i in range(_N_SAMPLES):
            offset = last * i // (_N_SAMPLES - 1)
            a.seek(offset)
            b.seek(offset)
            if a.read(_SAMPLE) != b.read(_SAMPLE):
                return False
    return True


def _same_bytes(pair: tuple[Path, Path]) -> bool:
    with pair[0].open("rb") as a, pair[1].open("rb") as b:
        return all(one == other for one, other in zip_longest(_blocks(a), _blocks(b)))
