"""The interventions in force on a model: those of all open blocks, whoever opened it, in whatever order they end.

A block's change is kept as a function of the interventions before it, so that they can be made again without the one
whose block ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.hooks.interventions.cut_cache import CutLayer
from workbench.hooks.interventions.fresh_caches import cutting_fresh_caches
from workbench.hooks.interventions.user_passes import refusing_passes
from workbench.hooks.interventions.windows import Interventions, intervened_output
from workbench.hooks.taps.attention_call import AttentionCall, Handler
from workbench.hooks.taps.eager import tapped
from workbench.hooks.taps.linear.linear_reading import changing_linear
from workbench.hooks.taps.shared_taps import one_thread, stand

Change = Callable[[Interventions], Interventions]


class InForce:
    """The interventions of the open blocks on one model. All that open the model share them."""

    def __init__(self) -> None:
        self.interventions = Interventions()
        self._changes: dict[object, Change] = {}  # of each open block, in the order in which they opened
        self._hooks = ExitStack()
        self._hooked: set[int] = set()

    @contextmanager
    def block(self, model: PreTrainedModel, change: Change) -> Generator[None]:
        """Inside the block, the change is in force, on passes of every thread. The model stays in the mode it is in.

        Raises:
            WorkbenchError: if the change does not go with the others, or another thread's are in force.
        """
        block = object()
        with tapped(model):
            with one_thread(model):
                self._open(model, block, change)
            try:
                yield
            finally:
                self._close(model, block)

    def _open(self, model: PreTrainedModel, block: object, change: Change) -> None:
        interventions = change(self.interventions)
        with ExitStack() as stack:
            if not self._changes:
                stack.enter_context(refusing_passes(model, has_linear=lambda: bool(self.interventions.linear)))
                stack.enter_context(cutting_fresh_caches(model, self._current))
            new = {head.layer for head in interventions.linear} - self._hooked
            stack.enter_context(changing_linear(model, new, self._in_linear))
            self._hooks.enter_context(stack.pop_all())
        self._hooked |= new
        self._changes[block] = change
        self._set(model, interventions)

    def _close(self, model: PreTrainedModel, block: object) -> None:
        del self._changes[block]
        interventions = Interventions()
        for change in self._changes.values():
            interventions = change(interventions)
        self._set(model, interventions)
        if not self._changes:
            self._hooked.clear()
            self._hooks.close()

    def _set(self, model: PreTrainedModel, interventions: Interventions) -> None:
        self.interventions = interventions
        stand(model, _attending(interventions) if self._changes else None)

    def _current(self) -> Interventions:
        return self.interventions

    def __deepcopy__(self, _: dict[int, object]) -> InForce:
        """The same object: caches that are copied stay under the interventions of their model."""
        return self

    def _in_linear(
        self, layer: int, out: Float[Tensor, "b t n_heads d_v"], valid: Tensor | None, start: int
    ) -> Float[Tensor, "b t n_heads d_v"]:
        return self.interventions.in_linear(layer, out, valid, start)


_in_force: weakref.WeakKeyDictionary[PreTrainedModel, InForce] = weakref.WeakKeyDictionary()


def in_force_on(model: PreTrainedModel) -> InForce:
    """What is in force on a model; the same object for all that open it."""
    return _in_force.setdefault(model, InForce())


def _attending(interventions: Interventions) -> Handler:
    def attend(call: AttentionCall) -> Tensor:
        if isinstance(call.held, CutLayer):
            return call.held.output(call, interventions)
        return intervened_output(call, interventions)

    return attend
