"""What a checkpoint's name says: step or index, stage and branch, and the bounds its token label allows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

_FLAGS = re.ASCII | re.IGNORECASE
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

_INDEX = re.compile(r"ckpt_?(\d{1,15})", _FLAGS)
_TOKENS = re.compile(
    r"tokens?[-_=]*(?P<count>\d{1,18})(?:\.(?P<decimals>\d{1,3}))?(?P<unit>[kmbt])?(?![\da-z])"
    r"|(?<![\da-z.])(?P<count2>\d{1,18})(?:\.(?P<decimals2>\d{1,3}))?(?P<unit2>[kmbt])(?:t|[-_]?tok(?:en)?s?)(?![\da-z])",
    _FLAGS,
)
# In order of trust: `checkpoint_10-step500` is at step 500, `ep0-ba1000-rank0` at batch 1000.
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
# What follows a step and describes the file or its score, not a branch of the training.
_NO_BRANCH = re.compile(
    r"(?:un)?sharded|consolidated|hf|safetensors|fp32|bf16|fp16|main|final|last|latest|best|release"
    r"|(?:rank|epoch|ep|val|loss|acc|ppl|tokens?)(?![a-z]).*",
    _FLAGS,
)


@dataclass(frozen=True, slots=True)
class CheckpointName:
    """What can be read off a name; None where it says nothing.

    `step` is the number as written, which may count from the start of its stage. `index` numbers the
    checkpoints and is no step. `tokens` is the label's own number; it is rounded by a rule that only its
    maker knows, so `tokens3B` allows one unit each way: `tokens_lo` 2 billion to `tokens_hi` 4 billion.
    """

    step: int | None = None
    index: int | None = None
    stage: str | None = None
    branch: str | None = None
    tokens: int | None = None
    tokens_lo: int | None = None
    tokens_hi: int | None = None

    @property
    def gives_place(self) -> bool:
        """Whether it says where in training the checkpoint stands."""
        return self.step is not None or self.index is not None or self.tokens is not None


class _Label(NamedTuple):
    tokens: int
    lo: int
    hi: int
    start: int
    end: int


def parse_name(name: str) -> CheckpointName:
    """Read the last component of a directory, file or revision name; total on any text.

    `stage1-step1000-tokens3B` is step 1000 of `stage1` with 2 to 4 billion tokens; `ckpt_100` is an index;
    `stage2-step47684-mix-round5-from-2T-ckpt` is branch `mix-round5-from-2T-ckpt` and names no token count;
    `main`, `final` and `release` say nothing.
    """
    text = _FILE_ENDING.sub("", name.strip().strip("/").rsplit("/", 1)[-1])
    if match := _INDEX.fullmatch(text):
        return CheckpointName(index=int(match[1]))
    label = _token_label(text)
    rest = text if label is None else text[: label.start] + "-" + text[label.end :]
    rest = rest.strip("-_")
    match = next((found for pattern in _STEPS if (found := pattern.search(rest))), None)
    return CheckpointName(
        step=None if match is None else int(match["step"]) * (1000 if match["k"] else 1),
        stage=_stage(text),
        branch=_branch(text, after_step="" if match is None else rest[match.end() :]),
        tokens=None if label is None else label.tokens,
        tokens_lo=None if label is None else label.lo,
        tokens_hi=None if label is None else label.hi,
    )


def _token_label(text: str) -> _Label | None:
    """The interval a token label allows and where it stands in the text."""
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
    return _Label(tokens, max(0, tokens - spread), tokens + spread, match.start(), match.end())


def _stage(text: str) -> str | None:
    if match := _STAGE.search(text):
        return f"stage{int(match[1])}"
    if match := _PHASE.match(text):
        return re.sub(r"long[-_]?context", "long-context", match[1].lower())
    return None


def _branch(text: str, *, after_step: str) -> str | None:
    """`ingredient3`, or the words after the step that tell siblings apart."""
    if match := _INGREDIENT.search(text):
        return f"ingredient{int(match[1])}"
    words = after_step.strip("-_")
    if _BRANCH.fullmatch(words) and not _NO_BRANCH.fullmatch(words):
        return words
    return None
