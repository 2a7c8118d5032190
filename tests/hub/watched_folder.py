"""How many bytes a folder holds while others write and remove its files."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path


def on_disk(folder: Path) -> int:
    """Bytes of the files of a folder now; one with two names counts once."""
    sizes: dict[int, int] = {}
    for inner, _, names in os.walk(folder):  # passes over what is removed meanwhile
        for name in names:
            try:
                status = os.lstat(os.path.join(inner, name))
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


class Watched:
    """Inside the block, a thread looks again and again: `most` are the most bytes that it saw, in `looks` looks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most, self.looks = folder, 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            self.most, self.looks = max(self.most, on_disk(self.folder)), self.looks + 1
