"""A directory of checkpoints as one series: stages in order, steps and tokens from the beginning of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from workbench.checkpoints.candidates import Candidates, RemoteCheckpoint
from workbench.checkpoints.configs import ConfigChange, config_changes
from workbench.checkpoints.formats import HINTS, UNREAD, Format
from workbench.checkpoints.gone_checkpoints import remark_on_gone, slot_of, with_gone, without_successors
from workbench.checkpoints.other_contents import why_no_weights
from workbench.checkpoints.series_overrides import SERIES_FILE
from workbench.checkpoints.series_sources import candidates_of
from workbench.checkpoints.steps_and_tokens import Counted, TokensSource, count_from_start
from workbench.checkpoints.training_order import read_entries, settle_duplicates, stage_order
from workbench.heads import NoCheckpoints, WorkbenchError
from workbench.hub.references import HubReference

LrSource = Literal["trainer_state", "unknown"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint and its position in training. None is "not known", never 0.

    `step` counts as its maker does, perhaps from the start of `stage`; `step_total` and `tokens` count from the
    beginning of training. `tokens_lo` and `tokens_hi` bound the tokens. `tokens` is set if the bounds lie within 1 %,
    or if the checkpoint has neither step nor index. `tokens_source`: counted by the trainer ("trainer_state"), given by
    the user ("user"), steps times the user's tokens per step ("tokens_per_step"), the name's label ("label"), or all
    labels of the stage together ("labels_fit"). `index` numbers checkpoints and is no step. `lr` is the learning rate
    logged last before the step. `format` "none" has no weights; the checkpoint stays in the series so that the failure
    to open it is reported. `alias_of` names a checkpoint with the same weights. `is_gone`: an earlier look saw it, and
    it is no longer on disk.
    """

    name: str
    path: Path
    format: Format
    stage: str | None
    branch: str | None
    step: int | None
    index: int | None
    step_total: int | None
    tokens: int | None
    tokens_lo: int | None
    tokens_hi: int | None
    tokens_source: TokensSource
    lr: float | None
    lr_source: LrSource
    alias_of: str | None
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """The checkpoints in order.

    `stages` are the named ones, in order. `ignored` maps each other entry to the reason. `remarks` are sentences for
    the user. `config_changes` within a stage: after a fatal one the checkpoint must not be scored. `remote`: the
    checkpoints that are at a hub, by name; their `path` is where the Hugging Face cache has them, or would.
    """

    root: Path
    checkpoints: tuple[Checkpoint, ...]
    stages: tuple[str, ...]
    ignored: Mapping[str, str]
    remarks: tuple[str, ...]
    config_changes: tuple[ConfigChange, ...]
    remote: Mapping[str, RemoteCheckpoint] = field(default_factory=dict[str, RemoteCheckpoint])

    @property
    def on_disk(self) -> list[Checkpoint]:
        """The checkpoints to read: those that are on disk or at the hub, without aliases of others."""
        return [c for c in self.checkpoints if c.alias_of is None and not c.is_gone]

    def records(self) -> list[dict[str, object]]:
        """The checkpoints as plain dictionaries in order, ready for JSON. Of one at a hub, also where it is there."""
        places = {
            name: {"repo": each.revision.repo, "revision": each.revision.name, "commit": each.revision.commit}
            for name, each in self.remote.items()
        }
        return [
            {**asdict(checkpoint), "path": str(checkpoint.path), **places.get(checkpoint.name, {})}
            for checkpoint in self.checkpoints
        ]


def find_checkpoints(
    source: str | Path | Sequence[str | HubReference],
    *,
    revisions: str | None = None,
    before: Sequence[Mapping[str, Any]] = (),
) -> Series:
    """Order the checkpoints of a directory or of a hub. The directory of a single checkpoint is a series of one.

    The id of a model in the Hugging Face cache (`org/name`, `org/name@revision`) stands for its folder there; of one
    that is not there, and with `revisions`, the hub is asked. Several ids, or a glob of them (`org/name-step-*`), are
    one series. No weights are fetched. A revision that only its commit names is a branch of its own, and stands last.

    Order is by stage, then by tokens or steps, branch and name, never by modification time or alphabet alone. A
    checkpoint whose name gives no position (`main`, `final`) is the last. One without a stage belongs to the first
    stage (`pretrain`, `stage1`, `phase1`) if others have it, else it comes before the later ones that are known. A word
    before the step that only some names have is a stage of its own (`foo_step10`); its order must be given. Steps
    restart in each stage, unless every stage begins at or after the end of the one before; token labels likewise.
    `series.toml` beside the checkpoints overrides: `tokens_per_step` (a number, or a table by stage),
    `steps = "cumulative" | "per_stage"`, `stage_order` (in which "" stands for names without a stage), and rows
    `[checkpoints."NAME"]` with `step`, `tokens`, `stage`, `branch` or `skip`.

    Args:
        source: a directory, an id, or several ids: a list, or a text with commas between.
        revisions: of branches and tags at the hub: a glob, several with commas between, or `/regular expression/`.
        before: the records of an earlier look at the directory (`Series.records`). What is no longer there stays in the
            series at its place, as `is_gone`; steps and tokens of later stages go on from it.

    Raises:
        NoCheckpoints: if there are none, all are adapters or GGUF, or they cannot be put in one order (two of one step
            with different weights, steps beside token labels, stages of unknown order); the message names them.
        HubError: if the hub has no such model or revision, does not show it, or cannot be reached.
        WorkbenchError: if `series.toml` has unknown keys, values or checkpoints.
    """
    return order_checkpoints(candidates_of(source, revisions), before)


def order_checkpoints(candidates: Candidates, before: Sequence[Mapping[str, Any]] = ()) -> Series:
    """Order checkpoints that were searched for; see `find_checkpoints`, also for what is raised."""
    both = with_gone(candidates, before)
    if len(both.checkpoints) == len(candidates.checkpoints):
        return _series(candidates, before)
    try:
        return _series(both, before)
    except WorkbenchError as error:
        series = _series(candidates, ())
        remark = f"checkpoints that are gone could not be put in one order with the others and count nothing: {error}"
        return replace(series, remarks=(*series.remarks, remark))


def _series(candidates: Candidates, before: Sequence[Mapping[str, Any]]) -> Series:
    overrides = candidates.overrides
    skipped = {name: f"skip = true in {SERIES_FILE}" for name, row in overrides.checkpoints.items() if row.skip}
    entries, remarks = read_entries(candidates)
    remarks = [*candidates.remarks, *remarks]
    on_disk = [entry for entry in entries if entry.recorded is None]
    if not on_disk:
        raise NoCheckpoints(f"{candidates.root}: {SERIES_FILE} skips every checkpoint; remove a skip = true")
    if all(entry.format in UNREAD and entry.format != "none" for entry in on_disk):
        of = f" (all {len(on_disk)} checkpoints there are such)" if len(on_disk) > 1 else ""
        first = on_disk[0]
        is_listed_alone = first.blobs is not None and not first.path.exists()
        why = f"{first.name}: has {first.format} weights alone, which are not read; {HINTS[first.format]}"
        raise NoCheckpoints(f"{why if is_listed_alone else why_no_weights(first.path)}{of}")
    entries, loose = without_successors(entries)
    entries, aliases, outputs = settle_duplicates(entries)
    order = stage_order(entries, overrides)
    counted = _ordered(count_from_start(entries, order, overrides), order)
    for entry in loose:
        slot = slot_of(entry, [each.entry.name for each in counted], before)
        counted.insert(slot, Counted(entry, None, None, None, None, "unknown"))
    stages = [[(each.entry.name, each.entry.path) for each in counted if each.entry.stage == stage] for stage in order]
    if gone := [each.entry.name for each in counted if each.entry.recorded is not None]:
        is_at_hub = any(each.remote is not None for each in candidates.checkpoints)
        remarks.append(remark_on_gone(gone, None if is_at_hub else candidates.root))
    return Series(
        root=candidates.root,
        checkpoints=tuple(_checkpoint(each, aliases.get(each.entry.name)) for each in counted),
        stages=tuple(stage for stage in order if stage is not None),
        ignored=candidates.ignored | outputs | skipped,
        remarks=tuple(remarks),
        config_changes=tuple(config_changes(stages)),
        remote={each.name: each.remote for each in candidates.checkpoints if each.remote is not None},
    )


def _ordered(counted: list[Counted], order: list[str | None]) -> list[Counted]:
    """Sort by stage and, within a stage, by the first measure that all its checkpoints with a position have."""
    ordered: list[Counted] = []
    for stage in order:
        members = [each for each in counted if each.entry.stage == stage]
        positioned = [each for each in members if each.entry.position is not None]
        for measure in (_tokens, _step, _index, _label):
            if measure is _index and len({_kind(each) for each in positioned}) > 1:
                continue
            if all(measure(each) is not None for each in positioned):
                positioned.sort(key=lambda each: (measure(each), *_tie(each)))
                break
        else:
            a = positioned[0].entry
            b = next((each.entry for each in positioned if _kind(each) != _kind(positioned[0])), positioned[-1].entry)
            raise NoCheckpoints(
                f"{a.name} is at {a.position}, {b.name} at {b.position}: they cannot be put in one order; give steps"
                f" or tokens_per_step in {SERIES_FILE}{a.doubts_in_words}{b.doubts_in_words}"
            )
        ordered += [*positioned, *sorted((each for each in members if each.entry.position is None), key=_name)]
    # A checkpoint without stage and position, such as `main`, is the end of training, not its beginning.
    return sorted(ordered, key=lambda each: each.entry.position is None and each.entry.stage is None)


def _tie(each: Counted) -> tuple[int, str, str]:
    """The order of checkpoints with the same measure: by step, branch and name."""
    return (-1 if each.step_total is None else each.step_total, each.entry.branch or "", each.entry.name)


def _tokens(each: Counted) -> int | None:
    return each.tokens


def _step(each: Counted) -> int | None:
    return each.step_total


def _index(each: Counted) -> int | None:
    return each.entry.index


def _label(each: Counted) -> int | None:
    return each.entry.label[0] if each.entry.label else None


def _name(each: Counted) -> tuple[bool, str]:
    return each.entry.is_bare, each.entry.name


def _kind(each: Counted) -> str:
    """The measure of a checkpoint's position: step, index, epoch or token."""
    return (each.entry.position or "").split(" ")[0]


def _source(counted: Counted) -> TokensSource:
    """How the tokens are known; of a checkpoint that is gone, how they were when it was there."""
    recorded = counted.entry.recorded or {}
    is_same = counted.source == "user" and recorded.get("tokens") == counted.tokens
    return recorded.get("tokens_source", "user") if is_same else counted.source


def _checkpoint(counted: Counted, alias_of: str | None) -> Checkpoint:
    entry = counted.entry
    return Checkpoint(
        name=entry.name,
        path=entry.path,
        format=entry.format,
        stage=entry.stage,
        branch=entry.branch,
        step=entry.step,
        index=entry.index,
        step_total=counted.step_total,
        tokens=counted.tokens,
        tokens_lo=counted.tokens_lo,
        tokens_hi=counted.tokens_hi,
        tokens_source=_source(counted),
        lr=entry.lr,
        lr_source="unknown" if entry.lr is None else "trainer_state",
        alias_of=alias_of,
        is_gone=entry.recorded is not None,
    )
