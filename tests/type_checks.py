"""Annotations are checked in each function's first calls and then in its first of every few tests: all would take two
thirds of the time of the tests.

Until it is due again, a function is its own code and no wrapper, which alone would take a twelfth of that time.
`WORKBENCH_CHECK_EVERY_CALL=1 pytest …` checks all.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
from jaxtyping import _decorator  # its own recursion into classes, properties and static methods

# A function's calls that are checked: the first in a process. Of what is defined anew with every call around it, and
# of what has a closure, then one of so many. Of all others, the first of one in so many tests.
FIRST, EVERY, TESTS = 16, 101, 8
EVERY_CALL = "WORKBENCH_CHECK_EVERY_CALL"

# Defaults that every function of one code has alike, or whose type it has.
_PLAIN = (bool, int, float, str, type(None))

_checked = _decorator.jaxtyped
# Of what is defined anew with every call around it, by the id of its code: a code's hash is made anew of all that it
# holds, whenever it is asked for.
_local: dict[int, _Local] = {}
# Functions that are due again.
_at_rest: list[_Due] = []


def sample_calls() -> None:
    """From now on, modules that jaxtyping instruments check the annotations of some calls."""
    if EVERY_CALL not in os.environ:
        jaxtyping.jaxtyped = _decorator.jaxtyped = _sampled


def check_again(n_tests: int = TESTS) -> None:
    """Check the next call of every function, if the test of this number is due."""
    while not n_tests % TESTS and _at_rest:
        _at_rest.pop().begin(1)


def _sampled(function: Any = None, **options: Any) -> Any:
    if function is None:
        return functools.partial(_sampled, **options)
    if not inspect.isfunction(function):
        return _checked(function, **options)
    if "<locals>" in function.__qualname__:  # defined anew with every call around it
        local = _local.setdefault(id(function.__code__), _Local(function.__code__))
        local.n_calls += 1
        return local.checked(function, options) if _is_due(local.n_calls) else function
    if not function.__code__.co_freevars:
        return _Due(function, options).call
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


def _checking(*args: Any, _due: _Due, **kwargs: Any) -> Any:
    return _due.checked(args, kwargs)


class _Due:
    """A function whose next calls are checked. `call` is the function, with its own code when they are done."""

    def __init__(self, function: Any, options: Any) -> None:
        self._function, self._options = function, options
        self._checks: Any = None
        # Either code ignores the defaults of the other's arguments.
        self.call: Any = FunctionType(
            _checking.__code__, function.__globals__, function.__name__, function.__defaults__
        )
        self.call.__kwdefaults__ = {**(function.__kwdefaults__ or {}), "_due": self}
        functools.update_wrapper(self.call, function)
        self._left = FIRST

    def begin(self, n_calls: int) -> None:
        """Check so many calls."""
        self._left = n_calls
        self.call.__code__ = _checking.__code__

    def checked(self, args: Any, kwargs: Any) -> Any:
        """Do a call with checks, and let the function be itself if it was the last."""
        self._left -= 1
        if self._left <= 0:  # threads may pass it
            self.call.__code__ = self._function.__code__
            _at_rest.append(self)
        if self._checks is None:
            self._checks = _checked(self._function, **self._options)
        return self._checks(*args, **kwargs)


class _Local:
    """Functions of one code, whose checks are made once: to make them takes longer than most tests do."""

    def __init__(self, code: CodeType) -> None:
        self._code = code  # which keeps its id from being another's
        self.n_calls = 0
        self._next = threading.local()
        self._checks: Any = None

    def checked(self, function: Any, options: Any) -> Any:
        """The function with its checks."""
        parameters = inspect.signature(function).parameters.values()
        if not all(isinstance(p.default, _PLAIN) or p.default is p.empty for p in parameters):
            return _checked(function, **options)  # what stands here may be another thing next time
        if self._checks is None:
            self._checks = _checked(self._stand_in(function), **options)
        checks, following = self._checks, self._next

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            following.function = function
            return checks(*args, **kwargs)

        return call

    def _stand_in(self, function: Any) -> Any:
        """A function of the same signature that calls the next one; it holds nothing of this one's closure."""
        following = self._next

        def call_next(*args: Any, **kwargs: Any) -> Any:
            return following.__dict__.pop("function")(*args, **kwargs)

        stand_in: Any = FunctionType(
            call_next.__code__, function.__globals__, function.__name__, None, call_next.__closure__
        )
        stand_in.__signature__ = inspect.signature(function)
        stand_in.__qualname__, stand_in.__module__ = function.__qualname__, function.__module__
        return stand_in


def _is_due(n_calls: int) -> bool:
    return n_calls <= FIRST or n_calls % EVERY == 0
