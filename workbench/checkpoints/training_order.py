"""The position of each checkpoint in training, from its name, its trainer state and the user's overrides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from workbench.checkpoints.candidates import Candidate, Candidates
from workbench.checkpoints.configs import read_json_object
from workbench.checkpoints.digests import same_weights
from workbench.checkpoints.formats import Format
from workbench.checkpoints.series_overrides import SERIES_FILE, Overrides, Placement
from workbench.heads import BadCheckpoint, NoCheckpoints, WorkbenchError

TRAINER_STATE = "trainer_state.json"
_FIRST_STAGES = ("pretrain", "stage1")
# Stages with other names, and several stages of one rank, need a stage_order.
_RANKS = {"pretrain": 0, "midtrain": 2, "anneal": 3, "decay": 3, "cooldown": 3, "long-context": 4}


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
    from the start of the stage. `tokens_given` is the user's, from the beginning of training.
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

    @property
    def position(self) -> str | None:
        """The position within its stage and branch, in words; None if it is unknown."""
        if self.step is not None:
            return f"step {self.step}"
        if self.index is not None:
            return f"index {self.index}"
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
            state = None if is_of_the_run else read_trainer_state(candidate.path)
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
    return _join_first_stage(entries, candidates.overrides), remarks


def stage_order(entries: list[Entry], overrides: Overrides) -> list[str | None]:
    """The stages in training order; checkpoints without a stage come first.

    Raises:
        WorkbenchError: if the order is unknown, or the user's order lacks a stage.
    """
    present = {entry.stage for entry in entries if entry.stage is not None}
    unstaged: list[str | None] = [None] if any(entry.stage is None for entry in entries) else []
    if overrides.stage_order is not None:
        if missing := sorted(present - set(overrides.stage_order)):
            raise WorkbenchError(f"stage_order {overrides.stage_order} in {SERIES_FILE} lacks {', '.join(missing)}")
        return [*unstaged, *(stage for stage in overrides.stage_order if stage in present)]
    ranks = {stage: _rank(stage) for stage in present}
    if len(present) > 1 and len(set(ranks.values()) - {None}) < len(present):
        raise WorkbenchError(
            f"the order of the stages {', '.join(sorted(present))} is not known; write e.g."
            f" stage_order = {sorted(present)} into {SERIES_FILE} beside the checkpoints"
        )
    return [*unstaged, *sorted(present, key=lambda stage: ranks[str(stage)] or (0, 0))]


def follows_another(stage: str | None) -> bool:
    """Whether a stage with this name cannot be the first."""
    return stage is not None and stage not in _FIRST_STAGES and _rank(stage) is not None


def settle_duplicates(entries: list[Entry]) -> tuple[list[Entry], dict[str, str], dict[str, str]]:
    """Make every position of a stage and branch unique.

    Returns:
        The entries that stay; name -> name of another checkpoint with the same weights; name -> reason for folders
        without weights at the position of a checkpoint (outputs of an evaluation at that step).

    Raises:
        NoCheckpoints: naming two checkpoints of one position with different weights, or two without a position.
    """
    aliases: dict[str, str] = {}
    outputs: dict[str, str] = {}
    holders: dict[tuple[str | None, str | None, str], Entry] = {}
    loose: dict[str | None, Entry] = {}
    for entry in sorted(entries, key=lambda entry: (entry.position is None, entry.format == "none", entry.name)):
        if entry.position is None:
            _settle_loose(entry, entries, aliases, loose)
            continue
        holder = holders.setdefault((entry.stage, entry.branch, entry.position), entry)
        if holder is entry:
            continue
        if entry.format == "none" != holder.format:
            outputs[entry.name] = f"no weights in it, and {holder.name} is the checkpoint of {entry.position}"
        elif same_weights(holder.path, entry.path):
            aliases[entry.name] = holder.name
        else:
            where = "".join(f" of {part}" for part in (entry.branch, entry.stage) if part)
            raise NoCheckpoints(
                f"{holder.name} and {entry.name} are both {entry.position}{where} and their weights differ;"
                f" give one a step, a branch or skip = true in {SERIES_FILE}"
            )
    return [entry for entry in entries if entry.name not in outputs], aliases, outputs


def _settle_loose(entry: Entry, entries: list[Entry], aliases: dict[str, str], loose: dict[str | None, Entry]) -> None:
    """Treat a checkpoint without a position as an alias of another, or as the last of its stage, which is unique."""
    for other in reversed(entries):
        is_original = other.name not in aliases and (other.position is not None or other is loose.get(entry.stage))
        if is_original and other is not entry and same_weights(other.path, entry.path):
            aliases[entry.name] = other.name
            return
    last = loose.setdefault(entry.stage, entry)
    if last is not entry:
        raise NoCheckpoints(
            f"{last.name} and {entry.name}: neither name says where in training it stands, and their weights"
            f" differ; give one a step in {SERIES_FILE}, e.g. [checkpoints.{entry.name!r}] step = 1000"
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


def _entry(candidate: Candidate, row: Placement, state: TrainerState | None) -> Entry:
    name = candidate.parsed
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
        tokens_given=row.tokens,
        lr=state.lr if state else None,
    )


def _join_first_stage(entries: list[Entry], overrides: Overrides) -> list[Entry]:
    """Put entries without a stage into the first stage if other entries have one: their names lack `stage1-`."""
    present = {entry.stage for entry in entries}
    known = overrides.stage_order or _FIRST_STAGES
    first = next((stage for stage in known if stage in present), None)
    if first is None:
        return entries
    return [
        replace(entry, stage=first) if entry.stage is None and entry.position is not None else entry
        for entry in entries
    ]


def _rank(stage: str) -> tuple[int, int] | None:
    number = stage.removeprefix("stage")
    if stage.startswith("stage") and number.isdigit():
        return 1, int(number)
    return (_RANKS[stage], 0) if stage in _RANKS else None


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
