"""The scores of many checkpoints read straight into arrays, where their parts hold the same heads in the same order.

Tables of text as long would weigh ten times more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from workbench.emergence.head_trajectories import Checkpoint, Trajectories, trajectories_of
from workbench.emergence.onset_definitions import half_rises
from workbench.emergence.score_curves import Curves, axis_of, in_order
from workbench.heads import Head
from workbench.store import Part, read_beside, read_rows

_HEAD = ("layer", "head", "kv_head", "kind", "window")
_SCORES = ("score", "ci_lo", "ci_hi")
_TRAINING = ("step", "step_total", "tokens")


@dataclass(frozen=True, slots=True)
class ScoreArrays:
    """The trajectories of one detector and probe; `heads` has a row for each of theirs, with the columns of a curve.

    `heads` is None where the parts are of several branches, versions or probe digests, or list a head twice.
    """

    trajectories: Trajectories
    heads: pd.DataFrame | None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays and the table."""
        return self.trajectories.nbytes + (0 if self.heads is None else int(self.heads.memory_usage().sum()))


# Of heads as they are stored, their arrangement: trajectories without scores, and the row of the part of each.
Arrangements = dict[tuple[bytes, ...], tuple[Trajectories, np.ndarray]]
_MOST_ARRANGEMENTS = 4


def read_arrays(
    root: Path, parts: Sequence[Part], dtype: Any, arrangements: Arrangements | None = None
) -> ScoreArrays | None:
    """The scores of parts in series order, in this floating-point type; None where their heads differ.

    `arrangements` keeps what detectors of the same heads have in common.
    """
    if len({part.label.ckpt for part in parts}) < max(1, len(parts)) or len({part.label.probe for part in parts}) > 1:
        return None
    try:
        return _read_aligned(root, parts, dtype, {} if arrangements is None else arrangements)
    except FileNotFoundError:  # replaced meanwhile: the next refresh sees it
        return None


def onsets_of(trajectories: Trajectories, heads: pd.DataFrame, *, head: Head | None = None) -> pd.DataFrame:
    """The onsets of `ScoreArrays`, or of one head of them, as `workbench.emergence.onsets` has them from the rows."""
    if head is not None:
        rows = [row for row, of_row in enumerate(trajectories.heads) if isinstance(of_row, Head) and of_row == head]
        trajectories, heads = trajectories.of_rows(rows), heads.iloc[rows]
    names = [checkpoint.name for checkpoint in trajectories.checkpoints]
    training = {
        name: pd.array([getattr(checkpoint, name) for checkpoint in trajectories.checkpoints], "Int64")
        for name in _TRAINING
    }
    checkpoints = in_order(pd.DataFrame({"ckpt": pd.array(names, "str"), **training}))
    score = trajectories.score[:, pd.Index(names).get_indexer(checkpoints.index)].astype(np.float64)
    has_score = ~np.isnan(score).all(1)
    amount, unit = axis_of(checkpoints)
    by_head = heads.loc[has_score].reset_index(drop=True).sort_values(["layer", "head", "kv_head", "kind"])
    score = score[has_score][by_head.index]
    return half_rises(Curves(by_head.reset_index(drop=True), checkpoints, score, score, amount, unit))


def _read_aligned(root: Path, parts: Sequence[Part], dtype: Any, arrangements: Arrangements) -> ScoreArrays | None:
    head_columns = read_rows(root, parts[0], _HEAD)
    n_rows = head_columns.num_rows
    arrays = {name: np.empty((len(parts), n_rows), dtype) for name in _SCORES}
    n = np.empty((len(parts), n_rows), np.int32 if dtype == np.float32 else np.int64)
    first = None
    for i, part in enumerate(parts):
        rows, heads = read_beside(root, part, (*_SCORES, "n"), _HEAD)
        first = heads if i == 0 else first
        is_same = heads is not None and heads == first
        if not is_same and read_rows(root, part, _HEAD) != head_columns:
            return None
        for name, array in arrays.items():
            array[i] = rows[name].to_numpy()
        n[i] = rows["n"].to_numpy()
    table = head_columns.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    key = first or ()
    if not key or key not in arrangements:
        while len(arrangements) >= _MOST_ARRANGEMENTS:
            arrangements.pop(next(iter(arrangements)))
        arrangements[key] = _arranged(table, parts[-1])
    arranged, order = arrangements[key]
    trajectories = replace(
        arranged,
        detector=parts[-1].label.detector,
        probe=parts[-1].label.probe,
        checkpoints=tuple(_checkpoint(part) for part in parts),
        n=_by_head(n, order),
        **{name: _by_head(array, order) for name, array in arrays.items()},
    )
    return ScoreArrays(trajectories, _curve_heads(table, order, parts))


def _by_head(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Values by checkpoint and row, by head in this order and checkpoint."""
    return np.ascontiguousarray(array.T)[order]


def _arranged(table: pd.DataFrame, part: Part) -> tuple[Trajectories, np.ndarray]:
    """The heads of a part's rows in the order of trajectories, without scores, and the row that each is in."""
    origin, label = part.label.origin, part.label
    constant = {name: getattr(origin, name) for name in ("ckpt", "branch", *_TRAINING)}
    rows = np.arange(len(table), dtype=np.float64)
    scores = table.assign(**constant, probe=label.probe, score=rows, ci_lo=rows, ci_hi=rows, n=0)
    trajectories = trajectories_of(scores, label.detector)
    return trajectories, trajectories.score[:, 0].astype(np.int64)


def _curve_heads(table: pd.DataFrame, order: np.ndarray, parts: Sequence[Part]) -> pd.DataFrame | None:
    """The rows of `emergence.Curves.heads`, in the order of the trajectories."""
    labels = [part.label for part in parts]
    is_one_lineage = len({(label.origin.branch, label.version, label.probe_digest) for label in labels}) == 1
    if not is_one_lineage or len(order) < len(table):
        return None
    label = labels[0]
    constant = {
        "branch": pd.array([label.origin.branch] * len(table), "str"),
        "detector": pd.array([label.detector] * len(table), "str"),
        "version": np.full(len(table), label.version, np.int64),
        "probe": pd.array([label.probe] * len(table), "str"),
        "probe_digest": pd.array([label.probe_digest] * len(table), "str"),
    }
    heads = table.astype({"layer": np.int64, "kv_head": np.int64, "kind": "str"})
    return pd.DataFrame({**constant, **heads}).iloc[order].reset_index(drop=True)


def _checkpoint(part: Part) -> Checkpoint:
    origin = part.label.origin
    return Checkpoint(origin.ckpt, origin.branch, origin.step, origin.step_total, origin.tokens)
