"""Answers that were made, by what they show: another browser, or the same one again, gets them at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

# Of a run with 3,072 heads at 154 checkpoints a figure has 20 to 180 kB, all its scores of a detector 750.
_MOST = 64

T = TypeVar("T")


class Remembered:
    """The last answers. Each is made once, however many ask for it at the same time; nobody may write into one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The answer with this key; made if it is not there."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                while len(self._kept) > _MOST:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]
