"""Read a checkpoint's name: step or index, stage, branch, and the token counts that its rounded label allows.

The label `tokens3B` was rounded by an unknown rule, so it allows 2 to 4 billion tokens. All labels of a stage together
bound its tokens per step: `fit_tokens_per_step`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple

_FLAGS = re.ASCII | re.IGNORECASE
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

# `1,000`, `1_000`, `1000`, each with decimals; a longer number with a separator is no number of thousands.
_WHOLE = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?:_\d{3})+(?!\d|[kmbt](?![a-z]))|\d{1,18})"
_NUMBER = rf"{_WHOLE}(?:\.\d{{1,9}})?"
_PLAIN = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d{1,18})(?:\.\d{1,9})?"
_END = r"(?![\da-z]|[.,]\d)"

_INDEX = re.compile(r"(?:ckpt|chck)_?(\d{1,15})", _FLAGS)
_TOKENS = re.compile(
    rf"(?:tokens?|(?<![a-z])toks?)[-_=]*(?P<count>{_NUMBER})(?P<unit>[kmbt])?{_END}"
    rf"|(?<![\da-z.,])(?P<count2>{_PLAIN})(?P<unit2>[kmbt])(?:t|[-_]?tok(?:en)?s?){_END}",
    _FLAGS,
)
# In `step-955k-token-2T` each number belongs to the word before it.
_STEP_BEFORE = re.compile(r"(?<![a-z])(?:steps?|iter(?:ation)?s?|checkpoint|ckpt)[-_=]*$", _FLAGS)
_OWN_NUMBER = re.compile(r"[-_=]*\d", _FLAGS)
# Numbers with a unit whose word does not say what they count: BabyLM's `chck_10M` counts words, others tokens.
_COUNTS = re.compile(
    rf"(?<![a-z])(?:(?P<small>chck|words?)|checkpoint|ckpt|train(?:ed)?)[-_=]*(?P<count>{_NUMBER})"
    rf"(?P<unit>(?(small)[kmbt]|[mbt])){_END}"
    rf"|(?<![\da-z.,])(?P<count2>{_PLAIN})(?P<unit2>[kmbt])[-_]?words?{_END}",
    _FLAGS,
)
# A count without any word: of a revision, as all revisions of a repository are of one model, and at the end of a name
# in trillions, because models are no larger.
_BARE_COUNT = re.compile(rf"(?P<count>{_PLAIN})(?P<unit>[bt])b?", _FLAGS)
_TRILLIONS_AT_END = re.compile(rf"(?<![\da-z.,])(?P<count>{_PLAIN})(?P<unit>t)b?$", _FLAGS)
# What follows a step may be the tokens, as in `step-50K-105b`, or the size of the model.
_AFTER_STEP = re.compile(rf"[-_](?P<count>{_PLAIN})(?P<unit>[bt])(?=[-_]|$)", _FLAGS)
_AT_END = re.compile(rf"(?<![\da-z.,])(?P<count>{_PLAIN})(?P<unit>b)$", _FLAGS)
_EPOCH = re.compile(rf"(?<![a-z])ep(?:och)?s?[-_=]*(\d{{1,9}}){_END}", _FLAGS)
# The first pattern that matches wins: `checkpoint_10-step500` is at step 500, `ep0-ba1000-rank0` at batch 1000.
_STEPS = tuple(
    re.compile(pattern, _FLAGS)
    for pattern in (
        rf"iter_ckpt_rank_\d+-(?P<step>{_NUMBER})(?P<unit>k)?{_END}",
        rf"(?<![a-z])steps?[-_=]*(?P<step>{_NUMBER})(?P<unit>k)?{_END}",
        # The separator of `epoch_1_500steps` is none of thousands.
        rf"^(?P<step>{_WHOLE})[-_]?steps?(?![\da-z])",
        rf"(?<!\d)(?<!\d[.,])(?P<step>{_PLAIN})(?P<unit>k)?[-_]?steps?(?![\da-z])",
        # Millions after the patterns for thousands, because `500_step-7b` has the size of its model in it.
        rf"(?<![a-z])steps?[-_=]?(?P<step>{_PLAIN})(?P<unit>[mbt]){_END}",
        rf"(?<!\d)(?<!\d[.,])(?P<step>{_PLAIN})(?P<unit>[mbt])steps?(?![\da-z])",
        rf"(?<![\da-z])iter(?:ation)?s?[-_=]*(?P<step>{_NUMBER})(?P<unit>k)?{_END}",
        rf"(?<![\da-z])(?:checkpoint|ckpt)[-_=]*(?P<step>{_NUMBER})(?P<unit>k)?{_END}",
        rf"(?<![\da-z])ba(?:tch)?[-_=]*(?P<step>{_PLAIN})(?P<unit>k)?{_END}",
        rf"(?<![\da-z])iter(?:ation)?s?[-_=]?(?P<step>{_PLAIN})(?P<unit>[mbt]){_END}",
        r"^(?P<step>\d{1,15})$",
        r"^(?P<step>\d{1,15}(?:\.\d{1,9})?)(?P<unit>k)$",
        r"^(?:ext|decay)(?P<step>\d{1,15})$",
    )
)
_NUMBER_LEFT = re.compile(r"[-_]+\d[\d.]*[kmbt]?(?=[-_]|$)", _FLAGS)
_UNREAD = re.compile(
    r"(?<![a-z])(?:global[-_]?steps?|steps?|iter(?:ation)?s?|tok(?:en)?s?|words?|updates?|samples?)"
    r"[-_=]*\d[\da-z]*(?:[.,]\d[\da-z]*)*",
    _FLAGS,
)
# These are passed over where the name gives a better position; where it gives none, they are named too.
_UNREAD_ALONE = re.compile(
    r"(?:step|iter|epoch|ckpt|chck|checkpoint|batch|train|(?<![a-z])(?:ep|ba(?!se)))[a-z]*"
    r"[-_=]*\d[\da-z]*(?:[.,]\d[\da-z]*)*",
    _FLAGS,
)
_STAGE = re.compile(r"(?<![a-z])(?P<word>stage|phase)[-_]?(?P<number>\d{1,4})(?!\d)", _FLAGS)
_PHASE_WORDS = (
    r"(?P<phase>pretrain|midtrain|anneal|decay|cooldown|long[-_]?context|(?:context[-_]?)?extension|sft|dpo|rlvr|rlhf"
    r"|ppo|grpo)(?:ing)?"
)
_PHASE = re.compile(rf"{_PHASE_WORDS}[-_]", _FLAGS)
_ONLY_PHASE = re.compile(_PHASE_WORDS, _FLAGS)
# SmolLM3's long-context stages and what it saved after pretraining.
_LENGTHS = re.compile(r"lc[-_](?P<short>\d{1,5})k[-_]to[-_](?P<long>\d{1,5})k(?![\da-z])", _FLAGS)
_INSTRUCTION_TUNED = re.compile(r"it[-_](?P<words>[a-z]+(?:[-_][a-z]+)*)", _FLAGS)
_NUMBERED_PHASE = re.compile(r"(?P<phase>ext|decay)\d{1,15}", _FLAGS)
_INGREDIENT = re.compile(r"(?<![a-z])ingredient[-_]?(\d{1,4})(?!\d)", _FLAGS)
_FILE_ENDING = re.compile(r"\.(?:ckpt|pt|pth|bin|safetensors)$", _FLAGS)
# The quantisation and the number of the part belong to the file: `step1000-Q4_K_M-00001-of-00003.gguf`.
_GGUF_ENDING = re.compile(
    r"(?:[-_.](?:ud-)?(?:i?q\d(?:_[a-z0-9]+)*|tq\d_\d|mxfp4(?:_moe)?|nvfp4|bf16|f16|fp16|f32|fp32))?"
    r"(?:-\d{5}-of-\d{5})?\.gguf$",
    _FLAGS,
)
_BRANCH = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*", _FLAGS)
# Words after a step that describe the file or its score, not a branch of the training.
_NO_BRANCH = re.compile(
    r"(?:un)?sharded|consolidated|hf|safetensors|fp32|bf16|fp16|main|final|last|latest|best|release"
    r"|(?:rank|epoch|ep|val|loss|acc|ppl|tokens?)(?![a-z]).*",
    _FLAGS,
)
_METRIC = re.compile(
    r"(?<![a-z])(?:(?:val|valid|validation|train|test|eval)[-_]?)?(?:loss|acc|accuracy|ppl|perplexity|score|metric|f1)"
    r"[-_=]*-?\d+(?:\.\d+)?(?:e-?\d+)?(?![a-z])",
    _FLAGS,
)
# A number that belongs to the word before it, in names of sweeps and cycles: `seed_1`, `lr=0.001`.
_OWN_NUMBER_BEFORE = re.compile(
    r"(?<![a-z])(seed|lr|wd|bs|trial|exp|fold|part|cycle|round|segment|chunk)[-_=]+(?=\d)", _FLAGS
)
# Words before a step that name the file, its kind or the measure; every other word may distinguish stages.
_NO_STAGE = re.compile(
    r"[\d.,]+[mb]?|\d+t\d+|global|tmp|temp|dict|steps?|checkpoints?|ckpts?|chck|iter(?:ation)?s?|models?|hf|weights?|state|saved?"
    r"|intermediate|ep(?:och)?s?\d*|ba(?:tch)?\d*|rank\d*|mp|dp|tp|pp|evals?|evaluations?|results?|outputs?|logs?"
    r"|(?:un)?sharded|consolidated|converted|safetensors|fp32|bf16|fp16|train(?:ing|ed)?|rev(?:ision)?|at|main|final"
    r"|last|latest|best|release|tok(?:en)?s?|words?|val|loss|transformers|pytorch|lightning",
    _FLAGS,
)

AFTER_STEP_UNREAD = "the number after the step is not read"
# An interval wider than this share of its middle is not used as a token count.
_PRECISE = Fraction(1, 100)
_SMALLEST_GRAIN = 1024
NO_WORD_FOR_UNIT = "the name does not say that it counts tokens (BabyLM counts words); it is read as tokens"
# A multiple of g lies in a random interval of width g / 8 once in 8. A rounder value is taken as the true one.
_GRAINS_PER_WIDTH = 8


class Doubt(NamedTuple):
    """A part of a name that was not understood, or not surely, and the reason."""

    part: str
    reason: str


@dataclass(frozen=True, slots=True)
class CheckpointName:
    """The fields that a name gives; None where it gives none.

    `step` is the number as written, which may count from the start of its stage. `index` numbers the checkpoints and
    is no step. `tokens` is the label's own number. The label is rounded by an unknown rule, so it allows one unit each
    way: `tokens3B` has `tokens_lo` 2 billion and `tokens_hi` 4 billion.

    `loose_count` is a number with a unit behind the step, or at the end: tokens where it grows along a series, else the
    size of the model. `index_of` says what the index numbers. `prefix` are the words before the position that may name
    a stage: whether they do is known only beside other names. `doubts` are the parts that were not understood, or not
    surely.
    `is_weak`: the position is one only if there are weights, because other folders have such names too.
    """

    step: int | None = None
    index: int | None = None
    stage: str | None = None
    branch: str | None = None
    tokens: int | None = None
    tokens_lo: int | None = None
    tokens_hi: int | None = None
    loose_count: tuple[int, int, int] | None = field(default=None, compare=False)
    index_of: Literal["checkpoint", "epoch"] = field(default="checkpoint", compare=False)
    prefix: tuple[str, ...] = field(default=(), compare=False)
    doubts: tuple[Doubt, ...] = field(default=(), compare=False)
    is_weak: bool = field(default=False, compare=False)

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


def parse_revision(name: str) -> CheckpointName:
    """Read the name of a branch or tag as `parse_name`. `200B` and `0.5T` count tokens: all revisions are one model."""
    count = _label_of(_BARE_COUNT.fullmatch(name.strip().rsplit("/", 1)[-1]))
    if count is None:
        return parse_name(name)
    doubt = Doubt(name.strip(), NO_WORD_FOR_UNIT)
    return CheckpointName(tokens=count.tokens, tokens_lo=count.lo, tokens_hi=count.hi, doubts=(doubt,), is_weak=True)


def parse_name(name: str) -> CheckpointName:
    """Read the last component of a directory, file or revision name. Any text is accepted.

    `stage1-step1000-tokens3B` is step 1000 of `stage1` with 2 to 4 billion tokens; `ckpt_100` is an index;
    `stage2-step47684-mix-round5-from-2T-ckpt` is branch `mix-round5-from-2T-ckpt` and names no token count;
    `main`, `final` and `release` give no field.
    """
    text = _GGUF_ENDING.sub("", name.strip().strip("/").rsplit("/", 1)[-1])
    text = _FILE_ENDING.sub("", text)
    if match := _INDEX.fullmatch(text):
        return CheckpointName(index=int(match[1]))
    label = _token_label(text)
    rest = text if label is None else text[: label.start] + "-" + text[label.end :]
    rest = rest.strip("-_")
    step_and_match = next((read for pattern in _STEPS if (read := _step(pattern, rest))), None)
    step, match = step_and_match or (None, None)
    doubts: list[Doubt] = []
    index = None
    is_weak = False
    before = text[: label.start] if label is not None and match is None else rest[: match.start()] if match else ""
    if match is None and label is None:
        if count := _label_of(_COUNTS.search(text)) or _label_of(_TRILLIONS_AT_END.search(text)):
            label, is_weak, before = count, True, text[: count.start]
            rest = text[: count.start] + "-" + text[count.end :]
            doubts.append(Doubt(text[count.start : count.end], NO_WORD_FOR_UNIT))
        elif epoch := _EPOCH.search(text):
            index, is_weak, before = int(epoch[1]), True, text[: epoch.start()]
            rest = text[: epoch.start()] + "-" + text[epoch.end() :]
    doubts += _doubts(rest, match, is_placed=match is not None or label is not None or index is not None)
    return CheckpointName(
        step=step,
        index=index,
        stage=_stage(text),
        branch=_branch(text, after_step="" if match is None else _words_after(rest[match.end() :])),
        tokens=None if label is None else label.tokens,
        tokens_lo=None if label is None else label.lo,
        tokens_hi=None if label is None else label.hi,
        loose_count=None if label is not None else _loose_count(rest, match),
        index_of="checkpoint" if index is None else "epoch",
        prefix=_prefix(before),
        doubts=tuple(doubts),
        is_weak=is_weak,
    )


def stage_of_words(words: Iterable[str]) -> str:
    """The stage that words before a position name: a known one in its usual spelling, else the words themselves."""
    text = "-".join(words)
    if match := _ONLY_PHASE.fullmatch(text):
        return _phase(match)
    return text


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
    if match is not None and match["count2"] and _OWN_NUMBER.match(text, match.end()):
        # Steps come in thousands or millions, tokens beside `tok`; `iter_2BT=3` has its step at the end.
        is_a_step = (
            re.search("[km][-_]?tok", match[0], _FLAGS) is not None
            and _STEP_BEFORE.search(text[: match.start()]) is not None
        )
        match = _TOKENS.search(text, match.end("unit2")) if is_a_step else match
    return _label_of(match)


def _label_of(match: re.Match[str] | None) -> _TokenLabel | None:
    if match is None:
        return None
    number, unit = (match[group] or match[f"{group}2"] for group in ("count", "unit"))
    digits, _, decimals = number.replace(",", "").replace("_", "").partition(".")
    scale = _UNITS[unit.lower()] if unit else 1
    grain = scale // 10 ** len(decimals)
    if grain == 0:
        return None
    tokens = int(digits) * scale + int(decimals or 0) * grain
    if tokens >= 2**62:
        return None
    spread = grain if unit else 0
    return _TokenLabel(tokens, max(0, tokens - spread), tokens + spread, match.start(), match.end())


def _step(pattern: re.Pattern[str], text: str) -> tuple[int, re.Match[str]] | None:
    """The first step that a pattern finds, with its match; None if it finds none that is a whole number."""
    match = pattern.search(text)
    if match is None:
        return None
    number = match["step"].replace(",", "").replace("_", "")
    unit = (match.groupdict().get("unit") or "").lower()
    # `step1.000` may be a thousand or one; `step=1000.0` is how Lightning writes a float.
    if not unit and re.fullmatch(r"\d+\.0*[1-9]\d*|\d+\.0{3,}", number):
        return None
    step = Fraction(number) * (_UNITS[unit] if unit else 1)
    return (int(step), match) if step.denominator == 1 and step < 2**62 else None


def _words_after(step: str) -> str:
    """What follows a step, without a number with a unit right behind it."""
    count = _AFTER_STEP.match(step)
    return step if count is None else step[count.end() :]


def _loose_count(rest: str, step: re.Match[str] | None) -> tuple[int, int, int] | None:
    """The number with a unit behind a step, or without one at the end, with the bounds that its rounding allows."""
    count = _label_of(_AT_END.search(rest) if step is None else _AFTER_STEP.match(rest, step.end()))
    return None if count is None else (count.tokens, count.lo, count.hi)


def _doubts(rest: str, match: re.Match[str] | None, *, is_placed: bool) -> list[Doubt]:
    """What looks like a position in the rest of a name and was not read as one, and a separator that may be none."""
    doubts: list[Doubt] = []
    if match is not None:
        if "_" in match["step"]:
            doubts.append(Doubt(match["step"], "the underscore is read as a separator of thousands"))
        if left := _NUMBER_LEFT.match(rest, match.end()):
            doubts.append(Doubt(left[0], AFTER_STEP_UNREAD))
        rest = rest[: match.start()] + "-" + rest[match.end() :]
    unread = [hit[0] for hit in _UNREAD.finditer(rest)]
    if not is_placed:
        unread = unread or [hit[0] for hit in _UNREAD_ALONE.finditer(rest)]
    return [*doubts, *(Doubt(part, "it looks like a position and is not understood") for part in unread)]


def _prefix(before: str) -> tuple[str, ...]:
    """The words before a position, without those that name its stage, its branch, a score or the file."""
    if match := _LENGTHS.match(before):
        before = before[match.end() :]
    elif _STAGE.search(before):
        before = _STAGE.sub("-", before, count=1)
    elif match := _PHASE.match(before):
        before = before[match.end() :]
    for pattern in (_INGREDIENT, _METRIC):
        before = pattern.sub("-", before)
    before = _OWN_NUMBER_BEFORE.sub(r"\1", before)
    words = (word.lower() for word in re.split(r"(?:[_=+\s]|(?<!\de)-)+", before))
    return tuple(word for word in words if word and not _NO_STAGE.fullmatch(word))


def _phase(match: re.Match[str]) -> str:
    word = re.sub(r"long[-_]?context", "long-context", match["phase"].lower())
    return re.sub(r"context[-_]?extension", "extension", word)


def _stage(text: str) -> str | None:
    if match := _LENGTHS.match(text):
        return f"lc-{int(match['short'])}k-to-{int(match['long'])}k"
    if match := _INSTRUCTION_TUNED.fullmatch(text):
        return f"it-{match['words'].lower().replace('_', '-')}"
    if match := _NUMBERED_PHASE.fullmatch(text):
        return "extension" if match["phase"].lower() == "ext" else "decay"
    if match := _STAGE.search(text):
        return f"{match['word'].lower()}{int(match['number'])}"
    if match := _PHASE.match(text):
        return _phase(match)
    return None


def _branch(text: str, *, after_step: str) -> str | None:
    """`ingredient3`, or the words after the step that distinguish siblings."""
    if match := _INGREDIENT.search(text):
        return f"ingredient{int(match[1])}"
    words = after_step.strip("-_")
    if _BRANCH.fullmatch(words) and not _NO_BRANCH.fullmatch(words):
        return words
    return None
