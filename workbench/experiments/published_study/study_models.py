"""The model of a study: opened once in every process, or one that is in memory already."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

from workbench.hooks import HookedModel, open_model

_IN_MEMORY: dict[str, HookedModel] = {}


class Source(NamedTuple):
    """What `open_model` takes: a folder, a name or an id, and where it has none with it, a tokenizer."""

    model: str
    tokenizer: str | None = None


def opened(source: Source) -> HookedModel:
    """The model in eval mode; it is shared, so that nothing may change its weights."""
    return _IN_MEMORY[source.model] if source.model in _IN_MEMORY else _opened(source)


def opened_anew(source: Source) -> HookedModel:
    """A copy of the model, to train."""
    return open_model(source.model, device="cpu", tokenizer=source.tokenizer)


@contextmanager
def holding(name: str, m: HookedModel) -> Generator[Source]:
    """Inside the block, the model of this name is one in memory, in this process."""
    _IN_MEMORY[name] = m
    try:
        yield Source(name)
    finally:
        del _IN_MEMORY[name]


@lru_cache(maxsize=1)
def _opened(source: Source) -> HookedModel:
    return opened_anew(source)
