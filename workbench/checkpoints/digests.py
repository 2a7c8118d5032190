"""Digests of checkpoints: fingerprints of weights and config, and the comparison with digests written beside the files.

A fingerprint is blake2b with 128 bits, of the bytes of the weights and of the config in canonical form. Reading a 13 GB
checkpoint takes about 20 s, so a cache keeps each file's digest while its size, times, inode and first bytes stay the
same. The time of the last change of the inode is among them: a copy can set a modification time back, and not this one.
Times are part of the cache key only.

Weights at a hub have digests there. Once they were here, the cache knows their fingerprint by those.

Written digests are sha256, from lists in the form of `sha256sum` (SHA256SUMS, checksums.sha256, FILE.sha256) and from
the names of blobs in a Hugging Face cache. Only they can show that a bit flipped in transit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, cast

from workbench.checkpoints.configs import CONFIG, read_config
from workbench.checkpoints.formats import UNREAD, checkpoint_format, weight_files
from workbench.checkpoints.other_contents import why_no_weights
from workbench.checkpoints.own_files import own_file
from workbench.files.atomic import replace_file
from workbench.heads import BadCheckpoint

# The cache of a run, in its folder.
FINGERPRINTS = "fingerprints.json"
_BLOCK = 4 << 20
_HEAD = 64 << 10
_SAMPLE = 4 << 10
_N_SAMPLES = 16
# Fields that depend on who saved the file, not on the model.
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version")

LISTS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "checksums.sha256", "manifest.sha256")
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Hexadecimal digests, 32 digits each, of a checkpoint's weight files and of its config.json."""

    weights: str
    config: str


def fingerprint(checkpoint_path: Path, cache: Path | None = None) -> Fingerprint:
    """Digest a checkpoint's weights and config; `cache` is a JSON file that is read and replaced.

    The digest of the weights is computed from the files' digests in order and does not depend on file names. That of
    the config is of its JSON with sorted keys, without `_name_or_path` and `transformers_version`.

    Raises:
        BadCheckpoint: if there are no weights or no config.json, or one of them is a link out of the folder.
        StoreNotWritable: if the cache cannot be written.
    """
    files = [own_file(_folder(checkpoint_path), file) for file in weight_files(checkpoint_path) if file.exists()]
    if not files or checkpoint_format(checkpoint_path) in UNREAD:
        raise BadCheckpoint(why_no_weights(checkpoint_path))
    config = _config_digest(checkpoint_path)
    cached = {} if cache is None else _read_cache(cache)
    keys = {file: _cache_key(file) for file in files}
    digests = {key: cached.get(key) or _file_digest(file) for file, key in keys.items()}
    if cache is not None and not digests.items() <= cached.items():
        _write_cache(cache, digests)
    weights = _blake2b("".join(digests[keys[file]] for file in files).encode())
    return Fingerprint(weights=weights, config=config)


def fingerprint_at_hub(checkpoint_path: Path, blobs: Mapping[str, str], cache: Path) -> Fingerprint | None:
    """The fingerprint of a checkpoint whose weights are at a hub, if they were here before; else None.

    `blobs`: the hub's digests of the weight files, by name. Of the checkpoint, config.json is read.

    Raises:
        BadCheckpoint: if there is no config.json, or it is a link out of the folder.
    """
    weights = _read_cache(cache).get(_blobs_key(blobs))
    return None if weights is None else Fingerprint(weights, _config_digest(checkpoint_path))


def note_at_hub(blobs: Mapping[str, str], weights: str, cache: Path) -> None:
    """Keep the digest of weights in the cache by the hub's digests of their files.

    Raises:
        StoreNotWritable: if the cache cannot be written.
    """
    if _read_cache(cache).get(_blobs_key(blobs)) != weights:
        _write_cache(cache, {_blobs_key(blobs): weights})


def files_stamp(checkpoint_path: Path) -> dict[str, tuple[int, int, int]]:
    """Size, modification time and inode of the weight files and config.json that there are: others after a change."""
    files = [*weight_files(checkpoint_path), _folder(checkpoint_path) / CONFIG]
    stamps: dict[str, tuple[int, int, int]] = {}
    for file in files:
        with suppress(OSError):
            stat = file.stat()
            stamps[str(file)] = stat.st_size, stat.st_mtime_ns, stat.st_ino
    return stamps


def same_weights(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same weight files, byte for byte and in order.

    Sizes and a few blocks are compared first; only files that agree in these are read completely.
    """
    files_a, files_b = weight_files(a), weight_files(b)
    if len(files_a) != len(files_b) or not files_a or not all(file.exists() for file in (*files_a, *files_b)):
        return False
    if not all(_is_own(_folder(path), file) for path, files in ((a, files_a), (b, files_b)) for file in files):
        return False
    pairs = [pair for pair in zip(files_a, files_b, strict=True) if not os.path.samefile(*pair)]
    return all(all(map(is_same, pairs)) for is_same in (_same_size, _same_samples, _same_bytes))


def verify_digests(checkpoint: Path) -> dict[str, str]:
    """Read every weight file and compare its sha256 with the written one; return the digests by file name.

    Raises:
        BadCheckpoint: naming the first file whose digest differs or is not written.
    """
    files = weight_files(checkpoint)
    if not files:
        raise BadCheckpoint(f"{checkpoint}: holds no weights to verify")
    folder = _folder(checkpoint)
    written = _written_digests(folder)
    digests: dict[str, str] = {}
    for file in files:
        expected = written.get(file.name) or _blob_name(file)
        if expected is None:
            raise BadCheckpoint(
                f"{file}: no digest is written for it; expected a list such as {LISTS[0]} beside it (`sha256sum * > "
                f"{LISTS[0]}` where the file is known to be good), or scan without --verify"
            )
        with own_file(folder, file).open("rb") as stream:
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        if digests[file.name] != expected:
            raise BadCheckpoint(f"{file}: sha256 is {digests[file.name]}, written is {expected}; fetch the file again")
    return digests


def _folder(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def _is_own(folder: Path, file: Path) -> bool:
    try:
        own_file(folder, file)
    except BadCheckpoint:
        return False
    return True


def _config_digest(checkpoint: Path) -> str:
    config = {key: value for key, value in read_config(checkpoint).items() if key not in _NOT_OF_THE_MODEL}
    return _blake2b(_canonical(config))


def _blobs_key(blobs: Mapping[str, str]) -> str:
    return f"hub-{_blake2b(json.dumps(sorted(blobs.items())).encode())}"


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
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}-{head}"


def _read_cache(cache: Path) -> dict[str, str]:
    """The cached digests; empty if the file cannot be read, because they can be computed again."""
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
        return all(block_a == block_b for block_a, block_b in zip_longest(_blocks(a), _blocks(b)))


def _written_digests(folder: Path) -> dict[str, str]:
    """Digests by file name, from all lists in the folder."""
    lists = [folder / name for name in LISTS] + sorted(folder.glob("*.sha256"))
    written: dict[str, str] = {}
    for path in dict.fromkeys(lists):
        if not path.is_file():
            continue
        text = own_file(folder, path).read_text("utf-8", errors="replace").strip()
        if _SHA256.fullmatch(text.lower()):
            written[path.stem] = text.lower()
        for match in map(_LINE.fullmatch, text.splitlines()):
            if match is not None:
                written[match[2].strip().removeprefix("./")] = match[1].lower()
    return written


def _blob_name(file: Path) -> str | None:
    """The sha256 in the name of a Hugging Face cache's blob; None for other files."""
    name = file.resolve().name
    return name if file.is_symlink() and _SHA256.fullmatch(name) else None
