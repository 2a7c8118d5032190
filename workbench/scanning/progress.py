"""Where a scan stands, told from what its workers say."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a scan stands: units done and planned, failures stored, the checkpoint and probe at work, seconds to go."""

    done: int
    failed: int
    planned: int
    checkpoint: str
    probe: str
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Event:
    """What a worker says: units that it found done, that it committed and that failed, since its last event."""

    checkpoint: str
    probe: str = ""
    found: int = 0
    committed: int = 0
    failed: int = 0


OnProgress = Callable[[Progress], None]


class Counts:
    """The sum of all events of one call."""

    def __init__(self, per_checkpoint: int, n_checkpoints: int, on_progress: OnProgress | None) -> None:
        self._per_checkpoint, self._n_checkpoints, self._on_progress = per_checkpoint, n_checkpoints, on_progress
        self._done = self._failed = self._committed = self._ended = 0
        self._started = time.monotonic()

    def hear(self, event: Event) -> None:
        """Add an event and report."""
        self._done += event.found + event.committed
        self._committed += event.committed
        self._failed += event.failed
        if self._on_progress is not None:
            self._on_progress(self._progress(event.checkpoint, event.probe))

    def end(self, checkpoint: str) -> None:
        """A checkpoint is behind us, whatever came of it."""
        self._ended += 1
        self.hear(Event(checkpoint))

    def _progress(self, checkpoint: str, probe: str) -> Progress:
        planned = self._per_checkpoint * self._n_checkpoints
        left = max(0, planned - max(self._done, self._per_checkpoint * self._ended))
        pace = (time.monotonic() - self._started) / self._committed if self._committed else None
        return Progress(
            done=self._done,
            failed=self._failed,
            planned=planned,
            checkpoint=checkpoint,
            probe=probe,
            eta_s=None if pace is None else pace * left,
        )
