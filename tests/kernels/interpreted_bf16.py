"""Narrow arithmetic for Triton's interpreter, which adds bfloat16 as raw 16-bit integers and multiplies TF32 exactly.

bfloat16 payloads are widened to float32, operated on, and rounded to nearest even; float32 operands of a TF32 product
lose their last 13 bits, the worst that tensor cores do. For tests only.
"""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter


def widened(handle):
    """float32 values of a bfloat16 handle; None of any other."""
    if handle.dtype.scalar != tl.bfloat16:
        return None
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def narrowed(x):
    """bfloat16 payloads of float32 values, rounded to nearest even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def as_tf32(x):
    """float32 values with the ten bits of mantissa that TF32 keeps."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def install() -> None:
    """Patch the interpreter's dot, binary operations and casts."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, binary_op, cast_impl, fp_to_fp = (
        builder.create_dot,
        builder.binary_op,
        builder.cast_impl,
        builder.create_fp_to_fp,
    )

    def create_dot(self, a, b, d, precision, *rest):
        wide_a, wide_b = widened(a), widened(b)
        if precision == ir.INPUT_PRECISION.TF32 and a.dtype.scalar == b.dtype.scalar == tl.float32:
            wide_a, wide_b = as_tf32(a.data), as_tf32(b.data)
        if wide_a is None and wide_b is None:
            return dot(self, a, b, d, precision, *rest)
        product = np.matmul(
            a.data if wide_a is None else wide_a, b.data if wide_b is None else wide_b, dtype=np.float32
        )
        return handle(product + d.data, d.dtype.scalar)

    def bf16_binary(self, left, right, op):
        wide_left, wide_right = widened(left), widened(right)
        if wide_left is None:
            return binary_op(self, left, right, op)
        found = op(wide_left, wide_right)
        return handle(found if found.dtype == bool else narrowed(found), left.dtype.scalar)

    def bf16_cast(self, source, target):
        if source.dtype.scalar == tl.bfloat16 and target.scalar == tl.float32:
            return handle(widened(source), tl.float32)
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return handle(narrowed(source.data), tl.bfloat16)
        return cast_impl(self, source, target)

    def bf16_fp_to_fp(self, source, target, *rest):
        if {source.dtype.scalar, target.scalar} == {tl.bfloat16, tl.float32}:
            return bf16_cast(self, source, target)
        return fp_to_fp(self, source, target, *rest)

    builder.create_dot, builder.binary_op = create_dot, bf16_binary
    builder.cast_impl, builder.create_fp_to_fp = bf16_cast, bf16_fp_to_fp
