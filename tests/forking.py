"""`python -m tests.forking FD MODULE…`: a process that imports these modules, and forks for processes that need them.

1. A request comes through a socket: words of a command, environment, folder, signals, files (see `Forker`).
2. The process forks, the fork forks again and ends. The second fork is an orphan, and belongs to the nearest process
   above that has asked for such: the one that sent the request, whose child it is from then on.
3. It runs the command as Python would. Before that, if the command has workers of multiprocessing, it forks once more:
   a process that waits as the first does and forks for these workers, whose parent the command then is.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Generator, Mapping, Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORKER = "spawn_main"  # in the name of a worker's process, as in its command line where it begins with nothing
_LIMIT = 1 << 20  # bytes of a message
_SET_NAME, _ADOPT_ORPHANS = 15, 36  # <linux/prctl.h>


class Forker:
    """The side of the socket that asks for processes, and is their parent."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lock = connection, threading.Lock()
        _prctl(_ADOPT_ORPHANS, 1)

    def fork(
        self,
        words: Sequence[str],
        files: Mapping[int, int],
        *,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
        has_own_session: bool = False,
        has_workers: bool = False,
    ) -> int:
        """The number of a process that runs Python's command of these words, with these of our files as its own."""
        request = {
            "words": list(words),
            "files": list(files),
            "environment": dict(os.environ if environment is None else environment),
            "folder": folder or os.getcwd(),
            "ignored": [int(number) for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN],
            "has_own_session": has_own_session,
            "has_workers": has_workers,
        }
        with self._lock:
            _send(self._connection, request, list(files.values()))
            answer = _receive(self._connection)[0]
        assert answer, f"the process that forks ended at {list(words)}"
        return answer["pid"]

    @contextlib.contextmanager
    def workers_forked(self) -> Generator[None]:
        """In the block, workers that multiprocessing spawns are forks; its other processes are as ever."""
        spawn = util.spawnv_passfds

        def fork(path: Any, command: Sequence[Any], files: Sequence[int]) -> int:
            words = [os.fsdecode(word) for word in command[1:]]
            if "--multiprocessing-fork" not in words:
                return spawn(path, command, files)
            return self.fork(words, {int(file): int(file) for file in (0, 1, 2, *files)})

        util.spawnv_passfds = fork
        try:
            yield
        finally:
            util.spawnv_passfds = spawn


def _send(connection: socket.socket, message: Mapping[str, Any], files: Sequence[int]) -> None:
    socket.send_fds(connection, [json.dumps(message).encode()], files)


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A message and its files; None at the end of the other side."""
    message, files, _, _ = socket.recv_fds(connection, _LIMIT, 64)
    return json.loads(message) if message else None, list(files)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a socket for messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _prctl(option: int, argument: Any) -> None:
    assert ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for every request until the other side ends. Return in forks alone: the request, its files in place."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a fork takes those up that come before it has its handlers
    while True:
        request, files = _receive(connection)
        if request is None:
            os._exit(0)
        pid = _forked_twice(has_own_session=request["has_own_session"])
        if pid is None:
            connection.close()
            _put_in_place(dict(zip(request["files"], files, strict=True)))
            return request
        for file in files:
            os.close(file)
        _send(connection, {"pid": pid}, [])


def _forked_twice(*, has_own_session: bool) -> int | None:
    """The number of a fork's fork, once the one between has ended; None inside it, then too."""
    reading, writing = os.pipe()
    between = os.fork()
    if not between:
        between = os.getpid()
        if os.fork():
            os._exit(0)
        if has_own_session:
            os.setsid()  # its parent may ask for its group as soon as it has its number
        os.write(writing, b"%d" % os.getpid())
        os.close(reading)
        os.close(writing)
        while os.getppid() == between:
            time.sleep(0.001)
        return None
    os.close(writing)
    os.waitpid(between, 0)
    with open(reading, "rb") as pipe:
        return int(pipe.read())


def _put_in_place(files: Mapping[int, int]) -> None:
    """Give each open file its number."""
    moved = {number: fcntl.fcntl(file, fcntl.F_DUPFD, max(files) + 1) for number, file in files.items()}
    for file in files.values():
        os.close(file)
    for number, file in moved.items():
        os.dup2(file, number, inheritable=True)
        os.close(file)


def _begin(request: Mapping[str, Any]) -> None:
    """Take on what the request says, as a process inherits it."""
    for number in SIGNALS:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else default)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ.clear()
    os.environ.update(request["environment"])
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:
        importlib.reload(constants)  # it reads the environment when it is imported
    os.chdir(request["folder"])
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if "--multiprocessing-fork" in request["words"]:
        _prctl(_SET_NAME, WORKER.encode())


def _run(words: Sequence[str]) -> None:
    """`python WORDS…`, of which `-c` and `-m` are known, and flags of the interpreter are left out."""
    words = list(words)
    while words[0].startswith("-") and words[0] not in ("-c", "-m"):
        del words[: 2 if words[0] in ("-W", "-X") else 1]
    first = words.pop(0)
    if first == "-m":
        sys.path[0], sys.argv = os.getcwd(), words
        sys.modules.pop(words[0], None)  # runpy warns of a module that is there already
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path[0], sys.argv = "", ["-c", *words[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[0], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0], sys.argv = os.path.dirname(first), [first, *words]
        runpy.run_path(first, run_name="__main__")


def _end_as_python(words: Sequence[str]) -> None:
    """Run the command and end this process, as Python does."""
    code: Any = 0
    try:
        _run(words)
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code or 0)


def fork_of_tests(connection: socket.socket, modules: Sequence[str]) -> int:
    """The number of a fork of this process of pytest that forks for others, as one begun by `python -m` does.

    The fork has this process's libraries. What pytest and its plugins do to imports, warnings, output and files is
    undone in it before it imports `modules`, none of which may have been imported here.
    """
    assert not set(modules) & set(sys.modules), "what pytest has instrumented cannot be as it is without pytest"
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    try:
        _forget_pytest(connection)
        _main(connection, modules)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _forget_pytest(connection: socket.socket) -> None:
    atexit._clear()
    os.closerange(3, connection.fileno())
    os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    for name, file, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        stream = open(file, mode, errors="backslashreplace" if file == 2 else None, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.meta_path[:] = [x for x in sys.meta_path if not type(x).__module__.startswith(("_pytest", "jaxtyping"))]
    sys.path.insert(0, str(Path(__file__).parent.parent))
    warnings.resetwarnings()
    gc.enable()


def _main(connection: socket.socket, modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is there is not written into by a fork's collections, and so not copied
    request = _serve(connection)
    with contextlib.ExitStack() as stack:
        if request["has_workers"]:
            ours, its = socket_pair()
            if os.fork():
                its.close()
                stack.enter_context(Forker(ours).workers_forked())
            else:
                ours.close()
                request = _serve(its)
        _begin(request)
        _end_as_python(request["words"])


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
