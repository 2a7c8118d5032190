"""Ctrl-C and SIGTERM during long work: the first lets the current unit finish, the second interrupts it.

A pool's worker leaves Ctrl-C to its parent and ends with it.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process
from types import FrameType
from typing import Any


class Interrupts:
    """Inside the block, note the first SIGINT or SIGTERM; `check()` then raises KeyboardInterrupt between units.

    A second signal raises KeyboardInterrupt at once. A signal that the process ignores, as under `nohup` or in a job's
    background, stays ignored. Outside the main thread signals cannot be caught, and the block changes nothing.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._is_noted = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            caught = [s for s in self._SIGNALS if signal.getsignal(s) not in (signal.SIG_IGN, None)]
            self._handlers = {s: signal.signal(s, self._note) for s in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def is_noted(self) -> bool:
        """Whether a signal has arrived inside the block."""
        return self._is_noted

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has arrived."""
        if self._is_noted:
            raise KeyboardInterrupt

    def _note(self, _: int, __: FrameType | None) -> None:
        if self._is_noted:
            raise KeyboardInterrupt
        self._is_noted = True


def follow_parent() -> None:
    """In a pool's worker: ignore SIGINT, which the parent handles, and end at once when the parent has ended.

    A worker of the standard library's pool holds both ends of its queue: without this, it waits for ever for work of
    a parent that was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C on the terminal reaches every process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
