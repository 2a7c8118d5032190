"""Child processes of tests: ended by SIGINT whatever this process ignores, waited for within a limit, left nowhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

LIMIT = 600  # seconds; a busy machine is slow


@contextlib.contextmanager
def child(
    command: Sequence[object],
    *,
    ignores_interrupts: bool = False,
    start: Callable[..., subprocess.Popen[Any]] = subprocess.Popen,
    **options: Any,
) -> Generator[subprocess.Popen[Any]]:
    """A process, killed at the end of the block if it still runs; with `start_new_session`, its whole group is.

    `nohup` and some CI ignore SIGINT, which a child inherits: it is given the default back, or, to see what a program
    does then, `ignores_interrupts`. `start`: `tests.preloaded.Preloaded` for one that begins with its imports done.
    """
    with _interrupts_set_to(signal.SIG_IGN if ignores_interrupts else signal.default_int_handler):
        process = start([str(word) for word in command], **options)
    try:
        yield process
    finally:
        _kill(process, whole_group=options.get("start_new_session", False))


def run_child(
    command: Sequence[object],
    *,
    timeout: float = LIMIT,
    capture_output: bool = False,
    check: bool = False,
    start: Callable[..., subprocess.Popen[Any]] = subprocess.Popen,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with a limit, after which the process is killed and the test fails with its output.

    `start` as in `child`.
    """
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start([str(word) for word in command], **options)
    try:
        ended = subprocess.CompletedProcess(process.args, 0, *output_of(process, timeout))
    finally:
        _kill(process, whole_group=options.get("start_new_session", False))
    ended.returncode = process.returncode
    if check:
        ended.check_returncode()
    return ended


def output_of(process: subprocess.Popen[Any], timeout: float = LIMIT) -> tuple[Any, Any]:
    """What a process wrote to its pipes until its end; after the limit it is killed, and the test fails with that."""
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
    try:
        printed = process.communicate(timeout=10)
    except subprocess.TimeoutExpired as late:  # a child of its own holds the pipes open
        printed = late.stdout, late.stderr
    pytest.fail("\n".join([f"{process.args} did not end in {timeout} s.", *map(_readable, printed)]))


def first_line(process: subprocess.Popen[str], lines: Any, timeout: float = LIMIT) -> str:
    """The first of a process's lines; after the limit it is killed, and what it printed is the last of its output."""
    killer = threading.Timer(timeout, process.kill)
    killer.start()
    try:
        return lines.readline()
    finally:
        killer.cancel()
        killer.join(10)


def until(
    holds: Callable[[], object], timeout: float = LIMIT, *, every: float = 0.02, failing: Callable[[], str] = str
) -> None:
    """Wait until something holds; if it does not in time, the test fails with what `failing` has to say."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not so in {timeout} s. {failing()}"
        time.sleep(every)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not just its exit code that nobody has asked for."""
    return _state(pid) not in (None, "Z", "X")


def descendants(pid: int) -> dict[int, str]:
    """Name and command line of each process that a process has started, directly or not, by its number."""
    parents = {int(path.name): _parent(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    known = {pid}
    while more := {each for each, parent in parents.items() if parent in known} - known:
        known |= more
    return {each: _command_line(each) for each in known - {pid}}


@contextlib.contextmanager
def _interrupts_set_to(handler: Any) -> Generator[None]:
    """SIGINT as a process started inside the block inherits it: `exec` turns a handler into the default."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _kill(process: subprocess.Popen[Any], *, whole_group: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait(timeout=60)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _stat(pid: int) -> list[str]:
    """State, parent and so on, as Linux lists them behind the name in brackets; nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _state(pid: int) -> str | None:
    return next(iter(_stat(pid)), None)


def _parent(pid: int) -> int | None:
    return int(stat[1]) if (stat := _stat(pid)) else None


def _command_line(pid: int) -> str:
    try:
        name, line = (Path(f"/proc/{pid}/{file}").read_bytes() for file in ("comm", "cmdline"))
        return b" ".join([name.strip(), *line.split(b"\0")]).decode(errors="replace")
    except OSError:
        return ""


def _readable(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
