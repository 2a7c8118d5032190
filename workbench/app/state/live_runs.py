"""The runs the app shows, each still growing on disk: what is read once is kept until its parts change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.app.state.newest import NewestRun, layer_of, onsets_of
from workbench.emergence import phase_changes
from workbench.figures.trajectories import Trajectories
from workbench.heads import WorkbenchError
from workbench.runs.run import Maps, Table
from workbench.runs.status import Status
from workbench.store import Store, Timings

# What is kept of tables and arrays: those of 12 detectors of 48 layers of 64 heads over 150 checkpoints.
_KEPT_BYTES = 160 * 2**20
_PHASE = ["metric", "probe", "unit", "is_change", "n10", "n50", "n90"]


class LiveRun:
    """A run whose tables are cached; the figures take it in place of a `Run`, under the name the app shows."""

    def __init__(self, run: NewestRun, name: str) -> None:
        self.name = name
        self._run = run
        self._lock = threading.RLock()
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._sizes: dict[tuple[str, str], int] = {}

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._run.path

    @property
    def detectors(self) -> tuple[str, ...]:
        """The detectors that have scores."""
        with self._lock:
            return self._run.detectors

    def probes_of(self, detector: str) -> tuple[str, ...]:
        """The probes that a detector has scores on."""
        with self._lock:
            return self._run.probes_of(detector)

    def scores(self, **filters: Any) -> pd.DataFrame:
        """As `Run.scores`; a layer over all of training is made of kept arrays, in single precision."""
        if filters.keys() == {"layer", "columns"}:
            return self._once("scores", {}, sorted(filters.items()), lambda: self._layer(filters["layer"]))
        of = {"detector": filters.get("detector"), "probe": filters.get("probe")}
        return self._once("scores", of, sorted(filters.items()), lambda: self._run.scores(**filters))

    def metrics(self, **filters: Any) -> pd.DataFrame:
        """As `Run.metrics`."""
        of = {"probe": filters.get("probe")}
        return self._once("metrics", of, sorted(filters.items()), lambda: self._run.metrics(**filters))

    def emergence(self, detector: str, *, probe: str | None = None) -> pd.DataFrame:
        """As `Run.emergence`."""
        of = {"detector": detector, "probe": probe}
        return self._once("scores", of, "emergence", lambda: self._run.emergence(detector, probe=probe))

    def trajectories(self, detector: str, probe: str | None) -> Trajectories:
        """As `NewestRun.trajectories`."""
        of = {"detector": detector, "probe": probe}
        return self._once("scores", of, "trajectories", lambda: self._run.trajectories(detector, probe))

    def onsets(self, detector: str, *, probe: str | None = None) -> pd.DataFrame:
        """As `Run.onsets`; of a run of one branch only the columns that figures ask for."""

        def found() -> pd.DataFrame:
            courses = self.trajectories(detector, probe)
            is_one_branch = len({at.branch for at in courses.checkpoints}) == 1
            return onsets_of(courses) if is_one_branch else self._run.onsets(detector, probe=probe)

        return self._once("scores", {"detector": detector, "probe": probe}, "onsets", found)

    def layers(self) -> pd.DataFrame:
        """As `Run.layers`."""
        return self._once("scores", {}, "layers", self._run.layers)

    def metric_names(self) -> list[tuple[str, str]]:
        """The (metric, probe) pairs that were measured."""
        pairs = self.metrics().loc[:, ["metric", "probe"]].drop_duplicates()
        return sorted((str(metric), str(probe)) for metric, probe in pairs.itertuples(index=False))

    def description(self) -> dict[str, Any]:
        """As `Run.description`."""
        return self._run.description()

    def last_written(self) -> float | None:
        """When the newest part or failure was put in place, in seconds since 1970; None before the first."""
        folders = [*self.path.glob("scores/*"), *self.path.glob("metrics/*"), *self.path.glob("failures")]
        return max((folder.stat().st_mtime for folder in folders), default=None)

    def failures(self) -> pd.DataFrame:
        """As `Run.failures`, read anew."""
        with self._lock:
            return self._run.failures()

    def timings(self) -> Timings:
        """As `Run.timings`, read anew."""
        return self._run.timings()

    def failed_at(self) -> int:
        """When the run's failures last changed, in nanoseconds; 0 where there are none."""
        folder = self.path / "failures"
        return folder.stat().st_mtime_ns if folder.is_dir() else 0

    def checkpoints(self) -> pd.DataFrame:
        """As `Run.checkpoints`."""
        return self._once("scores", {}, "checkpoints", self._run.checkpoints)

    def phase_changes(self, metric: str, probe: str) -> pd.DataFrame:
        """The phase changes of one pooled number, a row per branch; empty where it was not measured."""

        def read() -> pd.DataFrame:
            table = self._run.metrics(probe=probe, metric=metric)
            return phase_changes(table.loc[table["distance"].isna() & table["position"].isna()])

        if (metric, probe) not in self.metric_names():
            return pd.DataFrame(columns=_PHASE)
        return self._once("metrics", {"probe": probe}, f"phases {metric}", read)

    def weights(self, detector: str) -> set[str]:
        """The digests of the weights that a detector scored: a shared one is what makes heads of two runs the same."""
        return set(self.scores(detector=detector, columns=("weights",)).loc[:, "weights"])

    def lock_in(self, detector: str, *, probe: str | None = None, against: int | str = "last") -> pd.DataFrame:
        """As `Run.lock_in`."""
        of = {"detector": detector, "probe": probe}
        what = f"lock-in {against}"
        return self._once("scores", of, what, lambda: self._run.lock_in(detector, probe=probe, against=against))

    @property
    def maps(self) -> Maps:
        """As `Run.maps`, which looks at the disk whenever it is asked."""
        return self._run.maps

    def status(self) -> Status:
        """Read the disk anew and count what is done."""
        with self._lock:
            return self._run.status()

    def fingerprint(self, table: Table, *, detector: str | None = None, probe: str | None = None) -> str:
        """As `Run.fingerprint`."""
        with self._lock:
            return self._run.fingerprint(table, detector=detector, probe=probe)

    def _layer(self, layer: int) -> pd.DataFrame:
        """One layer under all detectors, on all probes."""
        each = [self.trajectories(name, probe) for name in self.detectors for probe in self.probes_of(name)]
        return pd.concat([layer_of(found, layer) for found in each], ignore_index=True)

    def _once(self, table: Table, of: dict[str, Any], what: object, read: Callable[[], Any]) -> Any:
        """Read a table, or take what was read while the parts it comes from were the same."""
        with self._lock:
            key = (self._run.fingerprint(table, **of), str(what))
            if key not in self._kept:
                found = read()
                self._kept[key] = found
                self._sizes[key] = _size(found)
                while sum(self._sizes.values()) > _KEPT_BYTES and len(self._kept) > 1:
                    self._sizes.pop(self._kept.popitem(last=False)[0])
                return found
            self._kept.move_to_end(key)
            return self._kept[key]


def _size(found: Any) -> int:
    """The bytes of a table or of arrays."""
    if isinstance(found, Trajectories):
        return sum(array.nbytes for array in (found.score, found.ci_lo, found.ci_hi, found.n))
    return int(found.memory_usage().sum()) if isinstance(found, pd.DataFrame) else 1000


def live_runs(paths: Sequence[str | Path]) -> dict[str, LiveRun]:
    """Open runs, and the runs inside folders that are none themselves, each under a name of its own.

    Their parts are read when first asked for.

    Raises:
        WorkbenchError: if a path holds no run.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in _run_folders(Path(path))))
    if not folders:
        raise WorkbenchError("there is no run to show; pass the folder of one: `workbench app RUN...`")
    names = [folder.name for folder in folders]
    unique = [
        name if names.count(name) == 1 else f"{folder.parent.name}/{name}"
        for name, folder in zip(names, folders, strict=True)
    ]
    unique = [name if unique.count(name) == 1 else str(folder) for name, folder in zip(unique, folders, strict=True)]
    return {name: LiveRun(NewestRun(Store.open(folder)), name) for name, folder in zip(unique, folders, strict=True)}


def _run_folders(path: Path) -> list[Path]:
    path = path.resolve()
    inside = sorted(child.parent for child in path.glob("*/run.json"))
    return inside if inside and not (path / "run.json").exists() else [path]
