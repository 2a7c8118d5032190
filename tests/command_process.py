"""The command `workbench` run as a user runs it, each time in a process of its own, without the seconds of importing.

`python -m tests.command_process` is a server: it imports what verbs need once, and forks for every command that it
reads from stdin, a JSON line each. The fork sets the command's arguments, environment and output files and calls
`workbench.cli.main.main`, as `python -m workbench.cli` does. What a verb imports is not tested so: see
`tests/cli/test_verbs.py` for processes that begin with nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.children import first_line

# What the verbs import when they are called.
PRELOADED = ["workbench.cli.main", "workbench.hooks", "workbench.scanning.worker", "workbench.scanning.execution"]
PRELOADED += ["workbench.planning", "workbench.figures", "workbench.report", "workbench.experiments.conversion"]


def workbench(
    *arguments: object, environment: Mapping[str, str] | None = None, killed_after: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command with these arguments; its exit code, stdout and stderr, as `subprocess.run` gives them.

    `killed_after`: seconds after which its process is killed, if it still runs.
    """
    words = list(map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        request = {"arguments": words, "environment": dict(environment or {}), "folder": os.getcwd()}
        request["killed_after"] = killed_after
        server = _server()
        server.stdin.write(json.dumps({**request, "files": list(map(str, files))}) + "\n")
        server.stdin.flush()
        answer = first_line(server, server.stdout)
        assert answer, f"the server of commands ended while it ran {words}"
        return subprocess.CompletedProcess(words, int(answer), *(file.read_text(errors="replace") for file in files))


@cache
def _server() -> subprocess.Popen[Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "tests.command_process"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command, env=environment, cwd=Path(__file__).parent.parent, **pipes)
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[Any]) -> None:
    server.stdin.close()
    server.wait(timeout=60)
    server.stdout.close()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _run(request)
        status = _wait(child, request["killed_after"])
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _wait(child: int, killed_after: float | None) -> int:
    """The status of a child when it has ended; after some seconds it is killed."""
    end = None if killed_after is None else time.monotonic() + killed_after
    while end is not None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.002)
    return os.waitpid(child, 0)[1]


def _run(request: dict[str, Any]) -> None:
    """What `python -m workbench.cli` does, in this process, which ends with it."""
    code: Any = 1
    try:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        for number, file in enumerate(request["files"], 1):
            with open(file, "w") as output:
                os.dup2(output.fileno(), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = ["workbench", *request["arguments"]]
        from workbench.cli.main import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    _serve()
