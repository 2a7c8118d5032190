"""Some heads of a model converted, to a window or to linear attention, for those who compare the two."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager

from workbench.heads import KVHead
from workbench.hooks.interventions.windows import Forms, Window
from workbench.hooks.model import HookedModel


def converted(m: HookedModel, heads: Collection[KVHead], to: Window | Forms) -> AbstractContextManager[HookedModel]:
    """Inside the block, these key/value heads have the window, or each its form of linear attention."""
    if isinstance(to, Window):
        return m.restrict(heads, to.window, to.sink)
    return m.linearize({head: to[head] for head in heads})
