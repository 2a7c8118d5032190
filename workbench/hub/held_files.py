"""The revisions that a scan holds on disk: fetched into a folder of its own, within a bound, and removed again.

A ledger beside them names each revision and its files before the first is fetched. So whatever a killed scan leaves
behind is known to the next one, which goes on with it or removes it. Nothing is removed that the ledger does not name.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.files.atomic import replace_file
from workbench.hub.downloads import RECORDS, Watch, check_file, download, forget_records
from workbench.hub.file_choice import RemoteFile
from workbench.hub.hub_errors import HubError
from workbench.hub.repositories import RemoteRevision
from workbench.hub.small_files import place

LEDGER = "ledger.json"
# What a file costs beside its bytes: huggingface_hub's record of it and its lock.
_BESIDE_A_FILE = 1024


@dataclass(frozen=True, slots=True)
class Held:
    """A revision in the ledger: what it is, and its files with their sizes and digests."""

    revision: RemoteRevision
    files: tuple[RemoteFile, ...]


def bytes_to_hold(files: Collection[RemoteFile], *, has_links: bool = True) -> int:
    """The most that files take on disk while they are fetched and after; with hard links, equal ones count once."""
    sizes = {file.blob: file.size for file in files}.values() if has_links else [file.size for file in files]
    return sum(sizes) + _BESIDE_A_FILE * len(files)


class HeldFiles:
    """The revisions in a folder, which no other process may use. Safe for threads: one fetches, another removes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._held = _read_ledger(folder / LEDGER)
        folder.mkdir(parents=True, exist_ok=True)
        self._has_links = _has_links(folder)

    @property
    def held(self) -> dict[str, Held]:
        """The revisions that the ledger names, by commit."""
        with self._lock:
            return dict(self._held)

    def n_bytes(self) -> int:
        """The most that the revisions take."""
        return bytes_to_hold([f for held in self.held.values() for f in held.files], has_links=self._has_links)

    def bytes_for(self, revision: RemoteRevision, files: Sequence[RemoteFile]) -> int:
        """The most that a revision takes beside those that are there; 0 for one of them."""
        with self._lock:
            if revision.commit in self._held:
                return 0
            present = [file for held in self._held.values() for file in held.files]
        both, now = (bytes_to_hold(each, has_links=self._has_links) for each in ([*present, *files], present))
        return both - now

    def fetch(
        self, revision: RemoteRevision, files: Sequence[RemoteFile], *, small: Path | None = None, watch: Watch
    ) -> Path:
        """Fetch a revision and return its folder; files that are there already are read again, and fetched if bad.

        `small`: a folder with files of it that need not be fetched.

        Raises:
            HubError: if a file cannot be fetched; those that can stay until `remove`.
            StoreNotWritable: if the disk is full or refuses.
            DownloadStopped: if `watch` asks for it.
        """
        own = self.folder / revision.commit
        with self._lock:
            self._held[revision.commit] = Held(revision, tuple(files))
            self._write()
            places = [
                (file, self.folder / commit / file.name) for commit, held in self._held.items() for file in held.files
            ]
        try:
            for file in files:
                equal = [path for other, path in places if other.blob == file.blob and path != own / file.name]
                _take(own / file.name, file, equal if small is None else [small / file.name, *equal])
            missing = [file for file in files if not (own / file.name).exists()]
            download(revision, _first_of_each(missing), own, watch=watch)
            for file in missing:
                if not (own / file.name).exists():
                    _take(own / file.name, file, [path for other, path in places if other.blob == file.blob])
        finally:
            forget_records(own)
            self._drop_if_empty(own)
        return own

    def remove(self, commit: str) -> None:
        """Remove the files of a revision that the ledger names, and its folder if nothing else is in it."""
        with self._lock:
            held = self._held.get(commit)
            if held is None:
                return
            own = self.folder / commit
            for file in held.files:
                (own / file.name).unlink(missing_ok=True)
            forget_records(own)
            self._drop_if_empty(own)
            del self._held[commit]
            self._write()

    def remove_all_but(self, needed: Collection[str]) -> list[str]:
        """Remove the revisions whose commits are not needed; return them. Parts of files go in any case."""
        with self._lock:
            for commit in self._held:
                forget_records(self.folder / commit)
            unneeded = [commit for commit in self._held if commit not in needed]
            for commit in unneeded:
                self.remove(commit)
        return unneeded

    def close(self) -> None:
        """Remove the folder and its ledger if no revision is held."""
        with self._lock:
            if not self._held:
                (self.folder / LEDGER).unlink(missing_ok=True)
                with suppress(OSError):
                    self.folder.rmdir()

    def _write(self) -> None:
        ledger = {
            commit: {
                "repo": held.revision.repo,
                "name": held.revision.name,
                "files": [[file.name, file.size, file.blob] for file in held.files],
            }
            for commit, held in self._held.items()
        }
        replace_file(self.folder / LEDGER, json.dumps(ledger, indent=1).encode())

    def _drop_if_empty(self, own: Path) -> None:
        with suppress(OSError):
            (own / RECORDS[0]).rmdir()
        with suppress(OSError):
            own.rmdir()


def _take(path: Path, file: RemoteFile, sources: Sequence[Path]) -> None:
    """Have a file without the hub: as it lies there, or as it lies elsewhere on this disk. Whatever is bad goes."""
    for source in [None, *sources]:
        if source is not None and not path.exists():
            with suppress(OSError):  # it may be removed at any moment
                place(source, path)
        if path.exists():
            try:
                check_file(path, file)
            except HubError:
                path.unlink()
            else:
                return


def _first_of_each(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Files without those that are equal to an earlier one."""
    return list({file.blob: file for file in reversed(files)}.values())[::-1]


def _read_ledger(path: Path) -> dict[str, Held]:
    """What a ledger names; nothing if there is none, or it cannot be read."""
    try:
        ledger: Mapping[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {
        commit: Held(
            RemoteRevision(entry["repo"], entry["name"], commit),
            tuple(RemoteFile(name, size, blob) for name, size, blob in entry["files"]),
        )
        for commit, entry in ledger.items()
    }


def _has_links(folder: Path) -> bool:
    """Whether a file of this file system can have two names."""
    one, two = folder / ".link-1", folder / ".link-2"
    try:
        one.touch()
        two.unlink(missing_ok=True)
        os.link(one, two)
    except OSError:
        return False
    finally:
        one.unlink(missing_ok=True)
        two.unlink(missing_ok=True)
    return True


def free_bytes(folder: Path) -> int:
    """The bytes that are free on the file system of a folder, or of the first folder above it that exists."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free
