"""A run as tables: scores and metrics with step and tokens, the series, what is done, failed and emerged."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from workbench.emergence import (
    HEAD,
    LINEAGE,
    ModelSummary,
    abilities,
    handovers,
    icl_score,
    lock_in,
    lock_in_sentence,
    onsets,
    parents_of,
    phase_changes,
    summarise_model,
    trace,
    with_past,
)
from workbench.emergence.head_trajectories import (
    LAYER_COLUMNS,
    TRAJECTORY_COLUMNS,
    Trajectories,
    layer_rows,
    trajectories_of,
)
from workbench.heads import NO_LEARNED_SINK, NO_ROWS, Head, KVHead, WorkbenchError
from workbench.runs.cache import SharedCache
from workbench.runs.newest_parts import newest_maps
from workbench.runs.row_selection import Rows, Select, Step
from workbench.runs.score_arrays import Arrangements, ScoreArrays, onsets_of, read_arrays
from workbench.runs.status import Status, status_of
from workbench.store import (
    Cube,
    HeadMap,
    JobDescription,
    Maps,
    RunDescription,
    Settings,
    Store,
    Table,
    Timings,
    plain_text,
)

T = TypeVar("T")


def open_run(
    path: str | os.PathLike[str], *, select: Select = "newest", settings: Mapping[str, Any] = MappingProxyType({})
) -> Run:
    """Open a run's folder for reading; what is still being written to it comes in with `refresh`.

    `select`, `settings`: as for `Run`.

    Raises:
        WorkbenchError: if it holds no run, or for a setting that does not exist.
        StoreTooNew: if a newer workbench wrote it.
    """
    return Run(Store.open(path), select=select, settings=settings)


class Run:
    """The tables of one run. Rows come in series order, then by detector, probe, layer and head.

    Methods may be called from several threads.

    Args:
        name: default the name of the folder.
        select: "newest": of each detector on each probe, what the newest request asks for that has scores (settings,
            version, form of the probe), of the weights that checkpoints have now; `left_out` says what else there is.
            "all": `scores` and `metrics` have every row, with a column `is_newest`; the rest is of the newest.
        settings: of these settings the newest instead: `{"dtype": "bfloat16", "rows": 8}`; of dtype, rows (None: all),
            seed, far_window (None: the model's own), far_sink.
        cache_bytes: keep tables and arrays up to this size until their parts change. The cached ones are shared: a
            reader must not change them. 0 keeps none, and every call returns tables of its own.
        single_precision: hold trajectories and what is computed from them as float32.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str | None = None,
        select: Select = "newest",
        settings: Mapping[str, Any] = MappingProxyType({}),
        cache_bytes: int = 0,
        single_precision: bool = False,
    ) -> None:
        self._store = store
        self._name = name
        self._rows = Rows(store, select, settings)
        self._maps = Maps(store.path, lambda files: newest_maps(files, self._rows.newest.accounts()))
        self._lock = threading.RLock()
        self._cache = SharedCache(cache_bytes, _bytes_of) if cache_bytes else None
        self._dtype = np.float32 if single_precision else np.float64
        self._arrangements: Arrangements = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._store.path

    @property
    def name(self) -> str:
        """The name it was opened under, by default that of its folder."""
        return self._name or self.path.resolve().name

    def with_cache(self, cache_bytes: int) -> Run:
        """The same run, opened anew with a cache of this size."""
        rows = self._rows
        return Run(self._store, name=self._name, select=rows.select, settings=rows.settings, cache_bytes=cache_bytes)

    def description(self) -> RunDescription:
        """What run.json says of the scan: schema, job (its source, detectors, probes, seed, ...), versions, created.

        It reads as a mapping, too: `run.description()["job"]["seed"]`.
        """
        return self._store.description()

    def last_job(self) -> JobDescription:
        """The job of the last scan, which may have other detectors, probes and settings than the first."""
        return self._store.last_job()

    @property
    def select(self) -> Select:
        """Which rows `scores` and `metrics` have."""
        return self._rows.select

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the reader chose; empty for those of the newest request."""
        return dict(self._rows.settings)

    def settings_of(self, detector: str, probe: str) -> Settings:
        """The settings of a detector's scores on a probe.

        Raises:
            WorkbenchError: if there are no such scores; it lists what there is.
        """
        with self._lock:
            parts = self._rows.parts("scores", detector=detector, probe=probe)
            if not parts:
                raise WorkbenchError(f"{detector} has scores on {', '.join(self.probes_of(detector))}, not on {probe}")
            return parts[0].label.settings

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader should know: of the series and its probes' words, `left_out`, and detectors without a score."""
        with self._lock:
            return (*map(str, self._store.plan().get("remarks", ())), *self.left_out, *self._unscored_remarks())

    def _unscored_remarks(self) -> list[str]:
        if not self.detectors:
            return []
        named = tuple(self.last_job().detectors or ())
        table = self._cached("scores", ("unscored", named), lambda: pd.DataFrame({"remark": self._unscored(named)}))
        return table["remark"].tolist()

    def _unscored(self, named: Sequence[str]) -> list[str]:
        """Which detectors have no score for any head at the last checkpoint, and why, as their flags say.

        Learned sinks are remarked on where the job names their detector (`named`): most models have none.
        """
        rows: Any = self.scores(step="last", columns=("detector", "probe", "n", "flags"))
        probes_of: dict[tuple[str, str], list[str]] = {}
        for detector, probe in sorted(set(zip(rows["detector"], rows["probe"], strict=True))):
            group = rows.loc[(rows["detector"] == detector) & (rows["probe"] == probe)]
            flags = [str(flag).partition("=") for flag in str(group["flags"].iloc[0]).split(";")]
            values = {name: value for name, _, value in flags}
            counted = f"{values['counted']} replies counted" if "counted" in values else ""
            reason = values.get(NO_ROWS, counted)
            is_no_lack = reason == NO_LEARNED_SINK and detector not in named
            if reason and not is_no_lack and int(group["n"].sum()) == 0:
                probes_of.setdefault((str(detector), reason), []).append(str(probe))
        return [
            f"{detector} has no score on {', '.join(probes)} (all NaN): {reason}"
            for (detector, reason), probes in probes_of.items()
        ]

    @property
    def left_out(self) -> tuple[str, ...]:
        """What scores there are beside those shown: of other settings, of earlier weights, of older forms."""
        with self._lock:
            return self._rows.shown().remarks

    @property
    def detectors(self) -> tuple[str, ...]:
        """The detectors that have scores, by name."""
        with self._lock:
            return self._rows.names("detector", self._rows.newest_parts("scores"))

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes that have scores or metrics, by name."""
        with self._lock:
            return self._rows.names("probe", self._rows.newest_parts())

    def probes_of(self, detector: str) -> tuple[str, ...]:
        """The probes that one detector has scores on, by name."""
        with self._lock:
            return self._rows.names("probe", self._rows.newest_parts("scores", detector=detector))

    def fingerprint(self, table: Table, *, detector: str | None = None, probe: str | None = None) -> str:
        """A digest that changes when, since the last `refresh`, such parts were added or replaced, or others shown."""
        with self._lock:
            rows = self._rows
            parts_of = rows.reader.parts if rows.select == "all" else rows.newest_parts
            return rows.reader.fingerprint(parts_of(table, detector=detector, probe=probe))

    def refresh(self) -> bool:
        """Look at the disk again; whether there was anything new."""
        with self._lock:
            return self._rows.refresh()

    def scores(  # noqa: PLR0913  # public keywords, a filter each
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
        if isinstance(head, Head):
            layer, head = head
        where = {"layer": layer, "head": head, "kind": kind, "ckpt": ckpt, "stage": stage, "branch": branch}
        names = None if columns is None else tuple(columns)

        def read() -> pd.DataFrame:
            return self._table("scores", names, detector=detector, probe=probe, step=step, where=where)

        key = ("rows", step, *where.items(), names)
        return self._cached("scores", key, read, detector=detector, probe=probe)

    def layer_scores(self, layer: int, *, head: Head | KVHead | None = None) -> pd.DataFrame:
        """The scores of one layer, or of one head, over all of training, of all detectors on all probes.

        Without a cache these are rows of `scores`. With one they are made of the cached trajectories, and `kv_head` is
        missing in the rows of query heads.

        Raises:
            WorkbenchError: if there is no such layer.
        """
        if self._cache is None:
            rows = self.scores(layer=layer, columns=LAYER_COLUMNS)
            if head is None:
                return rows
            return rows.loc[rows["head" if isinstance(head, Head) else "kv_head"] == head[1]]

        def read() -> pd.DataFrame:
            each = [self.trajectories(name, probe) for name in self.detectors for probe in self.probes_of(name)]
            return pd.concat([layer_rows(trajectories, layer, head=head) for trajectories in each], ignore_index=True)

        return self._cached("scores", ("layer", layer, type(head), head), read)

    def trajectories(self, detector: str, probe: str | None = None) -> Trajectories:
        """The scores of every head at every checkpoint under one detector, as arrays.

        `probe` may be None where there is one. Where a head was scored twice at a checkpoint, the later row counts.

        Raises:
            WorkbenchError: if there are no such scores, or several probes have some.
        """
        return self._arrays(detector, probe).trajectories

    def cube(self, detector: str, *, probe: str | None = None) -> Cube:
        """The scores of one detector on one probe as an array in memory, for looks at many heads or checkpoints.

        `probe` may be None where there is one.

        Raises:
            WorkbenchError: if the detector or probe is not there, or there are several probes; it lists what is.
        """
        with self._lock:
            parts = self._rows.parts("scores", detector=detector, probe=probe)
            if len(names := self._rows.names("probe", parts)) > 1:
                raise WorkbenchError(f"{detector} has scores on {', '.join(names)}; pass probe= with one of them")
            return self._rows.reader.cube(self._rows.in_series_order(parts))

    def weight_digests(self, detector: str, *, trained: bool = False) -> set[str]:
        """The digests of the weights that a detector scored; with `trained`, without those of step 0.

        Runs that share trained weights have the same heads. Two that share their initial weights alone do not: which
        head takes which role is settled in training.
        """
        scored = self.scores(detector=detector, columns=("weights", "step", "step_total", "tokens")).drop_duplicates()
        if trained:
            steps = scored["step_total"].fillna(scored["step"])
            is_untrained = steps.eq(0).fillna(False) | scored["tokens"].eq(0).fillna(False)
            scored = scored.loc[~is_untrained.to_numpy(bool)]
        return set(scored.loc[:, "weights"])

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
        where = {"metric": metric, "distance": distance}

        def read() -> pd.DataFrame:
            return self._table("metrics", None, detector=None, probe=probe, step=step, where=where)

        return self._cached("metrics", ("rows", step, *where.items()), read, probe=probe)

    def metric_names(self) -> list[tuple[str, str]]:
        """The (metric, probe) pairs that were measured."""
        pairs = self.metrics().loc[:, ["metric", "probe"]].drop_duplicates()
        return sorted((str(metric), str(probe)) for metric, probe in pairs.itertuples(index=False))

    def checkpoints(self) -> pd.DataFrame:
        """The series in order: ckpt, stage, branch, step, step_total, tokens, committed parts, failed, is_gone.

        `is_gone`: it has parts, and no folder any more; it stands at its place in training all the same. Whatever else
        the series says about a checkpoint follows in columns of its own.
        """
        with self._lock:
            committed = Counter(part.label.ckpt for part in self._rows.newest_parts())
            records = [{"ckpt": record["name"], **record} for record in self._rows.series()]
        failed = {failure.ckpt for failure in self._store.failures()}
        table = pd.DataFrame(records).drop(columns="name", errors="ignore")
        for column, dtype in _CHECKPOINT_DTYPES.items():
            table[column] = pd.array([record.get(column) for record in records], dtype=dtype)
        table["parts"] = np.array([committed[record["ckpt"]] for record in records], dtype=np.int64)
        table["failed"] = np.array([record["ckpt"] in failed for record in records], dtype=bool)
        table["is_gone"] = np.array([record["is_gone"] for record in records], dtype=bool)
        first = [*_CHECKPOINT_DTYPES, "parts", "failed", "is_gone"]
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
        failures = self._store.failures()
        names = ("ckpt", "unit", "kind", "message", "traceback", "attempts")
        return pd.DataFrame({name: [getattr(failure, name) for failure in failures] for name in names})

    def failures_changed_ns(self) -> int:
        """When the failures last changed, in nanoseconds since 1970; 0 where there are none."""
        return self._store.failures_changed_ns()

    def last_written(self) -> float | None:
        """When the newest part or failure was put in place, in seconds since 1970; None before the first."""
        return self._store.last_written()

    def timings(self) -> Timings:
        """How long units took and how long the rest will, by the scan's own account."""
        return self._store.timings()

    def status(self) -> Status:
        """How far the scan has come; reads the disk anew."""
        with self._lock:
            self._rows.refresh()
            parts, maps = self._rows.in_plan(), [file.label for file in self._maps.files()]
            return status_of(self._store.plan(), parts, maps, self._store.failures())

    @property
    def tokenizer(self) -> str | None:
        """Where the tokenizer is that the last scan made its probes with; None without one."""
        tokenizer = self._store.plan().get("tokenizer")
        return None if tokenizer is None else str(tokenizer)

    def emergence(
        self, detector: str, *, probe: str | None = None, least: float = 0.2, past: bool = False
    ) -> pd.DataFrame:
        """The course of every head: what became of it, since when, with intervals; see `workbench.emergence.trace`.

        `least` is the lowest score that counts as "there". With `past`, the curve of a branch begins where training
        began and not where the branch did.

        Raises:
            WorkbenchError: if the detector or probe is not there; it lists what is.
        """

        def compute() -> pd.DataFrame:
            scores = self._scores_of(detector, probe)
            if past:
                scores = with_past(plain_text(scores), self._parents())
            return plain_text(trace(scores, least=least))

        return self._cached("scores", ("emergence", least, past), compute, detector=detector, probe=probe)

    def onsets(self, detector: str, *, probe: str | None = None, head: Head | None = None) -> pd.DataFrame:
        """The onset of every head, or of one, and nothing else, which is quick; see `workbench.emergence.onsets`.

        Raises:
            WorkbenchError: if the detector or probe is not there; it lists what is.
        """

        def compute() -> pd.DataFrame:
            parts = self._rows.parts("scores", detector=detector, probe=probe)
            if len(self._rows.names("probe", [part for part in parts if part.label.rows])) == 1:
                arrays = self._arrays(detector, probe)
                if arrays.heads is not None:
                    return onsets_of(arrays.trajectories, arrays.heads, head=head)
            table = plain_text(onsets(self._rows.frame("scores", parts, columns=_OF_ONSETS)))
            if head is None:
                return table
            return table.loc[(table["layer"] == head.layer) & (table["head"] == head.head)]

        return self._cached("scores", ("onsets", head), compute, detector=detector, probe=probe)

    def lock_in(
        self, detector: str, *, probe: str | None = None, against: Step | str = "last", k: int | None = None
    ) -> pd.DataFrame:
        """Each checkpoint's head scores against the last of its branch, its parent, or any; see `emergence.lock_in`.

        `against` is "last", "parent", or the name or step of a checkpoint; `probe` may be None where there is one.

        Raises:
            WorkbenchError: if there is nothing to compare; see there.
        """

        def compute() -> pd.DataFrame:
            other = against
            if isinstance(other, int):
                other = str(self.scores(detector=detector, probe=probe, step=other).loc[:, "ckpt"].iloc[-1])
            scores = self._scores_of(detector, probe)
            return plain_text(lock_in(scores, against=other, k=k, parents=self._parents()))

        return self._cached("scores", ("lock_in", against, k), compute, detector=detector, probe=probe)

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
        with self._lock:
            return plain_text(handovers(self._scores_of(detector, probe)))

    def phase_changes(
        self, *, probe: str | None = None, metric: str | None = None, early: int | None = None, late: int | None = None
    ) -> pd.DataFrame:
        """When each model-level number changed its course; see `workbench.emergence.phase_changes`.

        Where losses are known by position, the in-context-learning score is among the metrics, as `icl_score` between
        positions `early` and `late`.
        """

        def compute() -> pd.DataFrame:
            metrics = self.metrics(probe=probe)
            if bool(metrics.loc[:, "position"].notna().any()):
                icl = icl_score(metrics, early=early, late=late)
                metrics = pd.concat([metrics, icl.loc[:, [name for name in metrics.columns if name in icl.columns]]])
            return phase_changes(metrics if metric is None else metrics.loc[metrics["metric"] == metric])

        return self._cached("metrics", ("phase changes", metric, early, late), compute, probe=probe)

    def pooled_phase_changes(self, metric: str, probe: str) -> pd.DataFrame:
        """The phase changes of one number pooled over distances and positions; empty where it was not measured."""

        def compute() -> pd.DataFrame:
            metrics = self.metrics(probe=probe, metric=metric)
            return phase_changes(metrics.loc[metrics["distance"].isna() & metrics["position"].isna()])

        if (metric, probe) not in self.metric_names():
            return phase_changes(self.metrics().head(0))
        return self._cached("metrics", ("pooled phase changes", metric), compute, probe=probe)

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

    def model_summary(self, step: Step = "last") -> ModelSummary:
        """What the model gets right at a checkpoint, and its heads of each class; see `emergence.summarise_model`.

        Raises:
            WorkbenchError: if there is no such checkpoint.
        """
        with self._lock:
            scores = self.scores(step=step)
            if scores.empty:
                raise WorkbenchError(f"{self.path} has no scores yet; see `workbench status`")
            metrics = self.metrics()
            return summarise_model(scores, metrics.loc[metrics["ckpt"] == scores["ckpt"].iloc[-1]])

    def cannot(self) -> list[dict[str, Any]]:
        """The probes that the model cannot do at the last checkpoint: rows of `emergence.abilities`."""
        metrics = self.metrics(step="last")
        return [row for row in abilities(metrics).to_dict("records") if row["verdict"] == "cannot"]

    @property
    def n_scored(self) -> int:
        """How many checkpoints have scores."""
        with self._lock:
            return len({part.label.ckpt for part in self._rows.newest_parts("scores") if part.label.rows})

    @property
    def is_one_model(self) -> bool:
        """Whether the series is of one checkpoint, so that there is no training to show."""
        with self._lock:
            return len(self._rows.series()) == 1

    def layers(self) -> pd.DataFrame:
        """What each layer is at the last checkpoint that has scores: layer, kind, window, n_heads."""

        def read() -> pd.DataFrame:
            names = ["layer", "kind", "window"]
            parts = [part for part in self._rows.newest_parts("scores") if part.label.rows]
            ranks = self._rows.series_ranks()
            last = max((ranks[part.label.ckpt] for part in parts), default=-1)
            parts = [part for part in parts if ranks[part.label.ckpt] == last]
            frame = self._rows.reader.frame("scores", parts, columns=[*names, "head"])
            heads = plain_text(frame).loc[lambda f: f["head"].notna()].drop_duplicates()
            return heads.groupby(names, dropna=False).size().rename("n_heads").reset_index()

        return self._cached("scores", ("layers",), read)

    def _table(
        self,
        table: Table,
        columns: Sequence[str] | None,
        *,
        detector: str | None,
        probe: str | None,
        step: Step | None,
        where: Mapping[str, Any],
    ) -> pd.DataFrame:
        """The rows that a user asks for, text as strings."""
        is_every = self._rows.select == "all"
        parts = self._rows.parts(table, detector=detector, probe=probe, is_every=is_every)
        frame = self._rows.frame(table, parts, step=step, where=where, columns=columns)
        if is_every and columns is None:
            frame["is_newest"] = frame["unit"].isin([part.label.unit for part in self._rows.newest_parts(table)])
        return plain_text(frame)

    def _cached(
        self,
        table: Table,
        key: tuple[Hashable, ...],
        make: Callable[[], T],
        *,
        detector: str | None = None,
        probe: str | None = None,
    ) -> T:
        """What `make` reads of these parts of a table, from the cache while the parts are the same."""
        with self._lock:
            if self._cache is None:
                return make()
            parts = self.fingerprint(table, detector=detector, probe=probe)
            # The order of the same parts changes with the series.
            key = (self._store.series_changed_ns(), *key)
            return self._cache.once((table, parts, detector, probe, *key), make)

    def _arrays(self, detector: str, probe: str | None) -> ScoreArrays:
        def read() -> ScoreArrays:
            parts = self._rows.parts("scores", detector=detector, probe=probe)
            ordered = self._rows.in_series_order([part for part in parts if part.label.rows])
            arrays = read_arrays(self.path, ordered, self._dtype, self._arrangements)
            if arrays is not None:
                return arrays
            scores = plain_text(self._rows.frame("scores", parts, columns=TRAJECTORY_COLUMNS))
            return ScoreArrays(trajectories_of(scores, detector, run=self.name).as_type(self._dtype), None)

        return self._cached("scores", ("arrays",), read, detector=detector, probe=probe)

    def _scores_of(self, detector: str, probe: str | None) -> pd.DataFrame:
        """All scores of a detector, text as categories."""
        return self._rows.frame("scores", self._rows.parts("scores", detector=detector, probe=probe))

    def _parents(self) -> dict[str, str]:
        """Which checkpoint each continues, where the series names it."""
        series = self.checkpoints()
        if "parent" not in series.columns:
            return {}
        named = series.loc[series["parent"].notna(), ["ckpt", "parent"]]
        return dict(named.itertuples(index=False))

    def _top(self, detector: str, n: int, probe: str | None) -> pd.DataFrame:
        rows = self.scores(detector=detector, probe=probe, step="last")
        best = rows.loc[rows["score"].notna()].sort_values("score", ascending=False, kind="stable")
        best = best.drop_duplicates(list(HEAD)).head(n)
        onset = self.onsets(detector, probe=probe)
        onset = onset.loc[:, [*LINEAGE, "onset_step", "onset_tokens"]]
        return best.merge(onset, on=list(LINEAGE), how="left").loc[:, list(_TOP)]


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


def _bytes_of(value: Any) -> int:
    """The bytes of a table or of arrays."""
    return int(value.memory_usage().sum()) if isinstance(value, pd.DataFrame) else value.nbytes
