"""Undo the rounding of token labels: each bounds the tokens per step, and together they nearly give it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

# Wider than this, an interval is no token count.
PRECISE = Fraction(1, 100)
_GRAIN = 1024
# A multiple of g lies in a random interval of width g / 8 once in 8: rounder than that is taken for the
# truth.
_SURPRISE = 8


class Label(NamedTuple):
    """A step and the bounds, in tokens, that a label gives for it."""

    step: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class TokensPerStep:
    """Tokens per step: bounds that every label allows, and the best value between them."""

    lo: Fraction
    hi: Fraction
    value: Fraction


def fit_tokens_per_step(labels: Iterable[Label]) -> TokensPerStep | None:
    """Intersect what the labels of one stage allow; None if they contradict or leave more than 1 %.

    A label of L tokens in units u at step s allows (L - u) / s to (L + u) / s, however it was rounded. Batch
    times sequence length is a round number in base 2, so the value is the multiple of the highest power of
    two in the interval, if that is at least 1024 and rounder than chance would put there; else it is the
    middle.
    """
    bounds = [(Fraction(lo, step), Fraction(hi, step)) for step, lo, hi in labels if step > 0]
    if not bounds:
        return None
    lo, hi = max(lo for lo, _ in bounds), min(hi for _, hi in bounds)
    if lo > hi or hi == 0 or not is_precise(lo, hi):
        return None
    return TokensPerStep(lo, hi, _roundest(lo, hi) or (lo + hi) / 2)


def is_precise(lo: Fraction | int, hi: Fraction | int) -> bool:
    """Whether an interval is narrower than 1 % of its middle."""
    return hi - lo <= PRECISE * (hi + lo) / 2


def _roundest(lo: Fraction, hi: Fraction) -> Fraction | None:
    """The multiple of the highest power of two in [lo, hi], if it cannot be there by chance."""
    grain = 1 << max(0, math.floor(hi).bit_length() - 1)
    while grain >= _GRAIN and grain >= _SURPRISE * (hi - lo):
        multiple = math.ceil(lo / grain) * grain
        if multiple <= hi:
            return Fraction(multiple)
        grain >>= 1
    return None
