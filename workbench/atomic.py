"""Atomic writes: after a crash at any moment there is the old file or the new one. Temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import warnings
from collections.abc import Generator
from pathlib import Path

from workbench.heads import RunLocked, StoreNotWritable, WorkbenchError

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota used up", errno.EFBIG: "file size limit reached"}
_REFUSED = {
    errno.EROFS: "read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOTDIR: "not a folder",
    errno.EEXIST: "not a folder",
    errno.EIO: "input/output error",
}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_DIRECTORY_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


def replace_file(path: Path, payload: bytes, *, temporaries: Path | None = None) -> None:
    """Put `payload` at `path` in one step, durably; on failure nothing is left behind.

    `temporaries` is a folder on the same file system; None is the file's own folder, under a hidden name.

    Raises:
        StoreNotWritable: if the disk is full or refuses to be written.
    """
    folder, prefix = (path.parent, ".") if temporaries is None else (temporaries, "")
    with _refusals_named(path):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{prefix}{path.stem}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            _write_durably(temporary, payload)
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                _sync_directory(path.parent.parent)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line to a file in one write.

    Raises:
        StoreNotWritable: if the disk is full or refuses to be written.
    """
    with _refusals_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _write_all(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)


def prove_writable(folder: Path, *, temporaries: Path) -> None:
    """Create the folder and write, sync, rename and remove a small file in it.

    Raises:
        StoreNotWritable: if any of it is refused.
    """
    probe = folder / f"writable-{secrets.token_hex(4)}"
    with _refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(probe, b"written to see whether this folder can be\n", temporaries=temporaries)
    with _refusals_named(folder):
        probe.unlink()


def sweep_temporaries(temporaries: Path) -> list[Path]:
    """Remove what dead writers of this machine left; those of living ones and of other machines stay."""
    removed: list[Path] = []
    for path in sorted(temporaries.glob("*.*.*.*")):
        _, *host, pid, _ = path.name.split(".")
        if ".".join(host) == socket.gethostname() and pid.isdigit() and not _is_alive(int(pid)):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


@contextlib.contextmanager
def advisory_lock(path: Path, *, is_shared: bool) -> Generator[None]:
    """Hold the advisory lock of a run; the system frees it however the process ends.

    A shared one is held beside others, and where another process holds it alone, done without.

    Raises:
        RunLocked: if another process holds it and this one wants it alone.
    """
    import fcntl  # only where runs are written: reading also works where the module is missing

    with _refusals_named(path):
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


def _write_durably(path: Path, payload: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write_all(descriptor, payload)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, payload: bytes) -> None:
    rest = memoryview(payload)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_FSYNC:
            raise
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _refusals_named(path: Path) -> Generator[None]:
    """Turn the system's refusals to write into errors that say what to do."""
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
