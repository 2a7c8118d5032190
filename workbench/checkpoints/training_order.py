"""Where each checkpoint stands in training: what its name, its trainer state and the user say together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from workbench.checkpoints.candidates import Candidate, Finding
from workbench.checkpoints.fingerprints import same_weights
from workbench.checkpoints.formats import Format
from workbench.checkpoints.overrides import SERIES_FILE, Overrides, Placement
from workbench.checkpoints.trainer_state import TRAINER_STATE, TrainerState, read_trainer_state
from workbench.heads import BadCheckpoint, NoCheckpoints, WorkbenchError

_FIRST_STAGES = ("pretrain", "stage1")
# Those of other names, and more than one of a rank, need a stage_order.
_RANKS = {"pretrain": 0, "midtrain": 2, "anneal": 3, "decay": 3, "cooldown": 3, "long-context": 4}


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint before its totals are known.

    `label` is the name's token count with its bounds; `tokens_seen` what the trainer counted; both may count
    from the start of the stage, as `step` may. `tokens_given` is the user's, from the very beginning.
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
    def place(self) -> str | None:
        """What tells it from the others of its stage and branch, in words; None if nothing does."""
        if self.step is not None:
            return f"step {self.step}"
        if self.index is not None:
            return f"index {self.index}"
        if self.tokens_given is not None:
            return f"token {self.tokens_given}"
        return None if self.label is None else f"token {self.label[0]}"


def place_entries(found: Finding) -> tuple[list[Entry], list[str]]:
    """Read what is known of every candidate that the user does not skip; also returns remarks for people.

    Raises:
        WorkbenchError: if `series.toml` speaks of a checkpoint that is not there.
    """
    rows = found.overrides.checkpoints
    names = [candidate.name for candidate in found.candidates]
    if missing := sorted(rows.keys() - set(names)):
        raise WorkbenchError(
            f"{found.root / SERIES_FILE}: no checkpoint {', '.join(missing)} beside it; there are {', '.join(names)}"
        )
    remarks: list[str] = []
    entries: list[Entry] = []
    for candidate in found.candidates:
        row = rows.get(candidate.name, Placement())
        if row.skip:
            continue
        # A Trainer leaves its last state beside its checkpoints, and perhaps the weights of the best one.
        is_of_the_run = candidate.path == found.root and len(found.candidates) > 1
        try:
            state = None if is_of_the_run else read_trainer_state(candidate.path)
        except BadCheckpoint as error:
            # The weights may be sound: they are judged when they are opened.
            remarks.append(f"{error}; its tokens and learning rate are not used")
            state = None
        entry = _entry(candidate, row, state)
        if state is not None and state.step != entry.step:
            remarks.append(
                f"{candidate.name}: {TRAINER_STATE} is of step {state.step}, not {entry.step}; it is not used"
            )
        entries.append(entry)
    return _join_first_stage(entries, found.overrides), remarks


def stage_order(entries: list[Entry], overrides: Overrides) -> list[str | None]:
    """The stages in the order they were trained; checkpoints without a stage come first.

    Raises:
        WorkbenchError: if the order is not known or the user's leaves a stage out.
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
    """Whether a stage of this name cannot be the beginning of training."""
    return stage is not None and stage not in _FIRST_STAGES and _rank(stage) is not None


def settle_duplicates(entries: list[Entry]) -> tuple[list[Entry], dict[str, str], dict[str, str]]:
    """Make every place of a stage and branch unique.

    Returns:
        The entries that stay; name -> name for those whose weights another has too; name -> reason for
        folders without weights whose place a real checkpoint has (outputs of an evaluation at that step).

    Raises:
        NoCheckpoints: naming two checkpoints of one place with different weights, or two of no place.
    """
    aliases: dict[str, str] = {}
    outputs: dict[str, str] = {}
    holders: dict[tuple[str | None, str | None, str], Entry] = {}
    loose: dict[str | None, Entry] = {}
    for entry in sorted(entries, key=lambda entry: (entry.place is None, entry.format == "none", entry.name)):
        if entry.place is None:
            _settle_loose(entry, entries, aliases, loose)
            continue
        holder = holders.setdefault((entry.stage, entry.branch, entry.place), entry)
        if holder is entry:
            continue
        if entry.format == "none" != holder.format:
            outputs[entry.name] = f"no weights in it, and {holder.name} is the checkpoint of {entry.place}"
        elif same_weights(holder.path, entry.path):
            aliases[entry.name] = holder.name
        else:
            where = "".join(f" of {part}" for part in (entry.branch, entry.stage) if part)
            raise NoCheckpoints(
                f"{holder.name} and {entry.name} are both {entry.place}{where} and their weights differ;"
                f" give one a step, a branch or skip = true in {SERIES_FILE}"
            )
    return [entry for entry in entries if entry.name not in outputs], aliases, outputs


def _settle_loose(entry: Entry, entries: list[Entry], aliases: dict[str, str], loose: dict[str | None, Entry]) -> None:
    """A checkpoint of no place is another's alias or the last of its stage, of which there can be one."""
    for other in reversed(entries):
        is_original = other.name not in aliases and (other.place is not None or other is loose.get(entry.stage))
        if is_original and other is not entry and same_weights(other.path, entry.path):
            aliases[entry.name] = other.name
            return
    last = loose.setdefault(entry.stage, entry)
    if last is not entry:
        raise NoCheckpoints(
            f"{last.name} and {entry.name}: neither name says where in training it stands, and their weights"
            f" differ; give one a step in {SERIES_FILE}, e.g. [checkpoints.{entry.name!r}] step = 1000"
        )


def _entry(candidate: Candidate, row: Placement, state: TrainerState | None) -> Entry:
    says = candidate.says
    step = row.step if row.step is not None else says.step
    if step is None and state is not None:
        step = state.step
    own = state if state is not None and state.step == step else None
    label = None
    if says.tokens is not None and says.tokens_lo is not None and says.tokens_hi is not None:
        label = (says.tokens, says.tokens_lo, says.tokens_hi)
    return Entry(
        name=candidate.name,
        path=candidate.path,
        format=candidate.format,
        stage=row.stage or says.stage,
        branch=row.branch or says.branch,
        step=step,
        index=says.index,
        label=label,
        tokens_seen=own.tokens if own else None,
        tokens_given=row.tokens,
        lr=own.lr if own else None,
    )


def _join_first_stage(entries: list[Entry], overrides: Overrides) -> list[Entry]:
    """Names that lost their `stage1-` belong to the first stage, where the others have one."""
    present = {entry.stage for entry in entries}
    known = overrides.stage_order or _FIRST_STAGES
    first = next((stage for stage in known if stage in present), None)
    if first is None:
        return entries
    return [
        replace(entry, stage=first) if entry.stage is None and entry.place is not None else entry for entry in entries
    ]


def _rank(stage: str) -> tuple[int, int] | None:
    number = stage.removeprefix("stage")
    if stage.startswith("stage") and number.isdigit():
        return 1, int(number)
    return (_RANKS[stage], 0) if stage in _RANKS else None
