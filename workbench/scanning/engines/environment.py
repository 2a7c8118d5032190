"""Variables of the environment for the length of a block: what is started in it has them from its first line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Generator[None]:
    """Inside the block, the process has these variables; afterwards it has what it had."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
