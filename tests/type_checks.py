"""Annotations are checked in each function's first calls and then in some of them: all would take two thirds of the
time of the tests.

`WORKBENCH_CHECK_EVERY_CALL=1 pytest …` checks all.
"""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

import jaxtyping
from jaxtyping import _decorator  # its own recursion into classes, properties and static methods

# A function's calls that are checked: the first in a process, then one of so many.
FIRST, EVERY = 16, 101
EVERY_CALL = "WORKBENCH_CHECK_EVERY_CALL"

_checked = _decorator.jaxtyped
# By the id of the code of what is defined anew with every call around it; the code itself is kept, or its id would be
# another's one day. (Its hash would be made anew, of all it contains, with every call.)
_calls: dict[int, list[Any]] = {}


def sample_calls() -> None:
    """From now on, modules that jaxtyping instruments check the annotations of some calls."""
    if EVERY_CALL not in os.environ:
        jaxtyping.jaxtyped = _decorator.jaxtyped = _sampled


def _sampled(function: Any = None, **options: Any) -> Any:
    if function is None:
        return functools.partial(_sampled, **options)
    if not inspect.isfunction(function):
        return _checked(function, **options)
    if "<locals>" in function.__qualname__:  # defined anew with every call around it
        calls = _calls.setdefault(id(function.__code__), [0, function.__code__])
        calls[0] += 1
        return _checked(function, **options) if _is_due(calls[0]) else function
    n_calls, with_checks = 0, None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls, with_checks
        n_calls += 1
        if n_calls > FIRST and n_calls % EVERY:
            return function(*args, **kwargs)
        if with_checks is None:
            with_checks = _checked(function, **options)
        return with_checks(*args, **kwargs)

    return call


def _is_due(n_calls: int) -> bool:
    return n_calls <= FIRST or n_calls % EVERY == 0
