"""The progress of a scan, counted from the events of its workers, and how it is shown where a person waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from workbench.console import watched_bar


@dataclass(frozen=True, slots=True)
class Progress:
    """Units done and planned, failures stored, the checkpoint and probe being processed, and seconds remaining.

    `tokens`: those that the model runs over for all planned units.
    """

    done: int
    failed: int
    planned: int
    checkpoint: str
    probe: str
    eta_s: float | None
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """What changed at a checkpoint since its worker's last event.

    `found`: units that an earlier scan had done; `committed`: units done now; `failed`: failures stored. `tokens`:
    those of the units found or committed.
    """

    checkpoint: str
    probe: str = ""
    found: int = 0
    committed: int = 0
    failed: int = 0
    tokens: int = 0


OnProgress = Callable[[Progress], None]


@contextmanager
def default_progress() -> Generator[OnProgress]:
    """Yield a callback that draws a bar on stderr, on a terminal or in a notebook; elsewhere it prints nothing."""
    with watched_bar("unit") as show:

        def on_progress(progress: Progress) -> None:
            failed = f", {progress.failed} failed" if progress.failed else ""
            show(progress.done, progress.planned, f"{progress.checkpoint} {progress.probe}{failed}")

        yield on_progress


class ProgressCounter:
    """The sum of all events of one scan; reports after each."""

    def __init__(
        self, per_checkpoint: int, n_checkpoints: int, on_progress: OnProgress, *, tokens_per_checkpoint: int = 0
    ) -> None:
        self._per_checkpoint, self._n_checkpoints, self._on_progress = per_checkpoint, n_checkpoints, on_progress
        self._tokens_per_checkpoint = tokens_per_checkpoint
        self._done = self._failed = self._committed = self._ended = 0
        self._tokens_done = self._tokens_committed = 0
        self._started = time.monotonic()

    def add(self, event: Event) -> None:
        """Add an event and report."""
        self._done += event.found + event.committed
        self._committed += event.committed
        self._failed += event.failed
        self._tokens_done += event.tokens
        self._tokens_committed += event.tokens if event.committed else 0
        self._on_progress(self._progress(event.checkpoint, event.probe))

    def end_checkpoint(self, checkpoint: str) -> None:
        """Count a checkpoint as processed, with or without failures, and report."""
        self._ended += 1
        self.add(Event(checkpoint))

    def _progress(self, checkpoint: str, probe: str) -> Progress:
        planned = self._per_checkpoint * self._n_checkpoints
        tokens = self._tokens_per_checkpoint * self._n_checkpoints
        seconds = time.monotonic() - self._started
        if self._tokens_committed:  # probes differ in length: tokens tell more of the time than units do
            remaining = max(0, tokens - max(self._tokens_done, self._tokens_per_checkpoint * self._ended))
            pace = seconds / self._tokens_committed
        else:
            remaining = max(0, planned - max(self._done, self._per_checkpoint * self._ended))
            pace = seconds / self._committed if self._committed else None
        return Progress(
            done=self._done,
            failed=self._failed,
            planned=planned,
            checkpoint=checkpoint,
            probe=probe,
            eta_s=None if pace is None else pace * remaining,
            tokens=tokens,
        )
