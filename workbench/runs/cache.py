"""An LRU cache for threads: a missing value is made once, however many threads ask for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class SharedCache:
    """The values used last, up to a total size. Readers share a value, so nobody may write into one."""

    def __init__(self, max_size: int, size_of: Callable[[Any], int] | None = None) -> None:
        """`size_of`: the size of a value; None: each counts 1, and `max_size` is a number of values."""
        self._lock = threading.RLock()
        self._values: LRUCache[Hashable, Any] = LRUCache(max_size, getsizeof=size_of)

    @property
    def size(self) -> int:
        """The total size of the values in it."""
        return int(self._values.currsize)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of this key; made if it is not there. A value larger than the whole cache is not kept."""
        with self._lock:
            if key in self._values:
                return self._values[key]
            value = make()
            with suppress(ValueError):  # cachetools' refusal of a value larger than the cache
                self._values[key] = value
            return value
