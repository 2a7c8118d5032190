"""What several test files need alike is made once, by the first of the processes side by side that needs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

# The folder that the processes share; `for_all_processes` sets it.
_shared: list[Path] = []


@pytest.fixture(scope="session", autouse=True)
def for_all_processes(tmp_path_factory):
    """Where `made_once` keeps what it makes: in the temporary folder of the session."""
    base = tmp_path_factory.getbasetemp()
    # A process of pytest-xdist has one of its own in it.
    _shared[:] = [base.parent if base.name.startswith("popen-") else base]


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The file or folder of this name, which `make` writes unless a process has done so. Tests only read it."""
    (base,) = _shared
    path, is_made = base / name, base / f"{name}.made"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(base / f"{name}.lock"):
        if not is_made.exists():
            make(path)
            is_made.touch()
    return path
