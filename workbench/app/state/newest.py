"""A run as the app shows it: the newest scores of each detector, and many checkpoints of them as arrays in one read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int32

from workbench.emergence.half_rise import half_rises
from workbench.emergence.score_curves import Curves, axis_of
from workbench.figures.trajectories import Checkpoint, Trajectories, arranged, read_trajectories
from workbench.heads import Head, KVHead
from workbench.runs.run import Run
from workbench.store import Part, Table, read_rows

_PLACE = ("layer", "head", "kv_head", "kind", "window")
_SCORES = ("score", "ci_lo", "ci_hi")
_CHECKPOINT = {"ckpt": "name", "branch": "branch", "step": "step", "step_total": "step_total", "tokens": "tokens"}
_WHEN = ("step", "step_total", "tokens")


class NewestRun(Run):
    """A run of which, where a detector or its probe has changed since, only the newest scores count."""

    def _parts(self, table: Table, *, detector: str | None, probe: str | None) -> tuple[Part, ...]:
        parts = super()._parts(table, detector=detector, probe=probe)
        newest: dict[tuple[str, str], Part] = {}
        for part in sorted(parts, key=self._reader.written):
            newest[part.label.detector, part.label.probe] = part
        return tuple(
            part for part in parts if _made_as(part) == _made_as(newest[part.label.detector, part.label.probe])
        )

    def trajectories(self, detector: str, probe: str | None) -> Trajectories:
        """As `figures.trajectories.read_trajectories`, in single precision.

        Raises:
            WorkbenchError: as there.
        """
        ranks = self._series_rank()
        parts = [part for part in self._parts("scores", detector=detector, probe=probe) if part.label.rows]
        found = self._aligned(sorted(parts, key=lambda part: ranks[part.label.ckpt]))
        if found is not None:
            return found
        run: Any = self
        found = read_trajectories(run, detector, probe)
        return replace(found, **{name: getattr(found, name).astype(np.float32) for name in _SCORES})

    def _aligned(self, parts: Sequence[Part]) -> Trajectories | None:
        """The scores of parts whose rows are the same heads in the same order; None where they are not.

        Nothing is held but a part's narrow columns and the arrays: tables of text as long would weigh ten times more.
        """
        if len({part.label.ckpt for part in parts}) < max(1, len(parts)) or len({p.label.probe for p in parts}) > 1:
            return None
        columns = read_rows(self.path, parts[0], _PLACE)
        n_rows = columns.num_rows
        arrays = {name: np.empty((n_rows, len(parts)), np.float32) for name in _SCORES}
        n = np.empty((n_rows, len(parts)), np.int32)
        for i, part in enumerate(parts):
            rows = read_rows(self.path, part, (*_PLACE, *_SCORES, "n"))
            if rows.select(_PLACE) != columns:
                return None
            for name, array in arrays.items():
                array[:, i] = rows[name].to_numpy()
            n[:, i] = rows["n"].to_numpy()
        heads, order = _heads_of(columns, parts[-1])
        checkpoints = tuple(_checkpoint(part) for part in parts)
        return replace(heads, checkpoints=checkpoints, n=n[order], **{name: a[order] for name, a in arrays.items()})


def onsets_of(found: Trajectories) -> pd.DataFrame:
    """The half-rise onsets of heads of one branch: of the columns of `Run.onsets` those that figures ask for."""
    whens = {name: pd.array([getattr(at, name) for at in found.checkpoints], "Int64") for name in _WHEN}
    checkpoints = pd.DataFrame(whens, index=pd.Index([at.name for at in found.checkpoints], dtype=object))
    amount, unit = axis_of(checkpoints)
    heads = pd.DataFrame([_numbers_of(head) for head in found.heads]).astype("Int64")
    heads = heads.assign(kind=[found.layer_of(row).kind for row in range(len(found.heads))])
    score = found.score.astype(np.float64)
    has_score = ~np.isnan(score).all(1)
    curves = Curves(heads.loc[has_score], checkpoints, score[has_score], score[has_score], amount, unit)
    return half_rises(curves)


def layer_of(found: Trajectories, layer: int) -> pd.DataFrame:
    """One layer as rows of `Run.scores`, the KV heads that query heads read left out."""
    rows = [row for row, head in enumerate(found.heads) if head.layer == layer]
    n_ckpts = len(found.checkpoints)
    each = [_numbers_of(found.heads[row]) for row in rows]
    per_ckpt = {name: [getattr(at, field) for at in found.checkpoints] for name, field in _CHECKPOINT.items()}
    columns: dict[str, Any] = {name: values * len(rows) for name, values in per_ckpt.items()}
    for name in ("layer", "head", "kv_head"):
        columns[name] = pd.array([numbers[name] for numbers in each], "Int64").repeat(n_ckpts)
    columns["kind"] = np.repeat([found.layer_of(row).kind for row in rows], n_ckpts)
    for name in (*_SCORES, "n"):
        columns[name] = getattr(found, name)[rows].ravel()
    table = pd.DataFrame(columns).assign(detector=found.detector, probe=found.probe)
    return table.astype(dict.fromkeys(_WHEN, "Int64"))


def _numbers_of(head: Head | KVHead) -> dict[str, int | None]:
    is_query_head = isinstance(head, Head)
    return {
        "layer": head.layer,
        "head": head.head if is_query_head else None,
        "kv_head": None if is_query_head else head.kv_head,
    }


def _heads_of(columns: pa.Table, part: Part) -> tuple[Trajectories, Int32[np.ndarray, " heads"]]:
    """The heads of a part as they are arranged, without scores, and the row that each is in."""
    table = columns.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    origin, label = part.label.origin, part.label
    same = {name: getattr(origin, name) for name in ("ckpt", "branch", *_WHEN)}
    rows = np.arange(len(table), dtype=np.float64)
    found = arranged(table.assign(**same, probe=label.probe, score=rows, ci_lo=rows, ci_hi=rows, n=0), label.detector)
    return found, found.score[:, 0].astype(np.int32)


def _checkpoint(part: Part) -> Checkpoint:
    origin = part.label.origin
    return Checkpoint(origin.ckpt, origin.branch, origin.step, origin.step_total, origin.tokens)


def _made_as(part: Part) -> tuple[Any, ...]:
    return part.label.version, part.label.probe_digest
