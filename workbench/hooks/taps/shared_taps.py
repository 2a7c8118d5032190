"""Taps that several blocks and threads want on one model: put in place once, and used by one thread at a time.

Passes of the workbench on one model wait for each other: they read it by what is around its modules, where another
thread's pass would be seen too. Interventions hold for the model in every thread, so that a pass of another thread
that asks for none would be under them: it is refused, as is another thread's block.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import nn

from workbench.heads import WorkbenchError

# Receives a softmax layer and returns its output.
_Handler = Callable[[Any], Any]


class _Taps:
    """The state of one model: its lock, how many want its taps, and the thread whose interventions are in force."""

    def __init__(self) -> None:
        self.passes = threading.RLock()
        self.n_wanted = 0
        self.in_place = ExitStack()
        self.thread: int | None = None
        self.modules: set[int] = set()


_registry = threading.Lock()
_taps: weakref.WeakKeyDictionary[nn.Module, _Taps] = weakref.WeakKeyDictionary()
# The handler of each module that is under interventions, by the module's id. Replaced, never written into: a pass keeps
# those of its beginning, for a backward pass that computes its layers again.
_standing: Mapping[int, _Handler] = {}


@contextmanager
def one_thread(model: nn.Module) -> Generator[None]:
    """Inside the block, no other thread records this model or changes its interventions.

    Raises:
        WorkbenchError: while another thread's interventions are in force on it.
    """
    taps = _of(model)
    with taps.passes:
        if taps.thread not in (None, threading.get_ident()):
            raise WorkbenchError(
                f"interventions on this {type(model).__name__} are in force in another thread; expected its passes in "
                "the thread of the `with` block: run them there, or open a copy of the model for this thread"
            )
        yield


@contextmanager
def placed_once(model: nn.Module, place: Callable[[], AbstractContextManager[Any]]) -> Generator[None]:
    """Inside the block, what `place` puts on the model is there; the last block to end takes it away again."""
    taps = _of(model)
    with taps.passes:
        if taps.n_wanted == 0:
            taps.in_place.enter_context(place())
        taps.n_wanted += 1
    try:
        yield
    finally:
        with taps.passes:
            taps.n_wanted -= 1
            if taps.n_wanted == 0:
                taps.in_place.close()


def stand(model: nn.Module, handler: _Handler | None) -> None:
    """From now on, passes of this model in any thread go to `handler`; None: to no one, and it is no thread's own."""
    global _standing
    taps = _of(model)
    with _registry:
        others = {key: each for key, each in _standing.items() if key not in taps.modules}
        taps.modules = set() if handler is None else {id(module) for module in model.modules()}
        taps.thread = None if handler is None else threading.get_ident()
        _standing = others if handler is None else {**others, **dict.fromkeys(taps.modules, handler)}


def is_under_interventions(model: nn.Module) -> bool:
    """Whether interventions are in force on this model."""
    return bool(_of(model).modules)


def standing_handlers() -> Mapping[int, _Handler]:
    """The handlers of the interventions that are in force now, by the id of a module."""
    return _standing


def _of(model: nn.Module) -> _Taps:
    with _registry:
        return _taps.setdefault(model, _Taps())
