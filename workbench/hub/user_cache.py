"""Whether a revision lies whole in the user's own Hugging Face cache, as the hub lists it. Nothing there is changed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from workbench.hub.file_choice import RemoteFile
from workbench.hub.local_cache import snapshot_folder


def cached_snapshot(repo: str, commit: str, files: Iterable[RemoteFile]) -> Path | None:
    """The folder of a revision in the cache if these files are all in it; else None.

    Sizes are compared, and the names of blobs, which are their digests; no file is read.
    """
    folder = snapshot_folder(repo, commit)
    return folder if folder.is_dir() and all(_is_there(folder / file.name, file) for file in files) else None


def _is_there(path: Path, file: RemoteFile) -> bool:
    try:
        size = path.stat().st_size
    except OSError:
        return False
    # A cache without symlinks holds the files themselves, which have no digest in their names.
    return size == file.size and (not path.is_symlink() or Path(os.readlink(path)).name == file.blob)
