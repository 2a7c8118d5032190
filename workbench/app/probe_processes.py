"""Run models on texts in a process of their own, which keeps its model open for the next text.

The app itself never imports torch. There is one process, with one model: it is ended when another model is asked for,
when a run is cancelled, after ten minutes without a text, and with the app. The last few results are kept until the
app ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.app.probe_sources import missing_folder
from workbench.checkpoints.hub_references import cached_checkpoint
from workbench.files.file_stamps import stamp_of
from workbench.heads import WorkbenchError
from workbench.hub.byte_sizes import bytes_in_words
from workbench.hub.references import HubReference
from workbench.store import PatternFile

# The number of results that are kept; a new one replaces the oldest.
KEPT = 4
MOST_CHARACTERS = 100_000
IDLE_S = 600.0
# Files of the process: see `workbench.scanning.probe_page_worker`.
REQUEST, RESULT, LOSSES, ERRORS = "request.json", "result.safetensors", "losses.json", "errors.txt"

# What a process was started for: the kind and the name of its model, and its tokenizer.
ModelKey = tuple[str, str, str | None]


@dataclass(eq=False)
class ModelProcess:
    """A process with a model, the requests that it has not answered, and the thread that reads what it prints.

    `lock`: held while it is handed a request, and while it is looked at whether it is idle.
    """

    key: ModelKey
    process: subprocess.Popen[str]
    errors: Path
    lock: threading.RLock
    requests: dict[str, Probing] = field(default_factory=dict[str, "Probing"])
    reader: threading.Thread | None = None
    idle: threading.Timer | None = None
    # Whether the app has ended it.
    is_over: bool = False

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def how_it_ended(self) -> str:
        """The last line that it wrote to stderr, or how it ended."""
        code = self.process.wait()
        lines = [line.strip() for line in self.errors.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1]
        if code >= 0:
            return f"the model's process ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        return f"the model's process was ended by {name}{memory}"


@dataclass(eq=False)
class Probing:
    """One model run: its folder, its process, the last stage that this printed, and how it ended."""

    folder: Path
    worker: ModelProcess
    note: str = ""
    progress: str = "starting"
    end: str = ""
    reason: str = ""

    @property
    def state(self) -> str:
        """running, done, cancelled or failed."""
        if not self.end and not self.worker.is_running:
            if self.worker.reader is not None:
                self.worker.reader.join()  # what it printed last may not have been read
            if not self.end:
                self.end, self.reason = "failed", f"{self.worker.how_it_ended()}; run it again, which starts it again"
        return self.end or "running"


@dataclass(eq=False)
class _Held:
    """What goes when the app ends."""

    probings: dict[str, Probing] = field(default_factory=dict[str, Probing])
    worker: ModelProcess | None = None
    base: Path | None = None


class Probings:
    """The model runs of one app; their folders are removed when the app ends."""

    def __init__(self, *, idle_s: float = IDLE_S) -> None:
        self._held = _Held()
        self._idle_s = idle_s
        self._lock = threading.RLock()
        self._finalizer = weakref.finalize(self, _close, self._held)

    def start(
        self, checkpoint: Path | HubReference, *, text: str = "", probe: str = "", tokenizer: str | None = None
    ) -> str:
        """Run a checkpoint on a text, or on a probe's specification, and return the name of the run.

        A model at a hub that is not in the cache is fetched into it first. The same text on the same files is not run
        again while its result is kept. A process that has this model open runs it.

        `tokenizer`: that of the checkpoint's run; None: the checkpoint's own.

        A run that has not ended is cancelled: one model runs at a time.

        Raises:
            WorkbenchError: if there is neither text nor probe, too much text, or no such folder.
        """
        if not probe and not text.strip():
            raise WorkbenchError("there is no text; write some, or pick a standard probe")
        if len(text) > MOST_CHARACTERS:
            raise WorkbenchError(f"the text has {len(text):,} characters; expected at most {MOST_CHARACTERS:,}")
        if isinstance(checkpoint, Path) and (missing := missing_folder(checkpoint)):
            raise WorkbenchError(missing)
        request = _request(checkpoint, text=text, probe=probe, tokenizer=tokenizer)
        with self._lock:
            name = _name_of(request, checkpoint)
            if self._is_kept(name):
                return name
            for other in self._held.probings:
                self.cancel(other)
            self._held.probings.pop(name, None)
            while len(self._held.probings) >= KEPT:
                oldest = self._held.probings.pop(next(iter(self._held.probings)))
                shutil.rmtree(oldest.folder, ignore_errors=True)
            if self._held.base is None:
                self._held.base = Path(tempfile.mkdtemp(prefix="workbench-probe-"))
            folder = self._held.base / name
            folder.mkdir(exist_ok=True)
            (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
            self._held.probings[name] = self._handed_on(folder, _key_of(request))
        return name

    def find(
        self, checkpoint: Path | HubReference, *, text: str = "", probe: str = "", tokenizer: str | None = None
    ) -> str | None:
        """The name of a run of the same text on the same files that is running, or whose result is kept."""
        request = _request(checkpoint, text=text, probe=probe, tokenizer=tokenizer)
        with self._lock:
            name = _name_of(request, checkpoint)
            return name if self._is_kept(name) else None

    def status(self, name: str) -> dict[str, Any]:
        """The state of a model run, its last stage (`said`), a note on its process, and the reason of a failure.

        Raises:
            WorkbenchError: if there is none of that name.
        """
        probing = self._find(name)
        state = probing.state
        return {"state": state, "said": probing.progress, "note": probing.note, "reason": probing.reason}

    def cancel(self, name: str) -> None:
        """End a model run, with its process.

        Raises:
            WorkbenchError: if there is none of that name.
        """
        probing = self._find(name)
        if probing.state == "running":
            probing.end = "cancelled"
            _end(probing.worker)

    def result(self, name: str) -> PatternFile:
        """The patterns that a model run recorded.

        Raises:
            WorkbenchError: if there is none of that name, or it has not ended successfully.
        """
        return PatternFile(self._done(name).folder / RESULT)

    def losses(self, name: str) -> dict[str, Any]:
        """The loss of each token in nats (`nats`; None for the first), or the reason why there are none.

        Raises:
            WorkbenchError: as `result`.
        """
        return json.loads((self._done(name).folder / LOSSES).read_text(encoding="utf-8"))

    def close(self) -> None:
        """End a running process and remove all results."""
        self._finalizer()

    def _done(self, name: str) -> Probing:
        probing = self._find(name)
        if probing.state != "done":
            raise WorkbenchError(f"there is no result: the model run is {probing.state}; run it again")
        return probing

    def _find(self, name: str) -> Probing:
        if name not in self._held.probings:
            raise WorkbenchError("that result is no longer kept; run the model again")
        return self._held.probings[name]

    def _is_kept(self, name: str) -> bool:
        return name in self._held.probings and self._held.probings[name].state in {"running", "done"}

    def _handed_on(self, folder: Path, key: ModelKey) -> Probing:
        """Hand a request to the process that has its model open, or to a new one."""
        worker, note = self._held.worker, ""
        if worker is not None and worker.key == key and not worker.is_running and not worker.is_over:
            note = f"{worker.how_it_ended()}; it was started again"
        if worker is None or worker.key != key or not worker.is_running:
            if worker is not None:
                _end(worker)
            worker = self._held.worker = self._started(key, folder.parent)
        if worker.idle is not None:
            worker.idle.cancel()
        probing = worker.requests[folder.name] = Probing(folder, worker, note)
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended just now, which the state of the run says
            worker.process.stdin.write(f"{folder}\n")
            worker.process.stdin.flush()
        return probing

    def _started(self, key: ModelKey, base: Path) -> ModelProcess:
        errors = base / ERRORS
        with errors.open("w", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "workbench.scanning.probe_page_worker", str(base)],
                stdin=subprocess.PIPE,  # it ends when this does: the app is gone, however it ended
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # a Ctrl-C on the terminal ends the app, which ends this
            )
        worker = ModelProcess(key, process, errors, self._lock)
        worker.reader = threading.Thread(target=_read_lines, args=(worker, self._idle_s), daemon=True)
        worker.reader.start()
        return worker


def _request(checkpoint: Path | HubReference, *, text: str, probe: str, tokenizer: str | None) -> dict[str, Any]:
    kind = "checkpoint" if isinstance(checkpoint, Path) else "reference"
    return {kind: str(checkpoint), "text": text, "probe": probe, "tokenizer": tokenizer}


def _key_of(request: dict[str, Any]) -> ModelKey:
    kind = "checkpoint" if "checkpoint" in request else "reference"
    return kind, request[kind], request["tokenizer"]


def _name_of(request: dict[str, Any], source: Path | HubReference) -> str:
    """A digest of a request and of the state of its model's files."""
    stamp = stamp_of(source) if isinstance(source, Path) else str(cached_checkpoint(source))
    return hashlib.blake2b(json.dumps([request, stamp], sort_keys=True).encode(), digest_size=8).hexdigest()


def _read_lines(worker: ModelProcess, idle_s: float) -> None:
    """Note what the process prints: the stage of a request, or how it ended."""
    assert worker.process.stdout is not None
    with worker.process.stdout as lines:
        for line in lines:
            with contextlib.suppress(ValueError, KeyError):  # what a library prints is no line of ours
                _note(worker, json.loads(line), idle_s)
    worker.process.wait()


def _note(worker: ModelProcess, printed: dict[str, Any], idle_s: float) -> None:
    probing = worker.requests[printed["folder"]]
    if "stage" in printed:
        probing.progress = printed["stage"]
        return
    # Before the end is said: a request that follows it at once takes the timer away.
    del worker.requests[printed["folder"]]
    worker.idle = threading.Timer(idle_s, _end_if_idle, args=(worker,))
    worker.idle.daemon = True
    worker.idle.start()
    probing.reason = printed["reason"]
    if printed["end"] == "done":
        how = "the model was open" if printed["was_open"] else "the model was opened"
        minutes = f"{idle_s / 60:.0f} minutes" if idle_s >= 60 else f"{idle_s:g} s"
        stays = f"it stays open for the next text for {minutes}, in {bytes_in_words(printed['memory'])} of memory"
        probing.progress = f"done in {printed['seconds']:.1f} s; {how}, and {stays}"
    probing.end = probing.end or printed["end"]


def _end_if_idle(worker: ModelProcess) -> None:
    with worker.lock:
        if not worker.requests:
            _end(worker)


def _end(worker: ModelProcess) -> None:
    worker.is_over = True
    if worker.idle is not None:
        worker.idle.cancel()
    if worker.is_running:
        worker.process.kill()
        worker.process.wait()
    if worker.reader is not None and worker.reader is not threading.current_thread():
        worker.reader.join()
    if worker.process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.close()


def _close(held: _Held) -> None:
    if held.worker is not None:
        _end(held.worker)
    if held.base is not None:
        shutil.rmtree(held.base, ignore_errors=True)
    held.probings.clear()
