"""The command `workbench` run as a user runs it, each time in a process of its own, without the seconds of importing.

What a verb imports is not tested so: see `tests/cli/test_verbs.py` for processes that begin with nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.children import child, output_of, run_child
from tests.preloaded import Preloaded


def workbench(
    *arguments: object, environment: Mapping[str, str] | None = None, killed_after: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command with these arguments; its exit code, stdout and stderr, as `subprocess.run` gives them.

    `killed_after`: seconds after which its process is killed, if it still runs.
    """
    command = [sys.executable, "-m", "workbench.cli", *arguments]
    options: dict[str, Any] = {"env": {**os.environ, "COLUMNS": "200", **(environment or {})}, "text": True}
    options |= {"stdin": subprocess.DEVNULL, "errors": "replace"}
    if killed_after is None:
        return run_child(command, start=Preloaded, capture_output=True, **options)
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child(command, start=Preloaded, **options) as process:
        try:
            printed = process.communicate(timeout=killed_after)
        except subprocess.TimeoutExpired:
            process.kill()
            printed = output_of(process)
        return subprocess.CompletedProcess(command, process.returncode, *printed)
