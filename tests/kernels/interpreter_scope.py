"""Triton's interpreter without what it does again and again, which is more than half of a kernel's time in the tests.

The interpreter replaces the language's functions by its own for the length of a launch. It looks for them in the whole
language at every launch and at every call of one kernel by another. Here they are looked up once, and a call inside a
launch replaces nothing that is replaced already. For tests only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

Scope = interpreter._LangPatchScope
_patch_lang = interpreter._patch_lang


class _Launch(Scope):
    """The replacements of a launch, which are undone when it ends."""

    in_force = False

    def restore(self) -> None:
        super().restore()
        type(self).in_force = False


# Modules of the language as calls inside a launch see it; the interpreter never undoes what it replaces in these.
_replaced_for_good: set[str] = set()


def _patch(function: Any) -> Scope:
    if not _Launch.in_force:
        _Launch.in_force = True
        return _patch_lang(function)
    languages = _languages(function)
    if tl.__name__ not in languages and not languages <= _replaced_for_good:
        _replaced_for_good.update(languages)
        _patch_lang(function)
    return Scope()


@cache
def _languages(function: Any) -> frozenset[str]:
    """The names of the language in the module of a kernel."""
    return frozenset(x.__name__ for x in function.__globals__.values() if x is tl or x is tl.core)


@cache
def _builtins(package: Any) -> list[tuple[str, Any]]:
    return [(name, member) for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _patch_builtin(package: Any, builder: Any, scope: Scope) -> None:
    for name, member in _builtins(package):
        interpreter._patch_attr(package, name, member, builder, scope)


def _once_per_type(numpy_type_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    of_scalar = cache(numpy_type_of)

    def numpy_type(dtype: Any) -> Any:
        scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        return numpy_type_of(scalar) if isinstance(scalar, tl.pointer_type) else of_scalar(scalar)

    return numpy_type


@cache
def _shape_of_block(shape: tuple[int, ...]) -> tuple[Any, int]:
    block = _BlockType.__new__(_BlockType)
    _block_init(block, tl.float32, list(shape))
    return block.shape, block.numel


@cache
def _shape_of_tensor(shape: tuple[int, ...]) -> tuple[Any, Any]:
    one = _Tensor.__new__(_Tensor)
    _tensor_init(one, None, tl.block_type(tl.float32, list(shape)) if shape else tl.float32)
    return one.shape, one.numel


def _make_block(self: Any, element_ty: Any, shape: Any) -> None:
    self.element_ty = element_ty
    self.shape, self.numel = _shape_of_block(tuple(tl.core._unwrap_if_constexpr(x) for x in shape))
    self.name = f"<{self.shape}, {element_ty}>"


def _make_tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _shape_of_tensor(tuple(type.shape) if type.is_block() else ())


_BlockType, _Tensor = tl.core.block_type, tl.core.tensor
_block_init, _tensor_init = _BlockType.__init__, _Tensor.__init__


def install() -> None:
    """Patch the interpreter, and the types of the language that it makes for every operation."""
    _BlockType.__init__, _Tensor.__init__ = _make_block, _make_tensor
    interpreter._LangPatchScope = _Launch
    interpreter._patch_builtin = _patch_builtin
    interpreter._patch_lang = _patch
    interpreter._get_np_dtype = _once_per_type(interpreter._get_np_dtype)
