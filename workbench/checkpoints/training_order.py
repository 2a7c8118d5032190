"""The position of each checkpoint in training, from its name, its trainer state and the user's overrides."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from workbench.checkpoints.candidates import Candidate, Candidates
from workbench.checkpoints.configs import read_json_object
from workbench.checkpoints.digests import same_weights
from workbench.checkpoints.formats import Format
from workbench.checkpoints.names import AFTER_STEP_UNREAD, NO_WORD_FOR_UNIT, Doubt, parse_name, stage_of_words
from workbench.checkpoints.series_overrides import SERIES_FILE, Overrides, Placement
from workbench.heads import BadCheckpoint, NoCheckpoints, WorkbenchError, some_of

_NUMBERED = re.compile(r"(?:stage|phase)(\d+)", re.ASCII)
_LENGTHS = re.compile(r"lc-(\d+)k-to-\d+k", re.ASCII)
TRAINER_STATE = "trainer_state.json"
# Digits of a commit that name its branch, as git shortens it.
_SHORT_COMMIT = 12
# A stage, and the branch of a revision without a name.
_Line = tuple[str | None, str | None]
_LONGER = {"extension", "long-context"}
_FIRST_STAGES = ("pretrain", "stage1", "phase1")
# Stages with other names, and several stages of one rank, need a stage_order.
_RANKS = {
    "pretrain": (0, 0),
    "midtrain": (2, 0),
    "extension": (2, 1),  # Lucie and Ettin extend the context before they decay the learning rate
    "anneal": (3, 0),
    "decay": (3, 0),
    "cooldown": (3, 0),
    "long-context": (4, 0),
    "it-mid-training": (5, 0),  # SmolLM3's, on the way to its instruction-tuned model
    "sft": (5, 1),
    "it-sft": (5, 1),
    "dpo": (6, 0),
    "it-soup-apo": (6, 0),
    "rlvr": (7, 0),
    "rlhf": (7, 0),
    "ppo": (7, 0),
    "grpo": (7, 0),
}


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The state that Hugging Face's Trainer saves with a checkpoint. `tokens` is None if it did not count them."""

    step: int
    tokens: int | None
    lr: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint before its totals are known.

    `label` is the name's token count with its bounds, `tokens_seen` the trainer's count; like `step`, both may count
    from the start of the stage. `tokens_given` is the user's, from the beginning of training. `prefix`, `doubts`
    and `is_weak` are those of the name. `prefix` is None where the position is not the name's, or where the user gave
    a stage or a branch. `recorded`: what an earlier look noted of a checkpoint that is gone; None for one that is here.
    `is_bare`: a revision that is known by its commit alone. `blobs`: the digests of the weights of one at a hub; None
    for one on disk.
    """

    name: str
    path: Path
    format: Format
    stage: str | None
    branch: str | None
    step: int | None
    index: int | None
    label: tuple[int, int, int] | None
    tokens_seen: int | None
    tokens_given: int | None
    lr: float | None
    index_of: str = "checkpoint"
    prefix: tuple[str, ...] | None = None
    doubts: tuple[Doubt, ...] = ()
    is_weak: bool = False
    recorded: Mapping[str, Any] | None = None
    is_bare: bool = False
    blobs: tuple[str, ...] | None = None

    @property
    def doubts_in_words(self) -> str:
        """What the name leaves in doubt, to be put after a message; empty if nothing."""
        return "".join(f". {self.name}: {part!r}: {reason}" for part, reason in self.doubts)

    @property
    def position(self) -> str | None:
        """The position within its stage and branch, in words; None if it is unknown."""
        if self.step is not None:
            return f"step {self.step}"
        if self.index is not None:
            return f"{'epoch' if self.index_of == 'epoch' else 'index'} {self.index}"
        if self.tokens_given is not None:
            return f"token {self.tokens_given}"
        return None if self.label is None else f"token {self.label[0]}"


def read_entries(candidates: Candidates) -> tuple[list[Entry], list[str]]:
    """Read the position of every candidate that the user does not skip; also return remarks for the user.

    Raises:
        WorkbenchError: if `series.toml` names a checkpoint that does not exist.
    """
    rows = candidates.overrides.checkpoints
    names = [candidate.name for candidate in candidates.checkpoints]
    if missing := sorted(rows.keys() - set(names)):
        raise WorkbenchError(
            f"{candidates.root / SERIES_FILE}: no checkpoint {', '.join(missing)} beside it; there are "
            f"{', '.join(names)}"
        )
    remarks: list[str] = []
    entries: list[Entry] = []
    for candidate in candidates.checkpoints:
        row = rows.get(candidate.name, Placement())
        if row.skip:
            continue
        # A Trainer writes its last state beside its checkpoints, and perhaps the weights of the best one.
        is_of_the_run = candidate.path == candidates.root and len(candidates.checkpoints) > 1
        try:
            state = None if is_of_the_run else _state_of(candidate)
        except BadCheckpoint as error:
            # The weights may be good; they are checked when they are opened.
            remarks.append(f"{error}; its tokens and learning rate are not used")
            state = None
        entry = _entry(candidate, row, state)
        if state is not None and state.step != entry.step:
            remarks.append(
                f"{candidate.name}: {TRAINER_STATE} is of step {state.step}, not {entry.step}; it is not used"
            )
        entries.append(entry)
    entries = _with_loose_counts(entries, {each.name: each.parsed.loose_count for each in candidates.checkpoints})
    entries = _set_bare_apart(entries)
    remarks += _bare(entries, candidates.root)
    entries = _name_stages(entries, candidates.root)
    remarks += _doubts(entries, candidates.root)
    return _join_first_stage(entries, candidates.overrides), remarks


def stage_order(entries: list[Entry], overrides: Overrides) -> list[str | None]:
    """The stages in training order; checkpoints without a stage come first, unless the user's order has "" elsewhere.

    Raises:
        NoCheckpoints: if the order is unknown; the message says what to write into `series.toml`.
        WorkbenchError: if the user's order lacks a stage.
    """
    present: set[str] = {entry.stage for entry in entries if entry.stage is not None}
    unstaged: list[str | None] = [None] if any(entry.stage is None for entry in entries) else []
    positioned = [entry.name for entry in entries if entry.stage is None and entry.position is not None]
    by_user = {row.stage for row in overrides.checkpoints.values()}
    # The user's own row says that a checkpoint left what has no stage. A word in a name may come before or after it.
    unknown = sorted(stage for stage in present - by_user if stage_rank(stage) is None) if positioned else []
    if (user_order := overrides.stage_order) is not None:
        if missing := sorted(present - set(user_order)):
            raise WorkbenchError(f"stage_order {user_order} in {SERIES_FILE} lacks {', '.join(missing)}")
        if unknown and "" not in user_order:
            raise WorkbenchError(
                f'stage_order {user_order} in {SERIES_FILE} lacks "", which stands for names without a stage, such as'
                f" {positioned[0]}; write e.g. stage_order = {json.dumps(['', *user_order])}"
            )
        order = [stage or None for stage in user_order if stage in present or (stage == "" and unstaged)]
        return order if None in order else [*unstaged, *order]
    ranks = {stage: stage_rank(stage) for stage in present}
    if present >= _LONGER:  # two words for one thing
        ranks["extension"] = ranks["long-context"]
    if unknown or (len(present) > 1 and len(set(ranks.values()) - {None}) < len(present)):
        by_rank = sorted(present, key=lambda stage: (ranks[stage] or (math.inf, 0), stage))
        examples = {stage: next(entry.name for entry in entries if entry.stage == stage) for stage in by_rank}
        parts = [f"{stage} ({name})" for stage, name in examples.items()]
        if positioned:
            parts.insert(0, f'"", the names without a stage ({positioned[0]})')
        raise NoCheckpoints(
            f"the order of the stages {', '.join(parts)} is not known; write them in the order of training as e.g."
            f" stage_order = {json.dumps([''] * bool(positioned) + by_rank)} into {SERIES_FILE} beside the checkpoints,"
            " or give single ones a stage, a branch or skip = true there. Separate runs belong into separate folders"
        )
    return [*unstaged, *sorted(present, key=lambda stage: ranks[str(stage)] or (0, 0))]


def follows_another(stage: str | None) -> bool:
    """Whether a stage with this name cannot be the first."""
    return stage is not None and stage not in _FIRST_STAGES and stage_rank(stage) is not None


def stage_rank(stage: str) -> tuple[int, int] | None:
    """Where a stage of this name stands among others; None for a name that says nothing."""
    if match := _NUMBERED.fullmatch(stage):
        return 1, int(match[1])
    if match := _LENGTHS.fullmatch(stage):
        return 4, int(match[1])
    return _RANKS.get(stage)


def settle_duplicates(entries: list[Entry]) -> tuple[list[Entry], dict[str, str], dict[str, str]]:
    """Make every position of a stage and branch unique.

    Returns:
        The entries that stay; name -> name of another checkpoint with the same weights; name -> reason for folders
        without weights at the position of a checkpoint (outputs of an evaluation at that step).

    Raises:
        NoCheckpoints: naming two checkpoints of one position with different weights, or two without a position.
    """
    entries = _without_weak_positions(entries)
    aliases: dict[str, str] = {}
    outputs: dict[str, str] = {}
    holders: dict[tuple[str | None, str | None, str], Entry] = {}
    loose: dict[_Line, Entry] = {}
    for entry in sorted(entries, key=_precedence):
        if entry.position is None:
            _settle_loose(entry, entries, aliases, loose)
            continue
        holder = holders.setdefault((entry.stage, entry.branch, entry.position), entry)
        if holder is entry:
            continue
        if entry.format == "none" != holder.format:
            outputs[entry.name] = f"no weights in it, and {holder.name} is the checkpoint of {entry.position}"
        elif _have_same_weights(holder, entry):
            aliases[entry.name] = holder.name
        else:
            where = "".join(f" of {part}" for part in (entry.branch, entry.stage) if part)
            raise NoCheckpoints(
                f"{holder.name} and {entry.name} are both {entry.position}{where} and their weights differ;"
                f" give one a step, a branch or skip = true in {SERIES_FILE}"
            )
    return [entry for entry in entries if entry.name not in outputs], aliases, outputs


def _precedence(entry: Entry) -> tuple[bool, bool, bool, bool, str]:
    """Of checkpoints with the same weights, the first is the original: `step3` before `main`."""
    says_where = parse_name(entry.name.rpartition("/")[2]).gives_position
    return entry.position is None, entry.format == "none", entry.is_bare, not says_where, entry.name


def _have_same_weights(a: Entry, b: Entry) -> bool:
    """Whether two hold the same weights: by their files, or by the digests that a hub has of them."""
    if a.blobs is None and b.blobs is None:
        return same_weights(a.path, b.path)
    return a.blobs == b.blobs and bool(a.blobs)


def _without_weak_positions(entries: list[Entry]) -> list[Entry]:
    """Take the epoch or the count from a checkpoint whose weights are those of one with a step."""
    firm = [entry for entry in entries if entry.position is not None and not entry.is_weak]
    return [
        replace(entry, index=None, label=None)
        if entry.is_weak and any(_have_same_weights(other, entry) for other in firm)
        else entry
        for entry in entries
    ]


def _settle_loose(entry: Entry, entries: list[Entry], aliases: dict[str, str], loose: dict[_Line, Entry]) -> None:
    """Treat a checkpoint without a position as an alias of another, or as the last of its line, which is unique."""
    for other in reversed(entries):
        is_original = other.name not in aliases and (
            other.position is not None or any(other is end for end in loose.values())
        )
        if is_original and other is not entry and _have_same_weights(other, entry):
            aliases[entry.name] = other.name
            return
    last = loose.setdefault((entry.stage, entry.branch if entry.is_bare else None), entry)
    if last is not entry:
        raise NoCheckpoints(
            f"{last.name} and {entry.name}: neither name says where in training it stands, and their weights"
            f" differ; give one a step in {SERIES_FILE}, e.g. [checkpoints.{entry.name!r}] step = 1000"
            f"{last.doubts_in_words}{entry.doubts_in_words}"
        )


def read_trainer_state(checkpoint: Path) -> TrainerState | None:
    """Read the checkpoint's trainer_state.json; None if it has none.

    `num_input_tokens_seen` of 0 means that tokens were not counted, except at step 0. The learning rate is the last one
    logged up to the checkpoint's step.

    Raises:
        BadCheckpoint: if the file is no JSON object or has no global_step.
    """
    path = checkpoint / TRAINER_STATE
    if not path.is_file():
        return None
    state = read_json_object(path)
    step, seen = state.get("global_step"), state.get("num_input_tokens_seen")
    if type(step) is not int or step < 0:
        raise BadCheckpoint(f"{path}: global_step is {step!r}, expected a number of steps")
    is_counted = type(seen) is int and (seen > 0 or step == 0)
    return TrainerState(step, cast("int", seen) if is_counted else None, _learning_rate(state.get("log_history"), step))


def _state_of(candidate: Candidate) -> TrainerState | None:
    """The trainer state of a checkpoint; of one that is gone, the step and the learning rate that were noted."""
    if candidate.recorded is None:
        return read_trainer_state(candidate.path)
    step = candidate.recorded.get("step")
    return None if step is None else TrainerState(step, None, candidate.recorded.get("lr"))


def _recorded_tokens(recorded: Mapping[str, Any] | None) -> int | None:
    """The total tokens of a checkpoint that is gone, where its name does not give them."""
    is_counted = recorded is not None and recorded.get("tokens_source", "user") in ("user", "trainer_state")
    return recorded.get("tokens") if recorded is not None and is_counted else None


def _entry(candidate: Candidate, row: Placement, state: TrainerState | None) -> Entry:
    name, recorded = candidate.parsed, candidate.recorded
    step = row.step if row.step is not None else name.step
    if step is None and state is not None:
        step = state.step
    state = state if state is not None and state.step == step else None
    label = None
    if name.tokens is not None and name.tokens_lo is not None and name.tokens_hi is not None:
        label = (name.tokens, name.tokens_lo, name.tokens_hi)
    return Entry(
        name=candidate.name,
        path=candidate.path,
        format=candidate.format,
        stage=row.stage or name.stage,
        branch=row.branch or name.branch,
        step=step,
        index=name.index,
        label=label,
        tokens_seen=state.tokens if state else None,
        tokens_given=_recorded_tokens(recorded) if row.tokens is None else row.tokens,
        lr=state.lr if state else None,
        index_of=name.index_of,
        prefix=name.prefix if name.gives_position and row.stage is None and row.branch is None else None,
        doubts=() if row.step is not None or row.tokens is not None else name.doubts,
        is_weak=name.is_weak and step is None and row.tokens is None,
        recorded=recorded,
        is_bare=candidate.is_bare,
        blobs=None if candidate.remote is None else candidate.remote.blobs,
    )


def _with_loose_counts(entries: list[Entry], counts: Mapping[str, tuple[int, int, int] | None]) -> list[Entry]:
    """Read a number with a unit as tokens where it cannot be the size of the model.

    Behind the steps it is tokens if it grows with them: `step-50K-105b`, `step-480k-1T`. At the end of a name it is if
    a name that is the same elsewhere has trillions there: `base-500B`, `base-1T`.
    """
    labelled = [(entry.step, count) for entry in entries if (count := counts[entry.name]) and entry.step is not None]
    tokens = [count[0] for _, count in sorted(labelled)]
    grows = len(tokens) > 1 and tokens == sorted(tokens) and tokens[0] < tokens[-1]
    stems = {_stem(entry.name) for entry in entries if entry.is_weak and entry.label is not None}
    read: list[Entry] = []
    for entry in entries:
        if entry.label is None and (label := counts[entry.name]):
            if entry.step is not None and grows:
                doubts = tuple(doubt for doubt in entry.doubts if doubt.reason != AFTER_STEP_UNREAD)
                entry = replace(entry, label=label, doubts=doubts)
            elif entry.position is None and _stem(entry.name) in stems:
                doubt = Doubt(entry.name[len(_stem(entry.name)) :], NO_WORD_FOR_UNIT)
                entry = replace(entry, label=label, is_weak=True, doubts=(doubt,))
        read.append(entry)
    return read


def _stem(name: str) -> str:
    """A name without the number with a unit at its end."""
    return re.sub(r"[\d.,]+[bt]b?$", "", name, flags=re.IGNORECASE)


def _set_bare_apart(entries: list[Entry]) -> list[Entry]:
    """Give each revision that only its commit names a branch of its own, as it may lie anywhere in training."""
    if len(entries) == 1:
        return entries
    return [
        replace(entry, branch=entry.branch or entry.name[:_SHORT_COMMIT])
        if entry.is_bare and entry.position is None
        else entry
        for entry in entries
    ]


def _bare(entries: list[Entry], root: Path) -> list[str]:
    """The remark on revisions without a name and a position."""
    names = [entry.name for entry in entries if entry.is_bare and entry.position is None]
    if not names:
        return []
    apart = "each is a branch of its own, and they stand last, in the order of their commits"
    return [
        f"{some_of(names)}: known by the commit alone, which does not say where in training it stands"
        f"{'; ' + apart if len(entries) > 1 else ''}. Give their steps in {root / SERIES_FILE}, or fetch them by name"
    ]


def _name_stages(entries: list[Entry], root: Path) -> list[Entry]:
    """Make a stage of the words that distinguish some names from others: `foo` in `foo_step10` beside `step20`.

    Words that all names have in common are the model's or the run's. Folders without weights are outputs of a step
    more often than stages, so they get none where others have weights.
    """
    placed = [entry for entry in entries if entry.prefix is not None and entry.path != root]
    placed = [entry for entry in placed if entry.format != "none"] or placed
    prefixes = [entry.prefix or () for entry in placed]
    first = _n_common(prefixes)
    rests = [prefix[first:] for prefix in prefixes]
    last = _n_common([rest[::-1] for rest in rests])
    words = {entry.name: rest[: len(rest) - last] for entry, rest in zip(placed, rests, strict=True)}
    words_of: dict[str | None, set[tuple[str, ...]]] = {}
    for entry in placed:
        words_of.setdefault(entry.stage, set()).add(words[entry.name])
    renamed: list[Entry] = []
    for entry in entries:
        own = words.get(entry.name, ())
        if own and entry.stage is None:
            entry = replace(entry, stage=stage_of_words(own))
        elif own and len(words_of[entry.stage]) > 1:
            entry = replace(entry, stage="-".join([str(entry.stage), *own]))
        renamed.append(entry)
    return renamed


def _n_common(prefixes: list[tuple[str, ...]]) -> int:
    """The number of words with which all prefixes begin."""
    n = 0
    for words in zip(*prefixes, strict=False):
        if len(set(words)) > 1:
            break
        n += 1
    return n


def _doubts(entries: list[Entry], root: Path) -> list[str]:
    """What the names leave in doubt, one sentence for all names with the same doubt."""
    named: dict[str, list[str]] = {}
    for entry in entries:
        last = "" if entry.position is not None else ", so it stands last"
        for part, reason in entry.doubts:
            named.setdefault(reason + last, []).append(f"{entry.name} ({part!r})")
        if last and not (entry.doubts or entry.is_bare) and entry.path != root and re.search(r"\d", entry.name):
            named.setdefault(f"no number in the name is a position in training{last}", []).append(entry.name)
    remarks: list[str] = []
    for reason, names in named.items():
        remarks.append(f"{some_of(names)}: {reason}. If that is wrong, give the step or the tokens in {SERIES_FILE}")
    return remarks


def _join_first_stage(entries: list[Entry], overrides: Overrides) -> list[Entry]:
    """Put entries without a stage into the first stage if other entries have one: their names lack `stage1-`."""
    present = {entry.stage for entry in entries}
    known = overrides.stage_order or _FIRST_STAGES
    first = next((stage for stage in known if stage in present), None)
    by_user = {row.stage for row in overrides.checkpoints.values()}
    if first is None or "" in known or follows_another(first) or (stage_rank(first) is None and first not in by_user):
        return entries
    return [
        replace(entry, stage=first) if entry.stage is None and entry.position is not None else entry
        for entry in entries
    ]


def _learning_rate(history: object, step: int) -> float | None:
    """The learning rate logged last at or before a step."""
    latest: tuple[float, float] | None = None
    for entry in cast("list[object]", history) if isinstance(history, list) else []:
        if not isinstance(entry, dict):
            continue
        logged = cast("dict[str, object]", entry)
        logged_step, rate = logged.get("step"), logged.get("learning_rate")
        if (
            isinstance(logged_step, int | float)
            and isinstance(rate, int | float)
            and math.isfinite(rate)
            and logged_step <= step
            and (latest is None or logged_step >= latest[0])
        ):
            latest = (logged_step, float(rate))
    return None if latest is None else latest[1]
