"""How far a scan has come, counted from its plan, its parts and its failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.store import Failure, Label, Part


@dataclass(frozen=True, slots=True)
class Status:
    """How far a scan has come, counted from the parts on disk.

    `planned`, `done` and `failed` count units; where a checkpoint could not be loaded, all units that it
    lacks are failed. The others count checkpoints: done when all units are, failed when some unit is.
    """

    planned: int
    done: int
    failed: int
    checkpoints: int
    checkpoints_done: int
    checkpoints_failed: int

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left that could still be tried."""
        return self.done + self.failed >= self.planned


def status_of(plan: Mapping[str, Any], parts: Sequence[Part], failures: Sequence[Failure]) -> Status:
    """Count what is planned against what is on disk."""
    units = Counter(_planned(unit) for unit in plan["units"])
    committed: dict[str, Counter[tuple[Any, ...]]] = {name: Counter() for name in plan["checkpoints"]}
    for part in parts:
        committed.get(part.label.ckpt, Counter())[_committed(part.label)] += 1
    done = {name: (units & of_unit).total() for name, of_unit in committed.items()}
    unloadable = {failure.ckpt for failure in failures if failure.unit is None}
    failed_units = Counter(failure.ckpt for failure in failures if failure.unit is not None)
    per_checkpoint = units.total()
    failed = {
        name: per_checkpoint - done[name] if name in unloadable else min(per_checkpoint - done[name], count)
        for name, count in ((name, failed_units[name]) for name in committed)
    }
    # Nothing could be planned where no checkpoint could be read at all.
    unplanned = unloadable if per_checkpoint == 0 else set[str]()
    return Status(
        planned=per_checkpoint * len(committed),
        done=sum(done.values()),
        failed=sum(failed.values()),
        checkpoints=len(committed),
        checkpoints_done=sum(count == per_checkpoint for name, count in done.items() if name not in unplanned),
        checkpoints_failed=sum(count > 0 or name in unplanned for name, count in failed.items()),
    )


def _planned(unit: Mapping[str, Any]) -> tuple[Any, ...]:
    return unit["table"], unit["probe"], unit["detector"], unit["version"]


def _committed(label: Label) -> tuple[Any, ...]:
    return label.table, label.probe, label.detector, label.version
