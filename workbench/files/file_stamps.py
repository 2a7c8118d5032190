"""The state of the files of a folder, by which a change is noticed without reading them."""

from __future__ import annotations

import os
from pathlib import Path

# Of each file its path below the folder, size in bytes, and the time of its last change in nanoseconds.
Stamp = tuple[tuple[str, int, int], ...]


def stamp_of(path: Path) -> Stamp:
    """The state of a file, or of all files below a folder; empty where there is nothing. Links are followed."""
    if path.is_file():
        return (_record("", path),)
    files = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    return tuple(sorted(_record(str(file.relative_to(path)), file) for file in files if file.is_file()))


def _record(name: str, file: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return name, stat.st_size, stat.st_mtime_ns
