"""Models that are run on a text: in a process of its own each, whose result is kept until the app ends or a few follow.

The app itself never imports torch. Of checkpoints, only those can be run that a run's own series lists.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.heads import WorkbenchError
from workbench.store import PatternFile

# Results that are kept; the oldest make room.
KEPT = 4
MOST_CHARACTERS = 100_000
# The request, and what the process leaves: see `workbench.scanning.probe_page_worker`.
REQUEST, RESULT, ERRORS = "request.json", "result.safetensors", "errors.txt"


@dataclass
class Probing:
    """One model run: its process, and the last thing it said."""

    folder: Path
    process: subprocess.Popen[str]
    said: str = "starting"
    is_cancelled: bool = False
    listener: threading.Thread | None = None

    @property
    def state(self) -> str:
        """running, done, cancelled or failed."""
        code = self.process.poll()
        if self.is_cancelled:
            return "cancelled"
        if code is None:
            return "running"
        return "done" if code == 0 and (self.folder / RESULT).exists() else "failed"


class Probings:
    """The model runs of one app. Their folders go when the app does."""

    def __init__(self) -> None:
        self._each: dict[str, Probing] = {}
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _finish, self._each)

    def start(self, checkpoint: Path, *, text: str = "", probe: str = "") -> str:
        """Run a checkpoint on a text, or on a written probe, and return the name of what will come.

        What still runs is cancelled: one model at a time.

        Raises:
            WorkbenchError: if there is neither text nor probe, too much text, or no such folder.
        """
        if not probe and not text.strip():
            raise WorkbenchError("there is no text; write some, or pick a standard probe")
        if len(text) > MOST_CHARACTERS:
            raise WorkbenchError(f"the text has {len(text):,} characters; expected at most {MOST_CHARACTERS:,}")
        if not checkpoint.is_dir():
            raise WorkbenchError(
                f"the checkpoint's folder {checkpoint} is no longer there; put it back, or choose another checkpoint"
            )
        with self._lock:
            for name in list(self._each):
                self._cancel(self._each[name])
            while len(self._each) >= KEPT:
                shutil.rmtree(self._each.pop(next(iter(self._each))).folder, ignore_errors=True)
            name = secrets.token_hex(8)
            folder = Path(tempfile.mkdtemp(prefix="workbench-probe-"))
            request = {"checkpoint": str(checkpoint), "text": text, "probe": probe}
            (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
            with (folder / ERRORS).open("w", encoding="utf-8") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-m", "workbench.scanning.probe_page_worker", str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    start_new_session=True,  # a Ctrl-C on the terminal ends the app, which ends this
                )
            self._each[name] = probing = Probing(folder, process)
            probing.listener = threading.Thread(target=_listen, args=(probing,), daemon=True)
            probing.listener.start()
        return name

    def status(self, name: str) -> dict[str, Any]:
        """How far a model run is: state, what it last said, and the reason of a failure.

        Raises:
            WorkbenchError: if there is none of that name.
        """
        probing = self._find(name)
        state = probing.state
        reason = ""
        if state == "failed":
            probing.process.wait()
            told = [line for line in (probing.folder / ERRORS).read_text().splitlines() if line.strip()]
            ended = f"the process ended with {probing.process.returncode}"
            reason = told[-1].strip().removeprefix("error: ") if told else ended
        return {"state": state, "said": probing.said, "reason": reason}

    def cancel(self, name: str) -> None:
        """End a model run.

        Raises:
            WorkbenchError: if there is none of that name.
        """
        self._cancel(self._find(name))

    def result(self, name: str) -> PatternFile:
        """The patterns that a model run left.

        Raises:
            WorkbenchError: if there is none of that name, or it has not ended well.
        """
        probing = self._find(name)
        if probing.state != "done":
            raise WorkbenchError(f"there is no result: the model run is {probing.state}; run it again")
        return PatternFile(probing.folder / RESULT)

    def close(self) -> None:
        """End what runs and remove all results."""
        self._end()

    def _find(self, name: str) -> Probing:
        if name not in self._each:
            raise WorkbenchError("that result is no longer kept; run the model again")
        return self._each[name]

    def _cancel(self, probing: Probing) -> None:
        if probing.process.poll() is None:
            probing.is_cancelled = True
            _end(probing)


def checkpoint_folder(series: Sequence[Mapping[str, Any]], ckpt: str) -> Path:
    """The folder of a checkpoint as its run's series recorded it.

    Raises:
        WorkbenchError: if the series has no such checkpoint.
    """
    paths = checkpoint_folders(series)
    if ckpt not in paths:
        raise WorkbenchError(f"the run's series has no checkpoint {ckpt!r} with a folder; choose one of the list")
    return paths[ckpt]


def checkpoint_folders(series: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """The folders of a run's checkpoints by name, of those whose folder was recorded."""
    return {str(record["ckpt"]): Path(path) for record in series if isinstance(path := record.get("path"), str)}


def _listen(probing: Probing) -> None:
    """Keep the last line that the process says."""
    assert probing.process.stdout is not None
    with probing.process.stdout as lines:
        for line in lines:
            probing.said = line.strip() or probing.said
    probing.process.wait()


def _end(probing: Probing) -> None:
    if probing.process.poll() is None:
        probing.process.kill()
        probing.process.wait()
    if probing.listener is not None:
        probing.listener.join()


def _finish(each: dict[str, Probing]) -> None:
    for probing in each.values():
        _end(probing)
        shutil.rmtree(probing.folder, ignore_errors=True)
    each.clear()
