"""A need that a model, or a batch, cannot have: an error that names it, so that the other needs can be recorded."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from workbench.heads import WorkbenchError
from workbench.loading.pretrained import is_out_of_memory


class UnreadableNeed(WorkbenchError):
    """Some needs of a recording cannot be read; without them, the recording can be made.

    `needs`: their names. `__cause__`: the error itself, which is no `WorkbenchError` where code of the user failed.
    """

    def __init__(self, message: str, needs: frozenset[str]):
        super().__init__(message)
        self.needs = needs


@contextmanager
def reading(*needs: str) -> Generator[None]:
    """Any error inside of the block is one of these needs; only memory that runs out is not.

    Raises:
        UnreadableNeed: in the place of the error, with its message; an error of another type is named.
    """
    try:
        yield
    except WorkbenchError as error:
        raise UnreadableNeed(str(error), frozenset(needs)) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        names = " and ".join(repr(name) for name in needs)
        raise UnreadableNeed(f"{type(error).__name__} in the need {names}: {error}", frozenset(needs)) from error
