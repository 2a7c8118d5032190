"""Attention as one byte a cell on a log scale: every probability to 3.3 % down to 2⁻²⁴, which a linear scale loses.

Unsigned: 0 is 0; code c in 1 … 255 is 2^(24 (c − 1) / 254 − 24), which is 24 octaves in 254 steps. Signed, relative to
a head's largest size: 0 is 0; 1 … 127 is 2^(16 (c − 1) / 126 − 16), and 129 … 255 the same below zero. A value between
two codes takes the nearer in log: off by 2^(24/508) − 1 = 3.3 % at most, signed by 2^(16/252) − 1 = 4.5 %. Values
smaller than the smallest code but 0 take the smallest code.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

OCTAVES, STEPS = 24, 254
SIGNED_OCTAVES, SIGNED_STEPS = 16, 126


def encode(values: Float[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n"]:
    """Codes of values in [0, 1]; more than 1 is 1."""
    return np.where(values > 0, _steps(values, OCTAVES, STEPS), 0).astype(np.uint8)


def decode(codes: UInt8[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Values of codes, float32."""
    return _UNSIGNED[codes]


def encode_signed(values: Float[np.ndarray, "*n"], scale: float) -> UInt8[np.ndarray, "*n"]:
    """Codes of values in [−scale, scale]."""
    size = np.abs(values) / (scale or 1.0)
    codes = _steps(size, SIGNED_OCTAVES, SIGNED_STEPS) + np.where(values < 0, 128, 0)
    return np.where(size > 0, codes, 0).astype(np.uint8)


def decode_signed(codes: UInt8[np.ndarray, "*n"], scale: float) -> Float[np.ndarray, "*n"]:
    """Values of signed codes, float32."""
    return _SIGNED[codes] * np.float32(scale)


def _steps(values: Float[np.ndarray, "*n"], octaves: int, steps: int) -> Float[np.ndarray, "*n"]:
    logs = np.log2(np.maximum(values, 2.0**-octaves)) + octaves
    return np.clip(np.round(logs * (steps / octaves)) + 1, 1, steps + 1)


def _table(octaves: int, steps: int) -> Float[np.ndarray, " n"]:
    levels = 2.0 ** (np.arange(steps + 1) * octaves / steps - octaves)
    return np.concatenate([[0.0], levels]).astype(np.float32)


_UNSIGNED = _table(OCTAVES, STEPS)
_ABOVE = _table(SIGNED_OCTAVES, SIGNED_STEPS)
_SIGNED = np.concatenate([_ABOVE, -_ABOVE])
