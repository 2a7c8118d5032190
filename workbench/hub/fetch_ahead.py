"""Fetch revisions one after another in the background, while others are used, within a bound on the disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.hub.byte_sizes import bytes_in_words
from workbench.hub.downloads import BadDownload, DownloadStopped, Watch, check_file
from workbench.hub.file_choice import RemoteFile
from workbench.hub.held_files import free_bytes
from workbench.hub.repositories import RemoteRevision
from workbench.hub.user_cache import cached_snapshot

_STOP_S = 15.0


class DiskBound(WorkbenchError):
    """A revision that does not fit into the disk that a scan may take."""


@runtime_checkable
class Holder(Protocol):
    """Where revisions are fetched to: `HeldFiles` or `KeptFiles`."""

    folder: Path

    def n_bytes(self) -> int: ...
    def bytes_for(self, revision: RemoteRevision, files: Sequence[RemoteFile]) -> int: ...
    def fetch(
        self, revision: RemoteRevision, files: Sequence[RemoteFile], *, small: Path | None = None, watch: Watch
    ) -> Path: ...
    def remove(self, commit: str) -> None: ...
    def remove_all_but(self, needed: Collection[str]) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Errand:
    """A revision to fetch, under the name of its checkpoint. `small`: a folder with its small files."""

    name: str
    revision: RemoteRevision
    files: tuple[RemoteFile, ...]
    small: Path | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A revision on disk, or why it is not."""

    name: str
    folder: Path | None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """How much may lie on disk: `n_bytes` of what is held, None without a bound; `most` revisions at a time.

    `reserve`: bytes of the disk that stay free.
    """

    n_bytes: int | None
    most: int
    reserve: int


@dataclass(frozen=True, slots=True)
class Fetching:
    """The revision that is being fetched: bytes that came, of how many."""

    name: str
    n_bytes: int
    of: int


class FetchAhead:
    """Inside a `with` block, revisions are fetched in their order. `release` each that was taken, when it was used.

    A revision that lies whole in the user's cache is used from there.
    """

    def __init__(self, errands: Sequence[Errand], holder: Holder, bound: Bound) -> None:
        self._errands, self._holder, self._bound = deque(errands), holder, bound
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._ready: deque[Fetched] = deque()
        self._outstanding: dict[str, str] = {}  # commits by name: fetched, or being fetched, and not released
        self._remaining = len(errands)
        self._fetching: Fetching | None = None
        self._broken: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="workbench downloads", daemon=True)

    def __enter__(self) -> FetchAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_STOP_S)  # one that waits for a silent server ends with the process

    def take(self) -> Fetched | None:
        """The next revision that is there, or failed; None if there is none yet.

        Raises:
            StoreNotWritable: if the disk is full or refuses.
        """
        with self._changed:
            if self._broken is not None:
                raise self._broken
            if not self._ready:
                return None
            self._remaining -= 1
            return self._ready.popleft()

    def remaining(self) -> int:
        """How many revisions were not taken yet."""
        with self._changed:
            return self._remaining

    def is_over(self) -> bool:
        """Whether every revision was taken, and released."""
        with self._changed:
            return self._remaining == 0 and not self._outstanding

    def fetching(self) -> Fetching | None:
        """What is being fetched now."""
        with self._changed:
            return self._fetching

    def wait(self, seconds: float) -> None:
        """Return when a revision can be taken, at the latest after some seconds."""
        with self._changed:
            if not self._ready and self._broken is None:
                self._changed.wait(seconds)

    def release(self, name: str) -> None:
        """Remove what was fetched under a name; other names of the same commit keep it."""
        with self._changed:
            commit = self._outstanding.pop(name, None)
            if commit is not None and commit not in self._outstanding.values():
                self._holder.remove(commit)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while self._errands and not self._stop.is_set():
                self._put(self._fetch(self._errands.popleft()))
        except DownloadStopped:
            return
        except Exception as error:  # raised by `take`: nothing further can be fetched
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _put(self, fetched: Fetched) -> None:
        with self._changed:
            self._fetching = None
            self._ready.append(fetched)
            self._changed.notify_all()

    def _fetch(self, errand: Errand) -> Fetched:
        if folder := cached_snapshot(errand.revision.repo, errand.revision.commit, errand.files):
            return _proven(errand, folder)
        try:
            self._wait_for_room(errand)
            folder = self._holder.fetch(
                errand.revision,
                errand.files,
                small=errand.small,
                watch=Watch(lambda n: self._count(errand, n), self._stop.is_set),
            )
        except (DownloadStopped, StoreNotWritable):
            raise
        except Exception as error:  # the failure of one revision is its checkpoint's, and does not end the scan
            self.release(errand.name)
            return Fetched(errand.name, None, error)
        return Fetched(errand.name, folder)

    def _wait_for_room(self, errand: Errand) -> None:
        """Wait until a revision fits beside those that are outstanding, and count it as one.

        Raises:
            DiskBound: if it does not even fit alone.
        """
        with self._changed:
            while not self._stop.is_set():
                lack = self._lack(errand)
                if lack is None and len(self._outstanding) < self._bound.most:
                    self._outstanding[errand.name] = errand.revision.commit
                    self._fetching = Fetching(errand.name, 0, sum(file.size for file in errand.files))
                    return
                if not self._outstanding:
                    if self._holder.remove_all_but([errand.revision.commit]):  # left by an earlier scan
                        continue
                    raise DiskBound(f"{errand.revision}: {lack}")
                self._changed.wait(1.0)
        raise DownloadStopped

    def _lack(self, errand: Errand) -> str | None:
        """Why a revision does not fit now; None if it does."""
        need, bound = self._holder.bytes_for(errand.revision, errand.files), self._bound
        size = bytes_in_words(sum(file.size for file in errand.files))
        if bound.n_bytes is not None and self._holder.n_bytes() + need > bound.n_bytes:
            return (
                f"takes {size} of disk, and the scan may hold {bytes_in_words(bound.n_bytes)} of "
                "weights; raise --disk (disk=)"
            )
        free = free_bytes(self._holder.folder)
        if need and free - need < bound.reserve:
            return (
                f"takes {size} of disk, and {bytes_in_words(free)} are free, of which "
                f"{bytes_in_words(bound.reserve)} are left alone; free some, or pass an --out on a larger disk"
            )
        return None

    def _count(self, errand: Errand, n_bytes: int) -> None:
        with suppress(AttributeError), self._changed:
            before = self._fetching
            if before is not None:
                self._fetching = Fetching(errand.name, before.n_bytes + n_bytes, before.of)


def _proven(errand: Errand, folder: Path) -> Fetched:
    """A revision in the user's cache, whose files are compared with what the hub lists."""
    try:
        for file in errand.files:
            check_file(folder / file.name, file)
    except BadDownload as error:
        step = "remove it there, and the same command fetches it anew"
        bad = BadDownload(f"{errand.revision}: in the Hugging Face cache, {folder}, {error}; {step}")
        return Fetched(errand.name, None, bad)
    except OSError as error:
        return Fetched(errand.name, None, error)
    return Fetched(errand.name, folder)
