"""Which of transformers' own mask functions a model uses, told by what the function is, not by what it answers.

A mask function is a closure without a name of its own. Two closures of the same code over the same values are the same
function; a lookalike of another family, a chunk instead of a window, or one more condition is other code or other
values, and is not recognised.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from transformers.masking_utils import sliding_window_causal_mask_function


def sliding_window_of(function: Callable[..., Any]) -> int | None:
    """The window, in tokens, of transformers' causal sliding-window mask: the last `window` keys, own one included.

    None for every other function.
    """
    windows = {x for x in _captured(function) if type(x) is int}
    if len(windows) != 1:
        return None
    (window,) = windows
    return window if _is_same(function, sliding_window_causal_mask_function(window)) else None


def _captured(function: Any) -> list[Any]:
    """What a function and the functions that it captures capture besides."""
    found: list[Any] = []
    for value in _cells(function):
        for one in value if isinstance(value, tuple) else (value,):
            found += _captured(one) if isinstance(one, FunctionType) else [one]
    return found


def _cells(function: Any) -> list[Any]:
    cells = function.__closure__ if isinstance(function, FunctionType) else None
    return [cell.cell_contents for cell in cells or ()]


def _is_same(one: Any, other: Any) -> bool:
    """True for the same code over the same captured functions and numbers."""
    if one is other:
        return True
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_is_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        has_same_code = one.__code__ is other.__code__ and one.__defaults__ == other.__defaults__
        return has_same_code and _is_same(tuple(_cells(one)), tuple(_cells(other)))
    return type(one) is type(other) is int and one == other
