"""Convert steps and tokens, which each stage may count from its own start, to totals from the beginning of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from workbench.checkpoints.names import Label, TokensPerStep, fit_tokens_per_step, is_precise
from workbench.checkpoints.series_overrides import Overrides
from workbench.checkpoints.training_order import Entry, follows_another

TokensSource = Literal["trainer_state", "label", "labels_fit", "tokens_per_step", "user", "unknown"]


@dataclass(frozen=True, slots=True)
class Counted:
    """An entry with its totals."""

    entry: Entry
    step_total: int | None
    tokens: int | None
    tokens_lo: int | None
    tokens_hi: int | None
    source: TokensSource


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The likeliest token count and its bounds."""

    value: int
    lo: int
    hi: int
    source: TokensSource


@dataclass(frozen=True, slots=True)
class _Counting:
    """How the stages of a series count: from the beginning of training, or each from its own start."""

    steps_are_cumulative: bool
    tokens_are_cumulative: bool


def count_from_start(entries: list[Entry], order: list[str | None], overrides: Overrides) -> list[Counted]:
    """Compute the total steps and tokens of every entry.

    A stage that restarts its steps continues from the last checkpoint of the stage before: of the same branch if it has
    one, else of the trunk, else of its longest branch. A stage that cannot be the first and whose predecessor is
    missing has no total tokens, unless the user sets counts to cumulative.
    """
    stages = [[entry for entry in entries if entry.stage == stage] for stage in order]
    counting = _counting(stages, overrides)
    finished: list[list[Counted]] = []
    for members in stages:
        counted: list[Counted] = []
        for branch in sorted({entry.branch for entry in members}, key=lambda branch: branch or ""):
            group = [entry for entry in members if entry.branch == branch]
            counted += _count_group(group, _parent(finished, branch), counting, overrides)
        finished.append(counted)
    return [each for counted in finished for each in counted]


def _counting(stages: list[list[Entry]], overrides: Overrides) -> _Counting:
    """The user's choice; else cumulative if every stage begins at or after the end of the one before."""
    if overrides.steps is not None:
        return _Counting(overrides.steps == "cumulative", overrides.steps == "cumulative")
    steps = [[entry.step for entry in stage if entry.step is not None] for stage in stages]
    tokens = [[count for entry in stage if (count := _stage_tokens(entry)) is not None] for stage in stages]
    steps_are_cumulative = _rises(steps)
    has_several = sum(map(bool, tokens)) > 1
    return _Counting(steps_are_cumulative, _rises(tokens) if has_several else steps_are_cumulative)


def _rises(stages: Sequence[Sequence[int]]) -> bool:
    filled = [stage for stage in stages if stage]
    return all(min(later) >= max(earlier) for earlier, later in pairwise(filled))


def _stage_tokens(entry: Entry) -> int | None:
    if entry.tokens_seen is not None:
        return entry.tokens_seen
    return entry.label[0] if entry.label else None


def _parent(finished: list[list[Counted]], branch: str | None) -> Counted | None:
    """The checkpoint from which a branch continues."""
    for stage in reversed(finished):
        ends: dict[str | None, Counted] = {}
        for each in stage:
            end = ends.get(each.entry.branch)
            if each.step_total is not None and (end is None or each.step_total > (end.step_total or 0)):
                ends[each.entry.branch] = each
        if ends:
            longest = max(ends.values(), key=lambda end: end.step_total or 0)
            return ends.get(branch) or ends.get(None) or longest
    return None


def _count_group(
    group: list[Entry], parent: Counted | None, counting: _Counting, overrides: Overrides
) -> list[Counted]:
    """The totals of the checkpoints of one stage and branch."""
    fit = None
    if parent is None or counting.steps_are_cumulative == counting.tokens_are_cumulative:
        labels = [Label(entry.step, *entry.label[1:]) for entry in group if entry.step is not None and entry.label]
        fit = fit_tokens_per_step(labels)
    counted: list[Counted] = []
    for entry in group:
        offset = 0 if parent is None or counting.steps_are_cumulative else parent.step_total or 0
        step_total = None if entry.step is None else entry.step + offset
        tokens = _user_tokens(entry, step_total, parent, overrides)
        if tokens is None:
            tokens = _own_tokens(entry, fit)
            if parent is not None and tokens is not None and not counting.tokens_are_cumulative:
                tokens = _after(parent, tokens)
            elif parent is None and follows_another(entry.stage) and overrides.steps != "cumulative":
                tokens = None
        counted.append(_with_tokens(entry, step_total, tokens))
    return counted


def _with_tokens(entry: Entry, step_total: int | None, tokens: _Tokens | None) -> Counted:
    """The totals as reported: a count that is known to 1 %, or the bounds alone.

    A coarse label is wrong by up to one unit, 43 % at OLMo 2's first checkpoints. There the step is the better axis.
    """
    if tokens is None:
        return Counted(entry, step_total, None, None, None, "unknown")
    is_needed = entry.step is None and entry.index is None
    value = tokens.value if is_needed or is_precise(tokens.lo, tokens.hi) else None
    return Counted(entry, step_total, value, tokens.lo, tokens.hi, tokens.source)


def _user_tokens(entry: Entry, step_total: int | None, parent: Counted | None, overrides: Overrides) -> _Tokens | None:
    """Total tokens as the user gave them: for the checkpoint or, if the trainer did not count, by tokens per step."""
    if entry.tokens_given is not None:
        return _Tokens(entry.tokens_given, entry.tokens_given, entry.tokens_given, "user")
    tokens_per_step = overrides.tokens_per_step_of(entry.stage)
    if entry.tokens_seen is not None or tokens_per_step is None or step_total is None:
        return None
    if parent is None or parent.step_total is None:
        total = step_total * tokens_per_step
    elif parent.tokens is not None:
        total = parent.tokens + (step_total - parent.step_total) * tokens_per_step
    else:
        return None
    return _Tokens(total, total, total, "tokens_per_step")


def _own_tokens(entry: Entry, fit: TokensPerStep | None) -> _Tokens | None:
    """Tokens as the stage counts them: by the trainer, by the fit of all labels, or by the name's label."""
    if entry.tokens_seen is not None:
        return _Tokens(entry.tokens_seen, entry.tokens_seen, entry.tokens_seen, "trainer_state")
    label = entry.label
    if fit is not None and entry.step is not None:
        lo, hi = math.floor(entry.step * fit.lo), math.ceil(entry.step * fit.hi)
        if label is not None:
            lo, hi = max(lo, label[1]), min(hi, label[2])
        return _Tokens(round(entry.step * fit.value), lo, hi, "labels_fit")
    return None if label is None else _Tokens(*label, "label")


def _after(parent: Counted, tokens: _Tokens) -> _Tokens | None:
    """A stage's own tokens added to those of its parent; None if the parent's are unknown."""
    lo, hi = parent.tokens_lo, parent.tokens_hi
    if lo is None or hi is None:
        return None
    value = (lo + hi) // 2 if parent.tokens is None else parent.tokens
    return _Tokens(value + tokens.value, lo + tokens.lo, hi + tokens.hi, tokens.source)
