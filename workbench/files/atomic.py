"""Atomic writes of files and folders: write under a temporary name, fsync, rename.

After a crash at any moment the old content or the new content is there, never a part of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from workbench.heads import RunLocked, StoreNotWritable, WorkbenchError

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota used up", errno.EFBIG: "file size limit reached"}
_REFUSED = {
    errno.EROFS: "read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOTDIR: "not a folder",
    errno.EEXIST: "not a folder",
    errno.EIO: "input/output error",
    errno.ENAMETOOLONG: "name too long",
    errno.ELOOP: "links in a circle",
}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_DIRECTORY_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
_PARTIAL = ".partial-"  # readers of checkpoint folders ignore hidden ones


def replace_file(path: Path, payload: bytes, *, temporaries: Path | None = None) -> None:
    """Put `payload` at `path` in one step, durably; after an error nothing is left behind. See `replacing_file`.

    Raises:
        StoreNotWritable: if the disk is full or cannot be written.
    """
    with replacing_file(path, temporaries=temporaries) as stream:
        stream.write(payload)


@contextlib.contextmanager
def replacing_file(path: Path, *, temporaries: Path | None = None) -> Generator[BinaryIO]:
    """Yield a stream; its content replaces `path` when the block ends. After an error nothing is left behind.

    `temporaries` is a folder on the same file system; None is the file's own folder, with a hidden name.

    Raises:
        StoreNotWritable: if the disk is full or cannot be written.
    """
    folder, prefix = (path.parent, ".") if temporaries is None else (temporaries, "")
    with refusals_named(path):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{prefix}{path.stem}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            with temporary.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                _sync_directory(path.parent.parent)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Generator[Path]:
    """Yield an empty hidden folder beside `path`, which must not exist; it becomes `path` when the block ends.

    After an error or a crash the hidden folder stays, until the next call for `path` or `sweep_temporaries`.

    Raises:
        StoreNotWritable: if the disk is full or cannot be written.
    """
    partial = path.with_name(_PARTIAL + path.name)
    with refusals_named(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _sync_file(Path(folder, name))
            _sync_directory(Path(folder))
        os.rename(partial, path)
        _sync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line to a file in one write.

    Raises:
        StoreNotWritable: if the disk is full or cannot be written.
    """
    with refusals_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _write_all(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)


def prove_writable(folder: Path, *, temporaries: Path) -> None:
    """Create the folder, then write, sync, rename and remove a small file in it.

    Raises:
        StoreNotWritable: if one of these operations fails.
    """
    probe = folder / f"writable-{secrets.token_hex(4)}"
    try:
        with refusals_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # whatever keeps a folder from being made, as that of a special file system
        reason = error.strerror or type(error).__name__
        raise StoreNotWritable(f"{folder} cannot be made ({reason}); choose a place (--out) that can be") from error
    replace_file(probe, b"written to see whether this folder can be\n", temporaries=temporaries)
    with refusals_named(folder):
        probe.unlink()


def sweep_temporaries(folder: Path) -> list[Path]:
    """Remove temporary files and folders of dead processes of this machine, and partial folders; return their paths.

    Temporaries of live processes and of other machines stay. Two processes must not make the same folder at once.
    """
    removed: list[Path] = []
    of_this_machine = re.compile(rf".*\.{re.escape(socket.gethostname())}\.(\d+)\.[^.]+")
    for path in sorted(folder.glob("*.*.*.*")):
        match = of_this_machine.fullmatch(path.name)
        if match is not None and not is_alive(int(match[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed.append(path)
    for path in sorted(folder.glob(f"{_PARTIAL}*")):
        shutil.rmtree(path)
        removed.append(path)
    return removed


@contextlib.contextmanager
def advisory_lock(path: Path, *, is_shared: bool) -> Generator[None]:
    """Hold the advisory lock of a run inside the block; the system frees it however the process ends.

    Several processes can hold a shared lock. Where another process holds the exclusive lock, a shared one is not taken
    and the block runs without it.

    Raises:
        RunLocked: if an exclusive lock is requested and another process holds the lock.
    """
    import fcntl  # imported here because Windows lacks it and reading runs needs no lock

    with refusals_named(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if is_shared:
                yield
                return
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise RunLocked(
                f"{path.parent} is being written by {holder}; wait for it, stop it, work beside it with "
                "--join, or pass another --out"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {path.parent} has no locks: two scans at once repeat work",
                stacklevel=3,
            )
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, payload: bytes) -> None:
    rest = memoryview(payload)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_FSYNC:
            raise
    finally:
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def refusals_named(path: Path) -> Generator[None]:
    """Turn the system's write errors into `StoreNotWritable` with the next step."""
    try:
        yield
    except WorkbenchError:
        raise
    except OSError as error:
        number = error.errno or 0
        if number in _FULL:
            raise StoreNotWritable(
                f"{path}: {_FULL[number]}; free some space and run the same command again: what was finished is kept"
            ) from error
        if number in _REFUSED:
            raise StoreNotWritable(
                f"{path} cannot be written ({_REFUSED[number]}); choose a place (--out) that can be"
            ) from error
        raise
