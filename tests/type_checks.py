"""Annotations are checked in each function's first calls and then in some of them: all would take two thirds of the
time of the tests.

`WORKBENCH_CHECK_EVERY_CALL=1 pytest …` checks all.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections import Counter
from types import CodeType
from typing import Any

import jaxtyping
from jaxtyping import _decorator  # its own recursion into classes, properties and static methods

# A function's calls that are checked: the first in a process, then one of so many.
FIRST, EVERY = 16, 101
EVERY_CALL = "WORKBENCH_CHECK_EVERY_CALL"

_checked = _decorator.jaxtyped
_calls: Counter[CodeType] = Counter()


def sample_calls() -> None:
    """From now on, modules that jaxtyping instruments check the annotations of some calls."""
    if EVERY_CALL not in os.environ:
        jaxtyping.jaxtyped = _decorator.jaxtyped = _sampled


def _sampled(function: Any = None, **options: Any) -> Any:
    if function is None:
        return functools.partial(_sampled, **options)
    if not inspect.isfunction(function):
        return _checked(function, **options)
    code = function.__code__

    def is_due() -> bool:
        _calls[code] += 1
        return _calls[code] <= FIRST or _calls[code] % EVERY == 0

    if "<locals>" in function.__qualname__:  # defined anew with every call around it
        return _checked(function, **options) if is_due() else function
    with_checks = functools.cache(lambda: _checked(function, **options))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return with_checks()(*args, **kwargs) if is_due() else function(*args, **kwargs)

    return call
