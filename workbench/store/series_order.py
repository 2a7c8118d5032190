"""The checkpoints of a run in the order of training: those of its series, and every other that has parts.

All readers of a run take their order from here. A checkpoint may have parts and no place in the series: it was removed
from the directory before the series noted such checkpoints, or other software wrote the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from workbench.checkpoints.training_order import stage_rank
from workbench.store.part_format import Origin

Record = dict[str, Any]
_PLACE = ("stage", "branch", "step", "step_total", "tokens")


def in_training_order(series: Sequence[Mapping[str, Any]], origins: Iterable[Origin]) -> list[Record]:
    """The records of a series in its order, and one for each other checkpoint of `origins` where it belongs.

    Every record has `name`, `stage`, `branch`, `step`, `step_total`, `tokens` and `is_gone`: it has parts, and the
    series has not, or no longer, a folder for it. A checkpoint that the series does not know stands within its stage by
    tokens or steps; one without a position never stands last.
    """
    ordered: list[Record] = [{**dict.fromkeys(_PLACE), "is_gone": False, **record} for record in series]
    names = {record["name"] for record in ordered}
    others = {origin.ckpt: origin for origin in origins if origin.ckpt not in names}
    is_gone = bool(ordered)  # a run without a series says nothing of folders
    records = [_record(origin, is_gone=is_gone) for origin in others.values()]
    for record in sorted(records, key=lambda record: not _has_position(record)):
        ordered.insert(_slot(ordered, record), record)
    return ordered


def _record(origin: Origin, *, is_gone: bool) -> Record:
    place = asdict(origin)
    return {"name": origin.ckpt, **{name: place[name] for name in _PLACE}, "is_gone": is_gone}


def _slot(ordered: Sequence[Record], record: Record) -> int:
    """The index at which a record is inserted."""
    if not _has_position(record):
        return max(0, len(ordered) - 1)
    positioned = [i for i, other in enumerate(ordered) if _has_position(other)]
    of_stage = [i for i in positioned if ordered[i]["stage"] == record["stage"]]
    earlier = [i for i in of_stage or positioned if _precedes(ordered[i], record)]
    if earlier:
        return max(earlier) + 1
    return min(of_stage, default=0)


def _precedes(one: Record, other: Record) -> bool:
    """Whether a checkpoint comes before another, by the first measure that both have; between stages by their order."""
    measures = ("tokens", "step_total", "step")
    if one["stage"] != other["stage"]:
        ranks = [None if record["stage"] is None else stage_rank(record["stage"]) for record in (one, other)]
        if ranks[0] is not None and ranks[1] is not None and ranks[0] != ranks[1]:
            return ranks[0] < ranks[1]
        measures = ("tokens", "step_total")  # a step counts within its stage
    for name in measures:
        if one[name] is not None and other[name] is not None:
            return (one[name], _tie(one)) < (other[name], _tie(other))
    return False


def _tie(record: Record) -> tuple[int, str, str]:
    """As in `workbench.checkpoints`: the order of checkpoints with the same measure."""
    return (-1 if record["step_total"] is None else record["step_total"], record["branch"] or "", record["name"])


def _has_position(record: Record) -> bool:
    return any(record[name] is not None for name in ("step", "step_total", "tokens"))
