"""Read a checkpoint's name: step or index, stage, branch, and the token counts that its rounded label allows.

The label `tokens3B` was rounded by an unknown rule, so it allows 2 to 4 billion tokens. All labels of a stage together
bound its tokens per step: `fit_tokens_per_step`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

_FLAGS = re.ASCII | re.IGNORECASE
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

_INDEX = re.compile(r"ckpt_?(\d{1,15})", _FLAGS)
_TOKENS = re.compile(
    r"tokens?[-_=]*(?P<count>\d{1,18})(?:\.(?P<decimals>\d{1,3}))?(?P<unit>[kmbt])?(?![\da-z])"
    r"|(?<![\da-z.])(?P<count2>\d{1,18})(?:\.(?P<decimals2>\d{1,3}))?(?P<unit2>[kmbt])(?:t|[-_]?tok(?:en)?s?)(?![\da-z])",
    _FLAGS,
)
# The first pattern that matches wins: `checkpoint_10-step500` is at step 500, `ep0-ba1000-rank0` at batch 1000.
_STEPS = tuple(
    re.compile(pattern, _FLAGS)
    for pattern in (
        r"iter_ckpt_rank_\d+-(?P<step>\d{1,15})(?P<k>k)?(?![\da-z])",
        r"(?<![a-z])steps?[-_=]*(?P<step>\d{1,15})(?P<k>k)?(?![\da-z])",
        r"(?<!\d)(?P<step>\d{1,15})(?P<k>k)?[-_]?steps?(?![\da-z])",
        r"(?<![\da-z])iter(?:ation)?s?[-_=]*(?P<step>\d{1,15})(?P<k>k)?(?![\da-z])",
        r"(?<![\da-z])(?:checkpoint|ckpt)[-_=]*(?P<step>\d{1,15})(?P<k>k)?(?![\da-z])",
        r"(?<![\da-z])ba(?:tch)?[-_=]*(?P<step>\d{1,15})(?P<k>k)?(?![\da-z])",
        r"^(?P<step>\d{1,15})(?P<k>k)?$",
    )
)
_STAGE = re.compile(r"(?<![a-z])stage[-_]?(\d{1,4})(?!\d)", _FLAGS)
_PHASE = re.compile(r"(pretrain|midtrain|anneal|decay|cooldown|long[-_]?context)(?:ing)?[-_]", _FLAGS)
_INGREDIENT = re.compile(r"(?<![a-z])ingredient[-_]?(\d{1,4})(?!\d)", _FLAGS)
_FILE_ENDING = re.compile(r"\.(?:ckpt|pt|pth|bin|safetensors)$", _FLAGS)
_BRANCH = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*", _FLAGS)
# Words after a step that describe the file or its score, not a branch of the training.
_NO_BRANCH = re.compile(
    r"(?:un)?sharded|consolidated|hf|safetensors|fp32|bf16|fp16|main|final|last|latest|best|release"
    r"|(?:rank|epoch|ep|val|loss|acc|ppl|tokens?)(?![a-z]).*",
    _FLAGS,
)

# An interval wider than this share of its middle is not used as a token count.
_PRECISE = Fraction(1, 100)
_SMALLEST_GRAIN = 1024
# A multiple of g lies in a random interval of width g / 8 once in 8. A rounder value is taken as the true one.
_GRAINS_PER_WIDTH = 8


@dataclass(frozen=True, slots=True)
class CheckpointName:
    """The fields that a name gives; None where it gives none.

    `step` is the number as written, which may count from the start of its stage. `index` numbers the checkpoints and
    is no step. `tokens` is the label's own number. The label is rounded by an unknown rule, so it allows one unit each
    way: `tokens3B` has `tokens_lo` 2 billion and `tokens_hi` 4 billion.
    """

    step: int | None = None
    index: int | None = None
    stage: str | None = None
    branch: str | None = None
    tokens: int | None = None
    tokens_lo: int | None = None
    tokens_hi: int | None = None

    @property
    def gives_position(self) -> bool:
        """Whether the name gives a position in training."""
        return self.step is not None or self.index is not None or self.tokens is not None


class Label(NamedTuple):
    """The bounds, in tokens, that a label gives for a step."""

    step: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class TokensPerStep:
    """Tokens per step: bounds that every label allows, and the best value between them."""

    lo: Fraction
    hi: Fraction
    value: Fraction


class _TokenLabel(NamedTuple):
    """A token count in a name, its bounds, and the characters of the name that hold it."""

    tokens: int
    lo: int
    hi: int
    start: int
    end: int


def parse_name(name: str) -> CheckpointName:
    """Read the last component of a directory, file or revision name. Any text is accepted.

    `stage1-step1000-tokens3B` is step 1000 of `stage1` with 2 to 4 billion tokens; `ckpt_100` is an index;
    `stage2-step47684-mix-round5-from-2T-ckpt` is branch `mix-round5-from-2T-ckpt` and names no token count;
    `main`, `final` and `release` give no field.
    """
    text = _FILE_ENDING.sub("", name.strip().strip("/").rsplit("/", 1)[-1])
    if match := _INDEX.fullmatch(text):
        return CheckpointName(index=int(match[1]))
    label = _token_label(text)
    rest = text if label is None else text[: label.start] + "-" + text[label.end :]
    rest = rest.strip("-_")
    match = next((m for pattern in _STEPS if (m := pattern.search(rest))), None)
    return CheckpointName(
        step=None if match is None else int(match["step"]) * (1000 if match["k"] else 1),
        stage=_stage(text),
        branch=_branch(text, after_step="" if match is None else rest[match.end() :]),
        tokens=None if label is None else label.tokens,
        tokens_lo=None if label is None else label.lo,
        tokens_hi=None if label is None else label.hi,
    )


def fit_tokens_per_step(labels: Iterable[Label]) -> TokensPerStep | None:
    """Intersect the bounds of one stage's labels; None if they contradict or leave more than 1 %.

    A label of L tokens in units u at step s allows (L - u) / s to (L + u) / s, whatever the rounding. Batch size times
    sequence length is a round number in base 2. The value is therefore the multiple of the highest power of two in the
    interval, if that power is at least 1024 and rounder than chance would give; else it is the middle.
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
    return hi - lo <= _PRECISE * (hi + lo) / 2


def _roundest(lo: Fraction, hi: Fraction) -> Fraction | None:
    """The multiple of the highest power of two in [lo, hi], if chance is unlikely to put it there."""
    grain = 1 << max(0, math.floor(hi).bit_length() - 1)
    while grain >= _SMALLEST_GRAIN and grain >= _GRAINS_PER_WIDTH * (hi - lo):
        multiple = math.ceil(lo / grain) * grain
        if multiple <= hi:
            return Fraction(multiple)
        grain >>= 1
    return None


def _token_label(text: str) -> _TokenLabel | None:
    match = _TOKENS.search(text)
    if match is None:
        return None
    digits, decimals, unit = (match[group] or match[f"{group}2"] for group in ("count", "decimals", "unit"))
    scale = _UNITS[unit.lower()] if unit else 1
    grain = scale // 10 ** len(decimals or "")
    if grain == 0:
        return None
    tokens = int(digits) * scale + int(decimals or 0) * grain
    if tokens >= 2**62:
        return None
    spread = grain if unit else 0
    return _TokenLabel(tokens, max(0, tokens - spread), tokens + spread, match.start(), match.end())


def _stage(text: str) -> str | None:
    if match := _STAGE.search(text):
        return f"stage{int(match[1])}"
    if match := _PHASE.match(text):
        return re.sub(r"long[-_]?context", "long-context", match[1].lower())
    return None


def _branch(text: str, *, after_step: str) -> str | None:
    """`ingredient3`, or the words after the step that distinguish siblings."""
    if match := _INGREDIENT.search(text):
        return f"ingredient{int(match[1])}"
    words = after_step.strip("-_")
    if _BRANCH.fullmatch(words) and not _NO_BRANCH.fullmatch(words):
        return words
    return None
