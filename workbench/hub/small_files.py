"""The small files of many revisions: configurations and tokenizers, each content fetched once.

A folder holds one folder per commit. Revisions of a training have the same tokenizer and mostly the same config.json,
so a thousand of them cost a few requests.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from workbench.files.atomic import replace_file
from workbench.hub.downloads import Watch, download
from workbench.hub.file_choice import RemoteFile
from workbench.hub.hub_errors import HubError
from workbench.hub.repositories import RemoteRevision

# Requests at a time.
_AT_A_TIME = 8
# Revisions that are asked for one content before it counts as not to be had.
_MOST_ASKED = 3
# Beside the folders: which revision each commit is.
LIST = "revisions.json"
Show = Callable[[int, int, str], None]


def small_files(files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files of a revision that hold no weights."""
    return tuple(file for file in files if not file.is_weights)


def fetch_small_files(
    revisions: Mapping[RemoteRevision, Sequence[RemoteFile]],
    folder: Path,
    *,
    staging: Path,
    watch: Watch | None = None,
    show: Show | None = None,
) -> dict[RemoteRevision, HubError]:
    """Put the small files of each revision into `folder/COMMIT`; those that are there already stay.

    `staging`: a folder of this process alone on the same file system, which is removed in the end.

    Returns:
        Why a revision lacks some of them, for those that do.

    Raises:
        StoreNotWritable: if the disk is full or refuses.
        DownloadStopped: if `watch` asks for it.
    """
    missing = {
        revision: [f for f in small_files(files) if not _is_there(folder / revision.commit / f.name, f)]
        for revision, files in revisions.items()
    }
    sources: dict[str, list[tuple[RemoteRevision, RemoteFile]]] = {}
    for revision, files in missing.items():
        for file in files:
            sources.setdefault(file.blob, []).append((revision, file))
    errors: dict[RemoteRevision, HubError] = {}
    with ThreadPoolExecutor(min(_AT_A_TIME, len(sources) or 1)) as pool:
        try:
            fetched = pool.map(lambda blob: _fetch_blob(sources[blob], folder, staging / blob, watch), sources)
            for i, failed in enumerate(fetched, start=1):
                errors = {**failed, **errors}
                if show is not None:
                    show(i, len(sources), "configurations and tokenizers")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            pool.shutdown()
            shutil.rmtree(staging, ignore_errors=True)
    return errors


def _fetch_blob(
    places: Sequence[tuple[RemoteRevision, RemoteFile]], folder: Path, staging: Path, watch: Watch | None
) -> dict[RemoteRevision, HubError]:
    """Fetch one content from the first revision that hands it out, and put it into the others' folders."""
    errors: list[HubError] = []
    for revision, file in places[:_MOST_ASKED]:
        try:
            download(revision, [file], staging, watch=watch)
        except HubError as error:
            errors.append(error)
            continue
        for other, same in places:  # what one revision refuses, another hands out: the bytes are the same
            place(staging / file.name, folder / other.commit / same.name)
        return {}
    return {revision: errors[min(i, len(errors) - 1)] for i, (revision, _) in enumerate(places)}


def list_revisions(folder: Path, revisions: Collection[RemoteRevision]) -> None:
    """Write beside the folders of revisions what each of them is, whatever was listed there before.

    Raises:
        StoreNotWritable: if the disk is full or refuses.
    """
    before = _read_list(folder / LIST)
    now = {revision.commit: [revision.repo, revision.name] for revision in revisions}
    if not now.items() <= before.items():
        replace_file(folder / LIST, json.dumps({**before, **now}, indent=0).encode())


def revision_of(folder: Path) -> RemoteRevision | None:
    """The revision whose small files are in a folder; None for any other folder."""
    entry = _read_list(folder.parent / LIST).get(folder.name)
    return None if entry is None else RemoteRevision(entry[0], entry[1], folder.name)


def _read_list(path: Path) -> dict[str, list[str]]:
    """Repository and name by commit; nothing if there is no list, or it cannot be read."""
    try:
        listed: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, list[str]]", listed) if isinstance(listed, dict) else {}


def place(source: Path, target: Path) -> None:
    """Put the content of a file at another path, in one step: by a hard link, else by a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links, or another one
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # a link replaced by a link to the same file stays


def _is_there(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size
