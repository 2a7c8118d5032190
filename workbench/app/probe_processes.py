"""Run checkpoints on texts, each in a process of its own; the last few results are kept until the app ends.

The app itself never imports torch. Only checkpoints that a run's series lists can be run, and models that the Hugging
Face cache has or a hub hands out: a reader of the page cannot name a folder.
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

from workbench.checkpoints.hub_references import cached_checkpoint, is_whole
from workbench.heads import WorkbenchError
from workbench.hub.hub_errors import endpoint, is_offline
from workbench.hub.named_models import resolve_model
from workbench.hub.published_models import PUBLISHED
from workbench.hub.references import HubReference, parse_reference
from workbench.store import PatternFile

# The number of results that are kept; a new one replaces the oldest.
KEPT = 4
MOST_CHARACTERS = 100_000
# Files of the process: see `workbench.scanning.probe_page_worker`.
REQUEST, RESULT, ERRORS = "request.json", "result.safetensors", "errors.txt"


@dataclass
class Probing:
    """One model run: its process, and the last line that it printed."""

    folder: Path
    process: subprocess.Popen[str]
    progress: str = "starting"
    is_cancelled: bool = False
    reader: threading.Thread | None = None

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
    """The model runs of one app; their folders are removed when the app ends."""

    def __init__(self) -> None:
        self._probings: dict[str, Probing] = {}
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _close, self._probings)

    def start(
        self, checkpoint: Path | HubReference, *, text: str = "", probe: str = "", tokenizer: str | None = None
    ) -> str:
        """Run a checkpoint on a text, or on a probe's specification, and return the name of the run.

        A model at a hub that is not in the cache is fetched into it first.

        `tokenizer`: that of the checkpoint's run; None: the checkpoint's own.

        A run that has not ended is cancelled: one model runs at a time.

        Raises:
            WorkbenchError: if there is neither text nor probe, too much text, or no such folder.
        """
        if not probe and not text.strip():
            raise WorkbenchError("there is no text; write some, or pick a standard probe")
        if len(text) > MOST_CHARACTERS:
            raise WorkbenchError(f"the text has {len(text):,} characters; expected at most {MOST_CHARACTERS:,}")
        if isinstance(checkpoint, Path) and not checkpoint.exists():
            published = f", or `workbench get {checkpoint.name}` and write its name as the model's id"
            raise WorkbenchError(
                f"the checkpoint's folder {checkpoint} is not on this disk; put it back, or choose another checkpoint"
                f"{published if checkpoint.name in PUBLISHED else ''}"
            )
        with self._lock:
            for name in list(self._probings):
                self._cancel(self._probings[name])
            while len(self._probings) >= KEPT:
                shutil.rmtree(self._probings.pop(next(iter(self._probings))).folder, ignore_errors=True)
            name = secrets.token_hex(8)
            folder = Path(tempfile.mkdtemp(prefix="workbench-probe-"))
            kind = "checkpoint" if isinstance(checkpoint, Path) else "reference"
            request = {kind: str(checkpoint), "text": text, "probe": probe, "tokenizer": tokenizer}
            (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
            with (folder / ERRORS).open("w", encoding="utf-8") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-m", "workbench.scanning.probe_page_worker", str(folder)],
                    stdin=subprocess.PIPE,  # it ends when this does: the app is gone, however it ended
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    start_new_session=True,  # a Ctrl-C on the terminal ends the app, which ends this
                )
            self._probings[name] = probing = Probing(folder, process)
            probing.reader = threading.Thread(target=_read_lines, args=(probing,), daemon=True)
            probing.reader.start()
        return name

    def status(self, name: str) -> dict[str, Any]:
        """The state of a model run, its last printed line (`said`), and the reason of a failure.

        Raises:
            WorkbenchError: if there is none of that name.
        """
        probing = self._find(name)
        state = probing.state
        reason = ""
        if state == "failed":
            probing.process.wait()
            errors = [line for line in (probing.folder / ERRORS).read_text().splitlines() if line.strip()]
            exit_code = f"the process ended with {probing.process.returncode}"
            reason = errors[-1].strip().removeprefix("error: ") if errors else exit_code
        return {"state": state, "said": probing.progress, "reason": reason}

    def cancel(self, name: str) -> None:
        """End a model run.

        Raises:
            WorkbenchError: if there is none of that name.
        """
        self._cancel(self._find(name))

    def result(self, name: str) -> PatternFile:
        """The patterns that a model run recorded.

        Raises:
            WorkbenchError: if there is none of that name, or it has not ended successfully.
        """
        probing = self._find(name)
        if probing.state != "done":
            raise WorkbenchError(f"there is no result: the model run is {probing.state}; run it again")
        return PatternFile(probing.folder / RESULT)

    def close(self) -> None:
        """End a running process and remove all results."""
        self._finalizer()

    def _find(self, name: str) -> Probing:
        if name not in self._probings:
            raise WorkbenchError("that result is no longer kept; run the model again")
        return self._probings[name]

    def _cancel(self, probing: Probing) -> None:
        if probing.process.poll() is None:
            probing.is_cancelled = True
            _end(probing)


def checkpoint_source(series: Sequence[Mapping[str, Any]], ckpt: str) -> Path | HubReference:
    """The folder of a checkpoint or, where a scan of a hub has removed its weights, its place at the hub.

    Raises:
        WorkbenchError: if the series has no such checkpoint.
    """
    folder = checkpoint_folder(series, ckpt)
    record = next(record for record in series if record["ckpt"] == ckpt)
    repo, commit = record.get("repo"), record.get("commit")
    if isinstance(repo, str) and isinstance(commit, str) and not (folder.is_dir() and is_whole(folder)):
        return HubReference(repo, commit)
    return folder


def named_model(text: str) -> Path | HubReference:
    """The model that a reader of the page names: the folder of a published one that is here, or a model at a hub.

    Raises:
        WorkbenchError: if it is no id of one model, or a published one that was not fetched.
    """
    written = text.strip()
    if written in PUBLISHED:
        return resolve_model(written, exists=False)
    reference = parse_reference(written, exists=False)
    if reference is None or reference.is_glob:
        raise WorkbenchError(
            f"{written!r} is no id of a model; write org/name, org/name@revision, or one of {', '.join(PUBLISHED)}"
        )
    return reference


def note_on(source: Path | HubReference) -> str:
    """What running a checkpoint will fetch, in words; nothing is asked of a hub. Empty where it is on this disk."""
    if isinstance(source, Path):
        return ""
    if cached_checkpoint(source) is not None:
        return f"{source} is in the Hugging Face cache; nothing is fetched"
    if is_offline():
        return f"{source} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set: it cannot be fetched"
    return f"{source} is not in the Hugging Face cache: Run fetches it from {endpoint()}, and says its size"


def checkpoint_folder(series: Sequence[Mapping[str, Any]], ckpt: str) -> Path:
    """The folder of a checkpoint, as its run's series recorded it.

    Raises:
        WorkbenchError: if the series has no such checkpoint.
    """
    paths = checkpoint_folders(series)
    if ckpt not in paths:
        raise WorkbenchError(f"the run's series has no checkpoint {ckpt!r} with a folder; choose one of the list")
    return paths[ckpt]


def checkpoint_folders(series: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """The recorded folders of a run's checkpoints, by name; those of checkpoints that are gone are left out."""
    there = [record for record in series if not record.get("is_gone")]
    return {str(record["ckpt"]): Path(path) for record in there if isinstance(path := record.get("path"), str)}


def _read_lines(probing: Probing) -> None:
    """Keep the last line that the process prints."""
    assert probing.process.stdin is not None
    assert probing.process.stdout is not None
    with probing.process.stdin, probing.process.stdout as lines:
        for line in lines:
            probing.progress = line.strip() or probing.progress
        probing.process.wait()


def _end(probing: Probing) -> None:
    if probing.process.poll() is None:
        probing.process.kill()
        probing.process.wait()
    if probing.reader is not None:
        probing.reader.join()


def _close(probings: dict[str, Probing]) -> None:
    for probing in probings.values():
        _end(probing)
        shutil.rmtree(probing.folder, ignore_errors=True)
    probings.clear()
