"""The quick demo as tests share it: interrupted once and continued, with a record of both commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests.children import child, output_of, run_child, until
from tests.preloaded import Preloaded

# Beside checkpoints/ and runs/, written last.
HISTORY = "history.json"


def make_interrupted_demo(folder: Path) -> None:
    """Begin the quick demo, interrupt it at its third checkpoint, and go on to its end.

    HISTORY has `interrupted` and `continued`, exit code and output of either command, and
    `times_of_an_early_checkpoint`, when weights that the first has left were written, as seen after either.
    """
    command = [sys.executable, "-m", "workbench.cli", "demo", "--quick", "--no-serve", "--json", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "text": True}
    start = partial(Preloaded, has_workers=True)
    weights = folder / "checkpoints" / "full" / "checkpoint-16" / "model.safetensors"
    with child(command, start=start, start_new_session=True, **pipes) as first:
        until(lambda: first.poll() is not None or weights.parent.exists())
        os.killpg(first.pid, signal.SIGINT)
        output, messages = output_of(first)
    history: dict[str, Any] = {"interrupted": _record(first.returncode, output, messages)}
    written = [weights.stat().st_mtime_ns]
    second = run_child(command, start=start, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    history["continued"] = _record(second.returncode, second.stdout, second.stderr)
    history["times_of_an_early_checkpoint"] = [*written, weights.stat().st_mtime_ns]
    (folder / HISTORY).write_text(json.dumps(history), encoding="utf-8")


def _record(code: int, output: str, messages: str) -> dict[str, Any]:
    return {"exit_code": code, "stdout": output, "stderr": messages}
