"""Revisions that a scan fetches into the user's Hugging Face cache, where they stay.

What is fetched is named in a ledger until it was compared with the hub's digests. After a kill, the next scan compares
what the ledger names, and removes what is bad: only files that were not there before a scan began to fetch them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.files.atomic import replace_file
from workbench.hub.downloads import BadDownload, Watch, check_file, download
from workbench.hub.file_choice import RemoteFile
from workbench.hub.local_cache import repository_folder, snapshot_folder
from workbench.hub.repositories import RemoteRevision

KEPT_LEDGER = "kept.json"


class KeptFiles:
    """Fetches revisions for good; `folder` has the ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_bad()

    def n_bytes(self) -> int:
        """The bytes that are held for a while: none."""
        return 0

    def bytes_for(self, revision: RemoteRevision, files: Sequence[RemoteFile]) -> int:
        """The bytes of the files that are not in the cache."""
        return sum(file.size for file in files if not _is_cached(revision, file))

    def fetch(
        self,
        revision: RemoteRevision,
        files: Sequence[RemoteFile],
        *,
        small: Path | None = None,  # noqa: ARG002  # as in `HeldFiles`
        watch: Watch,
    ) -> Path:
        """Fetch a revision into the cache and return its folder there.

        Raises:
            HubError, StoreNotWritable, DownloadStopped: as `workbench.hub.downloads.download`.
        """
        missing = [[file.name, file.size, file.blob] for file in files if not _is_cached(revision, file)]
        ledger = {"repo": revision.repo, "commit": revision.commit, "files": missing}
        replace_file(self.folder / KEPT_LEDGER, json.dumps(ledger).encode())
        folder = download(revision, files, watch=watch)
        (self.folder / KEPT_LEDGER).unlink(missing_ok=True)
        return folder

    def remove(self, commit: str) -> None:
        """Keep the revision."""

    def remove_all_but(self, needed: Collection[str]) -> list[str]:  # noqa: ARG002  # as in `HeldFiles`
        """Keep every revision."""
        return []

    def close(self) -> None:
        """Remove the folder of the ledger if nothing is in it."""
        with suppress(OSError):
            self.folder.rmdir()

    def _remove_bad(self) -> None:
        """Remove what a killed scan left that is not what the hub lists."""
        path = self.folder / KEPT_LEDGER
        try:
            ledger = json.loads(path.read_bytes())
            commit, files = ledger["commit"], [RemoteFile(*file) for file in ledger["files"]]
            folder, blobs = snapshot_folder(ledger["repo"], commit), repository_folder(ledger["repo"]) / "blobs"
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            path.unlink()
            return
        for file in files:
            for place in (blobs / file.blob, folder / file.name):
                try:
                    check_file(place, file)
                except BadDownload:
                    place.unlink()
                except FileNotFoundError:
                    place.unlink(missing_ok=True)  # a link to what was removed
            _remove_parts(blobs, file.blob)
        path.unlink()


def _remove_parts(blobs: Path, blob: str) -> None:
    """Remove the parts of a file that a killed process left, unless another process fetches it now."""
    lock = blobs.parent.parent / ".locks" / blobs.parent.name / f"{blob}.lock"  # which huggingface_hub holds meanwhile
    if not lock.parent.is_dir():
        return
    with suppress(Timeout), FileLock(lock, timeout=0):
        for part in blobs.glob(f"{blob}.*.incomplete"):
            part.unlink(missing_ok=True)


def _is_cached(revision: RemoteRevision, file: RemoteFile) -> bool:
    blob = repository_folder(revision.repo) / "blobs" / file.blob
    return blob.exists() or (snapshot_folder(revision.repo, revision.commit) / file.name).exists()
