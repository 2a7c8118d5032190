"""How far a scan has come, counted from its plan, its parts and its failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.store import Failure, MapLabel, Part

UnitName = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Status:
    """How far a scan has come, counted from the parts on disk.

    `planned`, `done` and `failed` count units; where a checkpoint could not be loaded, all its missing units are
    failed. The others count checkpoints: done when all their units are, failed when some unit is.
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

    @property
    def in_words(self) -> str:
        """How many units are done, or that none could be planned because no checkpoint could be read."""
        if self.planned == 0 and self.checkpoints_failed:
            return f"no units could be planned; {self.checkpoints_failed} of {self.checkpoints} checkpoints failed"
        return f"{self.done} of {self.planned} units done, {self.failed} failed"


def status_of(
    plan: Mapping[str, Any], parts: Sequence[Part], maps: Sequence[MapLabel], failures: Sequence[Failure]
) -> Status:
    """Count the planned units against those on disk."""
    units = planned_names(plan["units"])
    committed = committed_names(parts, maps)
    done = {name: (units & committed.get(name, Counter())).total() for name in plan["checkpoints"]}
    unloadable = {failure.ckpt for failure in failures if failure.unit is None}
    failed_units = Counter(failure.ckpt for failure in failures if failure.unit is not None)
    per_checkpoint = units.total()
    failed = {
        name: per_checkpoint - done[name] if name in unloadable else min(per_checkpoint - done[name], count)
        for name, count in ((name, failed_units[name]) for name in done)
    }
    # Nothing could be planned where no checkpoint could be read at all.
    unplanned = unloadable if per_checkpoint == 0 else set[str]()
    return Status(
        planned=per_checkpoint * len(done),
        done=sum(done.values()),
        failed=sum(failed.values()),
        checkpoints=len(done),
        checkpoints_done=sum(count == per_checkpoint for name, count in done.items() if name not in unplanned),
        checkpoints_failed=sum(count > 0 or name in unplanned for name, count in failed.items()),
    )


def planned_names(units: Iterable[Mapping[str, Any]]) -> Counter[UnitName]:
    """The units that each checkpoint will have, as the plan lists them, by table, probe, detector and version."""
    return Counter((unit["table"], unit["probe"], unit["detector"], unit["version"]) for unit in units)


def committed_names(parts: Iterable[Part], maps: Iterable[MapLabel]) -> dict[str, Counter[UnitName]]:
    """The units on disk, by checkpoint. The patterns of a probe are one unit."""
    committed: dict[str, Counter[UnitName]] = {}
    for part in parts:
        label = part.label
        committed.setdefault(label.ckpt, Counter())[label.table, label.probe, label.detector, label.version] += 1
    for map_label in maps:
        committed.setdefault(map_label.origin.ckpt, Counter())["maps", map_label.probe, "maps", map_label.schema] += 1
    return committed
