"""A run as tables: scores and metrics with step and tokens, the series, what is done, failed and emerged."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.emergence import (
    HEAD,
    LINEAGE,
    handovers,
    icl_score,
    lock_in,
    lock_in_sentence,
    onsets,
    parents_of,
    phase_changes,
    trace,
    with_past,
)
from workbench.heads import Head, WorkbenchError
from workbench.runs.status import Status, status_of
from workbench.store import VARYING, Cube, HeadMap, Maps, Part, Reader, Store, Table, Timings, plain_text

Step = int | Literal["last"]


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run's folder for reading; what is still being written to it comes in with `refresh`.

    Raises:
        WorkbenchError: if it holds no run.
        StoreTooNew: if a newer workbench wrote it.
    """
    return Run(Store.open(path))


class Run:
    """The tables of one run. Rows come in series order, then by detector, probe, layer and head."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lazy_reader: Reader | None = None
        self._maps = Maps(store.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._store.path

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.path.resolve().name

    def description(self) -> dict[str, Any]:
        """What the scan says of itself: schema, job (its source, detectors, probes, seed, ...), versions, created."""
        return self._store.description()

    @property
    def detectors(self) -> tuple[str, ...]:
        """The detectors that have scores, by name."""
        return self._names("detector", self._reader.parts("scores"))

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes that have scores or metrics, by name."""
        return self._names("probe", self._reader.parts())

    def probes_of(self, detector: str) -> tuple[str, ...]:
        """The probes that one detector has scores on, by name."""
        return self._names("probe", self._reader.parts("scores", detector=detector))

    def fingerprint(self, table: Table, *, detector: str | None = None, probe: str | None = None) -> str:
        """A digest that changes when, since the last `refresh`, such parts were added or replaced."""
        return self._reader.fingerprint(self._reader.parts(table, detector=detector, probe=probe))

    def refresh(self) -> bool:
        """Look at the disk again; whether there was anything new."""
        return bool(self._reader.refresh())

    def scores(
        self,
        *,
        detector: str | None = None,
        probe: str | None = None,
        layer: int | None = None,
        head: int | Head | None = None,
        step: Step | None = None,
        ckpt: str | None = None,
        kind: str | None = None,
        stage: str | None = None,
        branch: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The scores, one row per head, checkpoint, detector and probe; the columns are those of the store.

        `step` counts within its stage; `"last"` is the last checkpoint in series order that has such scores.
        A filter that is None lets all through. `columns` picks columns, which is faster on large runs.

        Raises:
            WorkbenchError: if a name or step is not there; it lists what is.
        """
        parts = self._parts("scores", detector=detector, probe=probe)
        if isinstance(head, Head):
            layer, head = head
        wanted = {
            "layer": layer,
            "head": head,
            "kind": kind,
            "ckpt": ckpt,
            "stage": stage,
            "branch": branch,
        }
        return plain_text(self._frame("scores", parts, step=step, wanted=wanted, columns=columns))

    def cube(self, detector: str, *, probe: str | None = None) -> Cube:
        """The scores of one detector on one probe as an array in memory, for looks at many heads or checkpoints.

        `probe` may be None where there is one.

        Raises:
            WorkbenchError: if the detector or probe is not there, or there are several probes; it lists what is.
        """
        parts = self._parts("scores", detector=detector, probe=probe)
        if len(names := self._names("probe", parts)) > 1:
            raise WorkbenchError(f"{detector} has scores on {', '.join(names)}; pass probe= with one of them")
        ranks = self._series_rank()
        return self._reader.cube(sorted(parts, key=lambda part: ranks[part.label.ckpt]))

    def metrics(
        self,
        *,
        probe: str | None = None,
        metric: str | None = None,
        step: Step | None = None,
        distance: int | None = None,
    ) -> pd.DataFrame:
        """The model-level numbers, one row each; filters as in `scores`.

        Raises:
            WorkbenchError: if a name, step or distance is not there; it lists what is.
        """
        parts = self._parts("metrics", detector=None, probe=probe)
        wanted = {"metric": metric, "distance": distance}
        return plain_text(self._frame("metrics", parts, step=step, wanted=wanted))

    def checkpoints(self) -> pd.DataFrame:
        """The series in order: ckpt, stage, branch, step, step_total, tokens, committed parts, failed.

        Whatever else the series says about a checkpoint follows in columns of its own.
        """
        committed = Counter(part.label.ckpt for part in self._reader.parts())
        records = [{"ckpt": record["name"], **record} for record in self._store.checkpoints()]
        records += self._origins(without={record["ckpt"] for record in records})
        failed = {failure.ckpt for failure in self._store.failures()}
        table = pd.DataFrame(records).drop(columns="name", errors="ignore")
        for column, dtype in _CHECKPOINT_DTYPES.items():
            table[column] = pd.array([record.get(column) for record in records], dtype=dtype)
        table["parts"] = np.array([committed[record["ckpt"]] for record in records], dtype=np.int64)
        table["failed"] = np.array([record["ckpt"] in failed for record in records], dtype=bool)
        first = [*_CHECKPOINT_DTYPES, "parts", "failed"]
        return table.loc[:, [*first, *(column for column in table.columns if column not in first)]]

    @property
    def maps(self) -> Maps:
        """The patterns that the scan kept: what there is, atlases, tiles, exact crops, links; see docs/patterns.md."""
        return self._maps

    def map(self, layer: int, head: int, *, step: Step = "last", probe: str | None = None) -> HeadMap:
        """A head's pattern on one sequence of a probe: block maxima, at most 64 × 64, and where the blocks begin.

        Linear layers give their implied pattern, signed and not normalised. `probe` may be None where maps of one
        probe are there.

        Raises:
            WorkbenchError: if there are no such maps, or no such head; it says what there is.
        """
        return self._maps.find(step=step, probe=probe).map(layer, head)

    def failures(self) -> pd.DataFrame:
        """What failed: ckpt, unit (missing for a whole checkpoint), kind, message, traceback, attempts."""
        found = self._store.failures()
        names = ("ckpt", "unit", "kind", "message", "traceback", "attempts")
        return pd.DataFrame({name: [getattr(failure, name) for failure in found] for name in names})

    def timings(self) -> Timings:
        """How long units took and how long the rest will, by the scan's own account."""
        return self._store.timings()

    def emergence(
        self, detector: str, *, probe: str | None = None, least: float = 0.2, past: bool = False
    ) -> pd.DataFrame:
        """The course of every head: what became of it, since when, with intervals; see `workbench.emergence.trace`.

        `least` is the lowest score that counts as "there". With `past`, the curve of a branch begins where training
        began and not where the branch did.

        Raises:
            WorkbenchError: if the detector or probe is not there; it lists what is.
        """
        scores = self._scores_of(detector, probe)
        if past:
            scores = with_past(plain_text(scores), self._parents())
        return plain_text(trace(scores, least=least))

    def onsets(self, detector: str, *, probe: str | None = None) -> pd.DataFrame:
        """The half-rise onset of every head and nothing else, which is quick; see `workbench.emergence.onsets`.

        Raises:
            WorkbenchError: if the detector or probe is not there; it lists what is.
        """
        parts = self._parts("scores", detector=detector, probe=probe)
        return plain_text(onsets(self._frame("scores", parts, columns=_OF_ONSETS)))

    def lock_in(
        self, detector: str, *, probe: str | None = None, against: Step | str = "last", k: int | None = None
    ) -> pd.DataFrame:
        """Each checkpoint's head scores against the last of its branch, its parent, or any; see `emergence.lock_in`.

        `against` is "last", "parent", or the name or step of a checkpoint; `probe` may be None where there is one.

        Raises:
            WorkbenchError: if there is nothing to compare; see there.
        """
        if isinstance(against, int):
            against = str(self.scores(detector=detector, probe=probe, step=against).loc[:, "ckpt"].iloc[-1])
        scores = self._scores_of(detector, probe)
        return plain_text(lock_in(scores, against=against, k=k, parents=self._parents()))

    def lock_in_sentence(self, detector: str, *, probe: str | None = None) -> str:
        """What lock-in supports of "formed early, hard to move", in one sentence.

        Raises:
            WorkbenchError: as `lock_in`.
        """
        over_training = self.lock_in(detector, probe=probe)
        continues = parents_of(over_training, self._parents()).values()
        has_parent = bool(set(over_training.loc[:, "ckpt"]) & set(continues))
        since = self.lock_in(detector, probe=probe, against="parent") if has_parent else None
        return lock_in_sentence(over_training, since)

    def handovers(self, detector: str, *, probe: str | None = None) -> pd.DataFrame:
        """For each head that fell, the one whose rise explains most of it; see `workbench.emergence.handovers`."""
        return plain_text(handovers(self._scores_of(detector, probe)))

    def phase_changes(
        self, *, probe: str | None = None, metric: str | None = None, early: int | None = None, late: int | None = None
    ) -> pd.DataFrame:
        """When each model-level number changed its course; see `workbench.emergence.phase_changes`.

        Where losses are known by position, the in-context-learning score is among the metrics, as `icl_score` between
        positions `early` and `late`.
        """
        metrics = self.metrics(probe=probe)
        if bool(metrics.loc[:, "position"].notna().any()):
            icl = icl_score(metrics, early=early, late=late)
            metrics = pd.concat([metrics, icl.loc[:, [name for name in metrics.columns if name in icl.columns]]])
        return phase_changes(metrics if metric is None else metrics.loc[metrics["metric"] == metric])

    def top(self, detector: str | None = None, n: int = 10, *, probe: str | None = None) -> pd.DataFrame:
        """The `n` highest scores at the last checkpoint, one row per head, for one detector or each.

        A head that several probes scored is listed with its highest score; heads without a score are not.

        Returns:
            detector, layer, head, kv_head, kind, window, probe, score, ci_lo, ci_hi, n, n_seq, onset_step,
            onset_tokens; best first within each detector.
        """
        tables = [self._top(name, n, probe) for name in (self.detectors if detector is None else [detector])]
        if not tables:
            return self.scores().assign(onset_step=[], onset_tokens=[]).loc[:, list(_TOP)]
        return pd.concat(tables, ignore_index=True)

    def status(self) -> Status:
        """How far the scan has come; reads the disk anew."""
        self._reader.refresh()
        maps = [file.label for file in self._maps.files()]
        return status_of(self._store.plan(), self._reader.parts(), maps, self._store.failures())

    def layers(self) -> pd.DataFrame:
        """What each layer is at the last checkpoint that has scores: layer, kind, window, n_heads."""
        names = ["layer", "kind", "window"]
        parts = self._reader.parts("scores")
        ranks = self._series_rank()
        last = max((ranks[part.label.ckpt] for part in parts if part.label.rows), default=-1)
        parts = [part for part in parts if ranks[part.label.ckpt] == last]
        frame = self._reader.frame("scores", parts, columns=[*names, "head"])
        heads = plain_text(frame).loc[lambda f: f["head"].notna()].drop_duplicates()
        return heads.groupby(names, dropna=False).size().rename("n_heads").reset_index()

    def _scores_of(self, detector: str, probe: str | None) -> pd.DataFrame:
        """All scores of a detector, text as categories."""
        return self._frame("scores", self._parts("scores", detector=detector, probe=probe))

    def _parents(self) -> dict[str, str]:
        """Which checkpoint each continues, where the series names it."""
        series = self.checkpoints()
        if "parent" not in series.columns:
            return {}
        named = series.loc[series["parent"].notna(), ["ckpt", "parent"]]
        return dict(named.itertuples(index=False))

    @property
    def _reader(self) -> Reader:
        if self._lazy_reader is None:
            self._lazy_reader = Reader(self.path)
        return self._lazy_reader

    def _names(self, what: str, parts: Sequence[Part]) -> tuple[str, ...]:
        return tuple(sorted({getattr(part.label, what) for part in parts} - {""}))

    def _parts(self, table: Table, *, detector: str | None, probe: str | None) -> tuple[Part, ...]:
        every = self._reader.parts(table)
        for what, name in (("detector", detector), ("probe", probe)):
            if name is not None and name not in self._names(what, every):
                raise WorkbenchError(_missing(what, name, self._names(what, every), self.path))
        return self._reader.parts(table, detector=detector, probe=probe)

    def _frame(
        self,
        table: Table,
        parts: Sequence[Part],
        *,
        step: Step | None = None,
        wanted: Mapping[str, Any] = MappingProxyType({}),
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The rows of these parts in series order, filtered; text as categories."""
        ranks = self._series_rank()
        parts = sorted(parts, key=lambda part: (ranks[part.label.ckpt], part.label.detector, part.label.probe))
        if step == "last":
            scored = [part.label.ckpt for part in parts if part.label.rows]
            parts = [part for part in parts if part.label.ckpt == (scored or [""])[-1]]
        else:
            wanted = {"step": step, **wanted}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        for name in ("step", "ckpt", "stage", "branch"):
            if name in wanted:
                parts = self._of_checkpoint(parts, name, wanted[name])
        where = {name: wanted[name] for name in wanted if name in VARYING[table]}
        frame = self._reader.frame(table, parts, columns=columns, where=where)
        if frame.empty and where:
            self._say_missing(self._reader.frame(table, parts, columns=list(where)), where)
        return frame.reset_index(drop=True)

    def _of_checkpoint(self, parts: Sequence[Part], name: str, value: Any) -> list[Part]:
        """The parts whose checkpoint has such a step, name, stage or branch."""
        kept = [part for part in parts if getattr(part.label.origin, name) == value]
        if not kept and any(part.label.rows for part in parts):
            there = {getattr(part.label.origin, name) for part in parts if part.label.rows} - {None}
            raise WorkbenchError(_missing(name, value, there, self.path))
        return kept

    def _say_missing(self, frame: pd.DataFrame, where: Mapping[str, Any]) -> None:
        """Raise for the first value that no row has beside those before it; `frame` has all rows."""
        for name, value in where.items():
            kept = frame.loc[(frame[name] == value).fillna(False).astype(bool)]
            if kept.empty and not frame.empty:
                raise WorkbenchError(_missing(name, value, frame[name].dropna().unique(), self.path))
            frame = kept

    def _top(self, detector: str, n: int, probe: str | None) -> pd.DataFrame:
        rows = self.scores(detector=detector, probe=probe, step="last")
        best = rows.loc[rows["score"].notna()].sort_values("score", ascending=False, kind="stable")
        best = best.drop_duplicates(list(HEAD)).head(n)
        onset = self.onsets(detector, probe=probe)
        onset = onset.loc[:, [*LINEAGE, "onset_step", "onset_tokens"]]
        return best.merge(onset, on=list(LINEAGE), how="left").loc[:, list(_TOP)]

    def _series_rank(self) -> dict[str, int]:
        """Each checkpoint's place in the series; those the series does not know follow by step."""
        names = [record["name"] for record in self._store.checkpoints()]
        names += [part.label.ckpt for part in self._reader.parts()]
        return {name: rank for rank, name in enumerate(dict.fromkeys(names))}

    def _origins(self, *, without: set[str]) -> list[dict[str, Any]]:
        """What the parts say about the checkpoints they come from."""
        origins = {part.label.ckpt: asdict(part.label.origin) for part in self._reader.parts()}
        return [origin for ckpt, origin in origins.items() if ckpt not in without]


_CHECKPOINT_DTYPES = {
    "ckpt": "str",
    "stage": "str",
    "branch": "str",
    "step": "Int64",
    "step_total": "Int64",
    "tokens": "Int64",
}
_OF_ONSETS = (*LINEAGE, "window", "ckpt", "stage", "step", "step_total", "tokens", "score")
_TOP = (
    *("detector", "layer", "head", "kv_head", "kind", "window", "probe"),
    *("score", "ci_lo", "ci_hi", "n", "n_seq", "onset_step", "onset_tokens"),
)


def _missing(what: str, given: object, there: Any, path: Path) -> str:
    known = ", ".join(str(value) for value in sorted(there)) or "none yet"
    return f"{what} {given!r} is not in {path}; there is: {known}"
