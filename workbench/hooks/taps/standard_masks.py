"""Map transformers' mask functions to window descriptions by function identity, without evaluating them.

A mask function is a closure without a name of its own. Two closures of the same code over the same values are the same
function. A lookalike of another family, a chunk instead of a window, or one more condition has other code or other
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
    """The values that a function and the functions in its closure capture."""
    values: list[Any] = []
    for value in _closure_values(function):
        for item in value if isinstance(value, tuple) else (value,):
            values += _captured(item) if isinstance(item, FunctionType) else [item]
    return values


def _closure_values(function: Any) -> list[Any]:
    closure = function.__closure__ if isinstance(function, FunctionType) else None
    return [cell.cell_contents for cell in closure or ()]


def _is_same(value: Any, other: Any) -> bool:
    """True for the same code over the same captured functions and numbers."""
    if value is other:
        return True
    if isinstance(value, tuple) and isinstance(other, tuple):
        return len(value) == len(other) and all(_is_same(a, b) for a, b in zip(value, other, strict=True))
    if isinstance(value, FunctionType) and isinstance(other, FunctionType):
        has_same_code = value.__code__ is other.__code__ and value.__defaults__ == other.__defaults__
        return has_same_code and _is_same(tuple(_closure_values(value)), tuple(_closure_values(other)))
    return type(value) is type(other) is int and value == other
