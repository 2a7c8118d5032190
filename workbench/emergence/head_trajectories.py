"""Every head's score at every checkpoint as arrays, from rows of scores of one detector and probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from workbench.heads import Head, KVHead, WorkbenchError

# The columns that describe a checkpoint.
CHECKPOINT_COLUMNS = ("ckpt", "branch", "step", "step_total", "tokens")
# The columns of `Run.scores` that `trajectories_of` reads.
TRAJECTORY_COLUMNS = (
    *CHECKPOINT_COLUMNS,
    *("layer", "head", "kv_head", "kind", "window", "probe"),
    *("score", "ci_lo", "ci_hi", "n"),
)
# The columns of `Run.scores` that one layer's history is drawn from.
LAYER_COLUMNS = (
    *CHECKPOINT_COLUMNS,
    *("n", "ci_lo", "ci_hi"),
    *("layer", "head", "kv_head", "kind", "detector", "probe", "score"),
)


class Checkpoint(NamedTuple):
    """Where in training a score was taken."""

    name: str
    branch: str | None
    step: int | None
    step_total: int | None
    tokens: int | None

    def __str__(self) -> str:
        parts = [self.name if self.step is None else f"step {self.step:,}"]
        if self.tokens is not None:
            parts.append(f"{short_count(self.tokens)} tokens")
        return " · ".join(parts)


class LayerKind(NamedTuple):
    """What a layer is, to label it."""

    layer: int
    kind: str
    window: int | None


@dataclass(frozen=True, slots=True)
class Trajectories:
    """The scores of all heads of a run under one detector and probe.

    Columns of the arrays are `checkpoints`, in series order. Where a head has no score, `score` is NaN and `n` is 0.
    A layer with two mixers is in `layers` once for each, with the heads of each; `layer_slots` holds the index into
    `layers` of every head.
    """

    detector: str
    probe: str
    heads: tuple[Head | KVHead, ...]
    layers: tuple[LayerKind, ...]
    layer_slots: tuple[int, ...]
    checkpoints: tuple[Checkpoint, ...]
    score: Float[np.ndarray, "heads ckpts"]
    ci_lo: Float[np.ndarray, "heads ckpts"]
    ci_hi: Float[np.ndarray, "heads ckpts"]
    n: Int[np.ndarray, "heads ckpts"]

    @property
    def width(self) -> int:
        """Heads of the widest layer."""
        return 1 + max(number for _, number in self.heads)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in (self.score, self.ci_lo, self.ci_hi, self.n))

    def layer_of(self, row: int) -> LayerKind:
        """What the layer of a row's head is."""
        return self.layers[self.layer_slots[row]]

    def column(self, step: int | str) -> int:
        """The column of a step, of a checkpoint's name, or of the last checkpoint for "last".

        Raises:
            WorkbenchError: if there is no such checkpoint; it lists those there are.
        """
        for column in reversed(range(len(self.checkpoints))):
            if step in ("last", self.checkpoints[column].step, self.checkpoints[column].name):
                return column
        known = ", ".join(str(checkpoint.step) for checkpoint in self.checkpoints)
        raise WorkbenchError(f"step {step} is not among the checkpoints: {known}")

    def of_rows(self, rows: Sequence[int]) -> Trajectories:
        """The same of some heads."""
        arrays = {name: getattr(self, name)[list(rows)] for name in ("score", "ci_lo", "ci_hi", "n")}
        heads = tuple(self.heads[row] for row in rows)
        return replace(self, heads=heads, layer_slots=tuple(self.layer_slots[row] for row in rows), **arrays)

    def as_type(self, dtype: Any) -> Trajectories:
        """The same with scores and intervals in this floating-point type."""
        arrays = {name: getattr(self, name).astype(dtype) for name in ("score", "ci_lo", "ci_hi")}
        return replace(self, **arrays)

    @property
    def is_strongest_untrained(self) -> bool:
        """Whether most of the strongest tenth of the heads are so at the first checkpoint, and have fallen since.

        As with the entropy of a head: it is highest where a head has not learned to look anywhere.
        """
        if self.score.shape[1] < 2:
            return False
        rows = self.strongest(max(3, len(self.heads) // 10))
        if not rows:
            return False
        score = self.score[rows]
        last = score.shape[1] - 1 - (~np.isnan(score))[:, ::-1].argmax(1)
        has_fallen = score[np.arange(len(rows)), last] < 0.9 * score[:, 0]
        return float(np.mean((np.nanargmax(score, axis=1) == 0) & has_fallen)) > 0.5

    def most_changed(self, top: int) -> list[int]:
        """The rows of the heads whose score has changed most since their first checkpoint, in either direction."""
        scored = ~np.isnan(self.score)
        rows = np.arange(len(self.heads))
        first, last = scored.argmax(1), scored.shape[1] - 1 - scored[:, ::-1].argmax(1)
        change = np.where(scored.any(1), np.abs(self.score[rows, last] - self.score[rows, first]), -np.inf)
        return [int(row) for row in np.argsort(-change, kind="stable")[:top] if np.isfinite(change[row])]

    def leading(self, top: int) -> list[int]:
        """The strongest rows; those that changed most, where the strongest are those of an untrained model."""
        return self.most_changed(top) if self.is_strongest_untrained else self.strongest(top)

    def strongest(self, top: int) -> list[int]:
        """The rows of the heads with the highest score at any checkpoint, highest first."""
        peak = np.where(np.isnan(self.score), -np.inf, self.score).max(1)
        return [int(row) for row in np.argsort(-peak, kind="stable")[:top] if np.isfinite(peak[row])]


def trajectories_of(scores: pd.DataFrame, detector: str, *, run: str = "") -> Trajectories:
    """Rows of `Run.scores` of one detector and probe, head by checkpoint; `run` is named where there are none.

    Raises:
        WorkbenchError: if there is no row, or rows of several probes.
    """
    if scores.empty:
        raise WorkbenchError(f"run {run} has no scores of {detector} yet; see `workbench status`")
    probes = scores.loc[:, "probe"].unique().tolist()
    if len(probes) > 1:
        raise WorkbenchError(f"{detector} was scored on {', '.join(probes)}: pass one of them as probe=")
    checkpoints = checkpoints_of(scores)
    by_kv_head = bool(scores.loc[:, "head"].isna().all())
    layers, slot_of_row = _layers(scores)
    number = scores.loc[:, "kv_head" if by_kv_head else "head"].to_numpy(np.int64, na_value=-1)
    stride = int(number.max()) + 2
    row, codes = pd.factorize(slot_of_row * stride + number + 1, sort=True)
    layer_slots = tuple(int(code) // stride for code in codes)
    column = pd.Index([c.name for c in checkpoints]).get_indexer(scores.loc[:, "ckpt"])
    shape = len(codes), len(checkpoints)

    def array(name: str, missing: Any) -> Any:
        values = np.full(shape, missing)
        values[row, column] = scores.loc[:, name].to_numpy()
        return values

    kind = KVHead if by_kv_head else Head
    return Trajectories(
        detector,
        str(scores.loc[:, "probe"].iloc[0]),
        heads=tuple(
            kind(layers[slot].layer, int(code) % stride - 1) for slot, code in zip(layer_slots, codes, strict=True)
        ),
        layers=layers,
        layer_slots=layer_slots,
        checkpoints=checkpoints,
        score=array("score", math.nan),
        ci_lo=array("ci_lo", math.nan),
        ci_hi=array("ci_hi", math.nan),
        n=array("n", 0),
    )


def layer_rows(trajectories: Trajectories, layer: int, *, head: Head | KVHead | None = None) -> pd.DataFrame:
    """One layer, or one head of it, as rows of `Run.scores`; `kv_head` is missing where scores are of query heads."""
    rows = [row for row, of_row in enumerate(trajectories.heads) if of_row.layer == layer]
    if head is not None:  # a query head and a key/value head of one number are equal as tuples
        rows = [row for row in rows if (type(trajectories.heads[row]), trajectories.heads[row]) == (type(head), head)]
    n_ckpts = len(trajectories.checkpoints)
    numbers = [_numbers_of(trajectories.heads[row]) for row in rows]
    columns: dict[str, Any] = {
        name: [checkpoint[i] for checkpoint in trajectories.checkpoints] * len(rows)
        for i, name in enumerate(CHECKPOINT_COLUMNS)
    }
    for name in ("layer", "head", "kv_head"):
        columns[name] = pd.array([head[name] for head in numbers], "Int64").repeat(n_ckpts)
    columns["kind"] = np.repeat([trajectories.layer_of(row).kind for row in rows], n_ckpts)
    for name in ("score", "ci_lo", "ci_hi", "n"):
        columns[name] = getattr(trajectories, name)[rows].ravel()
    table = pd.DataFrame(columns).assign(detector=trajectories.detector, probe=trajectories.probe)
    return table.astype(dict.fromkeys(("step", "step_total", "tokens"), "Int64"))


def checkpoints_of(table: pd.DataFrame) -> tuple[Checkpoint, ...]:
    """The checkpoints of a table's rows, in order of appearance."""
    first = table.drop_duplicates("ckpt").loc[:, list(CHECKPOINT_COLUMNS)]
    return tuple(Checkpoint(*row) for row in _with_none(first).itertuples(index=False, name=None))


def checkpoint_of(row: dict[str, Any]) -> Checkpoint:
    """The checkpoint of one row."""
    return Checkpoint(row["ckpt"], row["branch"], row["step"], row["step_total"], row["tokens"])


def mixed_twice(scores: pd.DataFrame) -> set[int]:
    """The layers that hold heads of two kinds at one checkpoint, such as attention beside a recurrent mixer."""
    kinds = scores.drop_duplicates(["ckpt", "layer", "kind"])
    return set(kinds.loc[kinds.duplicated(["ckpt", "layer"]), "layer"].tolist())


def short_count(count: float | int) -> str:
    """A count in three digits: 950, 8.19K, 25.2M, 1.5T."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return f"{count:g}"


def _layers(scores: pd.DataFrame) -> tuple[tuple[LayerKind, ...], Int[np.ndarray, " rows"]]:
    """The layers as they are last, one that mixes twice once for each kind; and which of them each row is of."""
    twice = mixed_twice(scores)
    kind = scores.loc[:, "kind"].where(scores.loc[:, "layer"].isin(twice), "") if twice else ""
    grouped = scores.assign(kind=kind).groupby(["layer", "kind"], sort=True, observed=True)
    slot_of_row = grouped.ngroup().to_numpy(np.int64)
    last = scores.assign(slot=slot_of_row).drop_duplicates("slot", keep="last").sort_values("slot")
    rows = _with_none(last.loc[:, ["layer", "kind", "window"]]).itertuples(index=False, name=None)
    return tuple(LayerKind(*row) for row in rows), slot_of_row


def _with_none(table: pd.DataFrame) -> pd.DataFrame:
    """The same values as Python objects, missing ones as None."""
    return table.astype(object).where(table.notna(), None)


def _numbers_of(head: Head | KVHead) -> dict[str, int | None]:
    is_query_head = isinstance(head, Head)
    return {
        "layer": head.layer,
        "head": head.head if is_query_head else None,
        "kv_head": None if is_query_head else head.kv_head,
    }
