"""Python processes of tests that begin with their imports done: forks of a process that has imported what most need.

`Preloaded` is `subprocess.Popen` for commands of this Python. What such a process imports is not tested so; all else is
as ever: arguments, environment, folder, files, signals, exit code, and whose child it is.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import inspect
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from tests.forking import Forker, fork_of_tests, socket_pair

# What verbs that read a run import when they are called, and the app: no torch.
READING = ("workbench.cli.main", "workbench.runs", "workbench.emergence", "workbench.figures", "workbench.report")
READING += ("workbench.app",)
# What the others import, and the workers of a scan and of the demo.
ALL = (*READING, "workbench.hooks", "workbench.scanning.worker", "workbench.scanning.execution", "workbench.planning")
ALL += ("workbench.experiments.conversion", "workbench.demo")
# What these import from elsewhere that takes long, in the order in which the processes are begun.
LIBRARIES = {
    READING: ("pandas", "dash", "dash_ag_grid", "dash_mantine_components", "typer"),
    ALL: ("torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto", "transformers.generation"),
}


class Preloaded(subprocess.Popen[Any]):
    """The process of a command that begins with `sys.executable`. Off Linux it is an ordinary one.

    `modules`: what it has imported.  `has_workers`: its multiprocessing workers begin with their imports done too.
    """

    modules = ALL

    def __init__(self, command: Sequence[object], *, has_workers: bool = False, **options: Any) -> None:
        self._has_workers = has_workers
        super().__init__([str(word) for word in command], **options)

    def _execute_child(self, *arguments: Any) -> None:
        if sys.platform != "linux":
            super()._execute_child(*arguments)
            return
        options = inspect.signature(subprocess.Popen._execute_child).bind(self, *arguments).arguments
        assert options["args"][0] == sys.executable, options["args"]
        files = (options["p2cread"], options["c2pwrite"], options["errwrite"])
        self.pid = _forker(self.modules).fork(
            options["args"][1:],
            {number: number if file == -1 else file for number, file in enumerate(files)},
            environment=options["env"],
            folder=options["cwd"] and os.fspath(options["cwd"]),
            has_own_session=bool(options["start_new_session"]),
            has_workers=self._has_workers,
        )
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(options[end] for end in ends))


@contextlib.contextmanager
def workers_forked() -> Generator[None]:
    """In the block, workers that multiprocessing spawns for this process begin with their imports done."""
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux":
            stack.enter_context(_forker(ALL).workers_forked())
        yield


class PreloadedReading(Preloaded):
    """One that has imported what reads a run; it has no torch unless it imports it."""

    modules = READING


# The processes that fork for this one, by what they have imported.
_forkers: dict[Sequence[str], Forker] = {}


def begin_as_forks() -> None:
    """Begin the processes that fork as forks of this one, so that the libraries of all three are imported once.

    For a process of pytest that has not imported the workbench; it imports what the others need, in one thread.
    """
    if sys.platform != "linux":
        return
    for modules, libraries in LIBRARIES.items():
        for name in libraries:
            importlib.import_module(name)
        ours, its = socket_pair()
        pid = fork_of_tests(its, modules)
        _forkers[modules] = _forker_at(ours, its, lambda pid=pid: os.waitpid(pid, os.WNOHANG) != (0, 0))


def _forker(modules: Sequence[str]) -> Forker:
    """The process that forks for this one; it ends when this one does.

    That of what reads a run is begun first, and the other is its fork.
    """
    if modules in _forkers:
        return _forkers[modules]
    ours, its = socket_pair()
    words = ["-m", "tests.forking", str(its.fileno()), *modules]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    if modules == READING:
        options = {"env": environment, "cwd": root, "pass_fds": [its.fileno()], "stdin": subprocess.DEVNULL}
        process = subprocess.Popen([sys.executable, *words], **options)

        def has_ended() -> bool:
            return process.poll() is not None

    else:
        files = {number: number for number in (1, 2, its.fileno())}
        pid = _forker(READING).fork(words, files, environment=environment, folder=str(root))

        def has_ended() -> bool:
            return os.waitpid(pid, os.WNOHANG) != (0, 0)

    _forkers[modules] = _forker_at(ours, its, has_ended)
    return _forkers[modules]


def _forker_at(ours: socket.socket, its: socket.socket, has_ended: Callable[[], bool]) -> Forker:
    its.close()
    atexit.register(_end, ours, has_ended)
    return Forker(ours)


def _end(connection: socket.socket, has_ended: Callable[[], bool]) -> None:
    connection.close()
    deadline = time.monotonic() + 60
    while not has_ended():
        assert time.monotonic() < deadline, "a process that forks does not end"
        time.sleep(0.01)
