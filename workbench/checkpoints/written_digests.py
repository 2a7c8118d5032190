"""Compare weight files with the digests written beside them: the only way to see a bit that flipped on the way.

Read are lists in the form of `sha256sum` (SHA256SUMS, checksums.sha256, FILE.sha256), git-lfs pointers kept as
FILE.lfs, and the names of blobs in a Hugging Face cache, which are the sha256 of what they hold.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from workbench.checkpoints.formats import weight_files
from workbench.checkpoints.own_files import own_file
from workbench.heads import BadCheckpoint

LISTS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "checksums.sha256", "manifest.sha256")
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def verify_digests(checkpoint: Path) -> dict[str, str]:
    """Read every weight file and compare its sha256 with what is written; returns the digests by file name.

    Raises:
        BadCheckpoint: naming the first file whose digest is another, or for which none is written.
    """
    files = weight_files(checkpoint)
    if not files:
        raise BadCheckpoint(f"{checkpoint}: holds no weights to verify")
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    written = _written(folder)
    found: dict[str, str] = {}
    for file in files:
        expected = written.get(file.name) or _blob_name(file)
        if expected is None:
            raise BadCheckpoint(
                f"{file}: no digest is written for it; expected a list such as {LISTS[0]} beside it (`sha256sum * > "
                f"{LISTS[0]}` where the file is known to be good), or scan without --verify"
            )
        with own_file(folder, file).open("rb") as stream:
            found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        if found[file.name] != expected:
            raise BadCheckpoint(f"{file}: sha256 is {found[file.name]}, written is {expected}; fetch the file again")
    return found


def _written(folder: Path) -> dict[str, str]:
    """Digests by file name, from every list there is."""
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
    """The sha256 that a file of a Hugging Face cache is named by."""
    name = file.resolve().name
    return name if file.is_symlink() and _SHA256.fullmatch(name) else None
