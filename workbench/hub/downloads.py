"""Fetch the files of a revision from a hub, each compared with the size and digest that the hub lists.

huggingface_hub fetches; it takes up a body again that breaks off, and waits where the hub is busy. It does not read
what it has fetched, so every file is read here before it counts. What may be better at another time is tried a few
times more.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.files.atomic import refusals_named, replace_file
from workbench.hub.file_choice import RemoteFile
from workbench.hub.hub_errors import HubError, HubFault, RateLimited, Unreachable, as_hub_error, endpoint, is_offline
from workbench.hub.local_cache import cache_folder, repository_folder
from workbench.hub.repositories import RemoteRevision

# Seconds before each further try of a file. huggingface_hub tries each request several times by itself.
_PAUSES = (2.0, 10.0)
_LONGEST_PAUSE_S = 310.0
# Files at a time.
_AT_A_TIME = 4
_BLOCK = 4 << 20
_SHA256_DIGITS = 64
# What huggingface_hub keeps beside the files that it puts into a folder.
RECORDS = (".cache", "huggingface")


class BadDownload(HubError):
    """A file that is not what the hub lists: broken off, or with other bytes."""


class DownloadStopped(Exception):
    """A download that ended because it was asked to."""


TRANSIENT = (RateLimited, HubFault, Unreachable, BadDownload)


def _ignore(_: int) -> None:
    """Nobody counts bytes."""


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Watch:
    """Whoever waits for downloads: is told of bytes as they come, and asked whether to stop."""

    on_bytes: Callable[[int], None] = _ignore
    should_stop: Callable[[], bool] = _never

    def require_going(self) -> None:
        """Raise DownloadStopped after a request to stop."""
        if self.should_stop():
            raise DownloadStopped


def download(
    revision: RemoteRevision, files: Iterable[RemoteFile], folder: Path | None = None, *, watch: Watch | None = None
) -> Path:
    """Fetch files of a revision and return the folder they are in. What is there already is not fetched again.

    Args:
        folder: where to put them, as plain files; None: the user's Hugging Face cache, as `hf download` does.

    Raises:
        HubError: if a file cannot be fetched, with the reason and the next step; the others stay.
        StoreNotWritable: if the disk is full or refuses.
        DownloadStopped: if `watch` asks for it.
    """
    _fetch_all(revision, list(files), folder, watch or Watch())
    if folder is not None:
        return folder
    repository = repository_folder(revision.repo)
    if revision.name != revision.commit:
        _note_name(repository / "refs" / revision.name, revision.commit)
    return repository / "snapshots" / revision.commit


def check_file(path: Path, file: RemoteFile) -> None:
    """Compare a file's size and digest with the hub's.

    Raises:
        BadDownload: if they differ.
    """
    size = path.stat().st_size
    if size != file.size:
        raise BadDownload(f"{file.name} has {size} bytes, the hub lists {file.size}")
    is_large = len(file.blob) == _SHA256_DIGITS
    # git's id of a small file is the sha1 of its bytes after a header.
    digest = hashlib.sha256() if is_large else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != file.blob:
        kind = "sha256" if is_large else "git id"
        raise BadDownload(f"{file.name} has the {kind} {digest.hexdigest()}, the hub lists {file.blob}")


def forget_records(folder: Path) -> None:
    """Remove what huggingface_hub keeps beside the files that it has put into a folder, parts of files among it."""
    shutil.rmtree(folder.joinpath(*RECORDS), ignore_errors=True)


@contextmanager
def quiet_hub() -> Generator[None]:
    """Inside the block, huggingface_hub shows no bars and logs no retries; its settings are restored after."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, has_bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        (enable_progress_bars if has_bars else disable_progress_bars)()


def _fetch_all(revision: RemoteRevision, files: Sequence[RemoteFile], folder: Path | None, watch: Watch) -> None:
    """Fetch files, a few at a time. When one fails, the others stop."""
    has_failed = threading.Event()
    inner = Watch(watch.on_bytes, lambda: has_failed.is_set() or watch.should_stop())

    def fetch(file: RemoteFile) -> Exception | None:
        try:
            _fetch(revision, file, folder, inner)
        except Exception as error:  # raised below
            has_failed.set()
            return error
        return None

    # Equal files are one blob in a cache, which two threads would fetch twice.
    rounds: list[list[RemoteFile]] = [[]]
    for file in files:
        if file.blob in {other.blob for other in rounds[-1]}:
            rounds.append([])
        rounds[-1].append(file)
    for together in rounds:
        if len(together) == 1:
            errors = [fetch(together[0])]
        else:
            with ThreadPoolExecutor(min(_AT_A_TIME, len(together) or 1)) as pool:
                errors = list(pool.map(fetch, together))
        failures = [error for error in errors if error is not None]
        if failures:
            raise next((error for error in failures if not isinstance(error, DownloadStopped)), failures[0])


def _fetch(revision: RemoteRevision, file: RemoteFile, folder: Path | None, watch: Watch) -> None:
    """Fetch one file, and try again what may be better at another time."""
    for tries, pause in enumerate((*_PAUSES, None), start=1):
        watch.require_going()
        try:
            _fetch_once(revision, file, folder, watch)
            return
        except TRANSIENT as error:
            wait_s = (error.wait_s if isinstance(error, RateLimited) else None) or pause
            if is_offline():
                raise
            if pause is None or wait_s is None or wait_s > _LONGEST_PAUSE_S:
                raise type(error)(f"{error}. Tried {tries} times; the same command tries it again") from error
            _wait(wait_s, watch)


def _fetch_once(revision: RemoteRevision, file: RemoteFile, folder: Path | None, watch: Watch) -> None:
    from huggingface_hub import errors, hf_hub_download

    is_new = not _place(revision, file, folder).exists()
    try:
        with as_hub_error(revision.repo, revision.name), refusals_named(folder or cache_folder()):
            path = Path(
                hf_hub_download(
                    revision.repo,
                    file.name,
                    revision=revision.commit,
                    cache_dir=cache_folder(),
                    local_dir=folder,
                    endpoint=endpoint(),
                    tqdm_class=_counter(watch),
                )
            )
    except errors.LocalEntryNotFoundError as error:
        raise _cause(error, revision) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise BadDownload(f"{revision}: {file.name} broke off ({_first_line(error)})") from error
    if is_new:
        try:
            check_file(path, file)
        except BadDownload as error:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise BadDownload(f"{revision}: {error}; it was removed") from error


def _cause(error: Exception, revision: RemoteRevision) -> HubError:
    """What kept huggingface_hub from asking for a file; it says only that the file is not on this disk."""
    from huggingface_hub import errors

    cause = error.__cause__ or error
    if isinstance(cause, errors.FileMetadataError):
        return HubFault(f"{revision}: {endpoint()} does not answer as a hub ({_first_line(cause)}); check HF_ENDPOINT")
    try:
        with as_hub_error(revision.repo, revision.name):
            raise cause
    except HubError as hub_error:
        return hub_error
    except Exception as other:  # whatever it is, the file was not fetched
        return Unreachable(f"{revision}: {_first_line(other)}")


def _place(revision: RemoteRevision, file: RemoteFile, folder: Path | None) -> Path:
    """Where a file lies once it is fetched."""
    if folder is not None:
        return folder / file.name
    return repository_folder(revision.repo) / "blobs" / file.blob


def _note_name(ref: Path, commit: str) -> None:
    """Write which commit a name stands for, as `hf download` of the name does."""
    if not ref.is_file() or ref.read_text(encoding="utf-8") != commit:
        replace_file(ref, commit.encode())


def _wait(seconds: float, watch: Watch) -> None:
    end = time.monotonic() + seconds
    while (rest := end - time.monotonic()) > 0:
        watch.require_going()
        time.sleep(min(rest, 0.2))


def _counter(watch: Watch) -> type[Any]:
    """The class that huggingface_hub makes its progress bars of: it counts, and draws nothing."""

    class Counter:
        def __init__(self, *_: object, **__: object) -> None:
            self.total: int | float | None = None

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to end."""

        def update(self, n: int | float | None = 1) -> None:
            watch.require_going()
            watch.on_bytes(int(n or 0))

        def update_transfer(self, _: int | float | None = 1) -> None:
            """Bytes of the network, beside those of the file, which are counted."""

        def __getattr__(self, name: str) -> Callable[..., None]:
            if name.startswith("_"):
                raise AttributeError(name)
            return lambda *_, **__: None  # texts and rates of a bar

    return Counter


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
