"""The command `workbench` run as a user runs it, each time in a process of its own, without the seconds of importing.

What a verb imports is not tested so: see `tests/cli/test_verbs.py` for processes that begin with nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from tests.children import run_child
from tests.preloaded import Preloaded


def workbench(*arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command with these arguments; its exit code, stdout and stderr, as `subprocess.run` gives them."""
    command = [sys.executable, "-m", "workbench.cli", *arguments]
    options = {"env": {**os.environ, "COLUMNS": "200", **(environment or {})}, "stdin": subprocess.DEVNULL}
    return run_child(command, start=Preloaded, capture_output=True, text=True, errors="replace", **options)
