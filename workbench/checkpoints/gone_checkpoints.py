"""Checkpoints that a Trainer has removed since an earlier look: they keep their place in training.

A run has scores of them, and what is still there depends on them: a stage counts from the end of the one before, and
words in a name are a stage's only beside other names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.checkpoints.candidates import Candidate, Candidates
from workbench.checkpoints.names import CheckpointName, parse_name, parse_revision
from workbench.checkpoints.training_order import Entry
from workbench.heads import some_of

Record = Mapping[str, Any]


def with_gone(candidates: Candidates, before: Iterable[Record]) -> Candidates:
    """The candidates of a directory, and those of an earlier look's records that are not among them."""
    names = {candidate.name for candidate in candidates.checkpoints}
    gone = [
        Candidate(
            name=record["name"],
            path=Path(record.get("path") or candidates.root / record["name"]),
            format=record.get("format", "safetensors"),
            parsed=_parsed(record),
            recorded=record,
        )
        for record in before
        if record["name"] not in names and record.get("alias_of") is None
    ]
    return replace(candidates, checkpoints=[*candidates.checkpoints, *gone])


def without_successors(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The entries with a place of their own, and those that are gone and have no position.

    One that is gone is left out where another stands at its position: a checkpoint that was renamed, or skipped.
    """
    places = {_place(entry) for entry in entries if entry.recorded is None}
    placed: list[Entry] = []
    loose: list[Entry] = []
    for entry in entries:
        if entry.recorded is None:
            placed.append(entry)
        elif entry.position is None:
            loose.append(entry)
        elif _place(entry) not in places:
            places.add(_place(entry))
            placed.append(entry)
    return placed, loose


def slot_of(loose: Entry, names: Sequence[str], before: Sequence[Record]) -> int:
    """The index in the order of `names` at which a checkpoint without a position stood in the earlier look."""
    earlier = [record["name"] for record in before]
    for name in reversed(earlier[: earlier.index(loose.name)]):
        if name in names:
            return names.index(name) + 1
    return 0


def remark_on_gone(names: Sequence[str], root: Path | None) -> str:
    """One sentence for the user on the checkpoints that are gone from a folder; `root` None: from what a hub lists."""
    verb = "is" if len(names) == 1 else "are"
    where = "among the revisions that were asked for" if root is None else f"in {root}"
    return f"{some_of(names)} {verb} no longer {where}: the scores stay, at their place in training"


def _parsed(record: Record) -> CheckpointName:
    is_revision = Path(record.get("path") or "").parent.name == "snapshots"
    return parse_revision(record["name"]) if is_revision else parse_name(record["name"])


def _place(entry: Entry) -> tuple[str | None, str | None, str | None]:
    return entry.stage, entry.branch, entry.position
