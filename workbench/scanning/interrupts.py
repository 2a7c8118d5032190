"""Ctrl-C and SIGTERM during long work: the first finishes the unit at hand, the second drops it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While in force, a first SIGINT or SIGTERM is only noted; `check()` between units raises it as KeyboardInterrupt.

    A second signal raises at once. Outside the main thread, where signals cannot be caught, nothing is changed.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._is_noted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def is_noted(self) -> bool:
        """Whether a signal has come since."""
        return self._is_noted

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come since."""
        if self._is_noted:
            raise KeyboardInterrupt

    def _note(self, _: int, __: FrameType | None) -> None:
        if self._is_noted:
            raise KeyboardInterrupt
        self._is_noted = True
