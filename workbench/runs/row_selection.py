"""The rows of a run's parts: which parts, in series order, filtered; a refusal lists what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd

from workbench.heads import WorkbenchError
from workbench.runs.newest_parts import NewestParts, Shown, current_parts
from workbench.store import VARYING, Part, Reader, Store, Table, parse_settings
from workbench.store.series_order import in_training_order

Step = int | Literal["last"]
Select = Literal["all", "newest"]


class Rows:
    """The parts of a run and their rows: the newest that have the settings chosen, or with `select` "all" every one.

    Raises:
        WorkbenchError: for settings that there are none of.
    """

    def __init__(self, store: Store, select: Select, settings: Mapping[str, Any]) -> None:
        self._store = store
        self.select: Select = select
        self.settings = parse_settings(settings)
        if select == "all" and settings:
            raise WorkbenchError('select="all" has the rows of all settings; leave out settings=, or select="newest"')
        self.newest = NewestParts(store.path, self.settings)
        # The newest parts by table, detector and probe, and the order of checkpoints, as long as the same are shown.
        self._newest: tuple[Shown, dict[tuple[str | None, ...], tuple[Part, ...]]] | None = None
        self._ranks: tuple[Shown, int, dict[str, int]] | None = None

    @cached_property
    def reader(self) -> Reader:
        """What reads the parts; opened when the first rows are read."""
        return Reader(self._store.path)

    def names(self, field: Literal["detector", "probe"], parts: Sequence[Part]) -> tuple[str, ...]:
        """The detectors or probes of these parts, by name."""
        return tuple(sorted({getattr(part.label, field) for part in parts} - {""}))

    def shown(self) -> Shown:
        """The newest parts, and what is said about the others."""
        return self.newest.shown(self.reader)

    def refresh(self) -> bool:
        """Look at the disk again; whether there is anything new, or another choice.

        Raises:
            WorkbenchError: if the run's folder is gone; what was read of it stays.
        """
        self._store.require_there()
        before = self.shown()
        changed = self.reader.refresh()
        self.newest.refresh()
        return bool(changed) or self.shown() != before

    def newest_parts(
        self, table: Table | None = None, *, detector: str | None = None, probe: str | None = None
    ) -> tuple[Part, ...]:
        """The newest parts; a filter that is None lets all through."""
        shown = self.shown()
        if self._newest is None or self._newest[0] is not shown:
            self._newest = shown, {}
        of_filter, key = self._newest[1], (table, detector, probe)
        if key not in of_filter:
            parts = self.reader.parts(table, detector=detector, probe=probe)
            of_filter[key] = tuple(part for part in parts if part.path in shown.paths)
        return of_filter[key]

    def parts(
        self, table: Table, *, detector: str | None, probe: str | None, is_every: bool = False
    ) -> tuple[Part, ...]:
        """The newest parts of a table, of one detector and probe or of all; with `is_every` not only the newest.

        Raises:
            WorkbenchError: if the detector or probe is not there; it lists what is.
        """
        parts_of = self.reader.parts if is_every else self.newest_parts
        if detector is not None:
            self._require("detector", detector, parts_of(table))
        if probe is not None:
            self._require("probe", probe, parts_of(table))
        return parts_of(table, detector=detector, probe=probe)

    def frame(
        self,
        table: Table,
        parts: Sequence[Part],
        *,
        step: Step | None = None,
        where: Mapping[str, Any] = MappingProxyType({}),
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The rows of these parts in series order, filtered; text as categories.

        Raises:
            WorkbenchError: if no row has a value that `where` names; it lists what there is.
        """
        parts = self.in_series_order(parts)
        if step == "last":
            scored = [part.label.ckpt for part in parts if part.label.rows]
            parts = [part for part in parts if part.label.ckpt == (scored or [""])[-1]]
        else:
            where = {"step": step, **where}
        where = {name: value for name, value in where.items() if value is not None}
        for name in ("step", "ckpt", "stage", "branch"):
            if name in where:
                parts = self._of_checkpoint(parts, name, where[name])
        where_rows = {name: where[name] for name in where if name in VARYING[table]}
        frame = self.reader.frame(table, parts, columns=columns, where=where_rows)
        if frame.empty and parts:
            self._store.require_there()
        if frame.empty and where_rows:
            self._refuse(self.reader.frame(table, parts, columns=list(where_rows)), where_rows)
        return frame.reset_index(drop=True)

    def in_series_order(self, parts: Sequence[Part]) -> list[Part]:
        """The parts by checkpoint as in the series, then by detector and probe."""
        ranks = self.series_ranks()
        return sorted(parts, key=lambda part: (ranks[part.label.ckpt], part.label.detector, part.label.probe))

    def series_ranks(self) -> dict[str, int]:
        """Each checkpoint's position in training, also of those that the series does not know, or no longer."""
        shown, changed_ns = self.shown(), self._store.series_changed_ns()
        if self._ranks is None or self._ranks[0] is not shown or self._ranks[1] != changed_ns:
            ranks = {record["name"]: rank for rank, record in enumerate(self.series())}
            self._ranks = shown, changed_ns, ranks
        return self._ranks[2]

    def series(self) -> list[dict[str, Any]]:
        """The checkpoints in the order of training; see `workbench.store.series_order`."""
        parts = (*self.reader.parts(), *self.newest_parts())  # of two places of one name, that of now is the last
        return in_training_order(self._store.checkpoints(), (part.label.origin for part in parts))

    def in_plan(self) -> list[Part]:
        """The parts that the scan's plan asks for, of the weights that checkpoints have now."""
        accounts = self.newest.accounts()
        parts = current_parts(self.reader.parts(), accounts, self.reader.written)
        return [part for part in parts if accounts.requests[0].names(part.label)] if accounts.requests else parts

    def _require(self, field: Literal["detector", "probe"], name: str, parts: Sequence[Part]) -> None:
        names = self.names(field, parts)
        if name not in names:
            raise self._missing(field, name, names)

    def _of_checkpoint(self, parts: Sequence[Part], name: str, value: Any) -> list[Part]:
        """The parts whose checkpoint has such a step, name, stage or branch."""
        matches = [part for part in parts if getattr(part.label.origin, name) == value]
        if not matches and any(part.label.rows for part in parts):
            values = {getattr(part.label.origin, name) for part in parts if part.label.rows} - {None}
            raise self._missing(name, value, values)
        return matches

    def _refuse(self, frame: pd.DataFrame, where: Mapping[str, Any]) -> None:
        """Raise for the first value that no row has beside those before it; `frame` has all rows."""
        for name, value in where.items():
            matches = frame.loc[(frame[name] == value).fillna(False).astype(bool)]
            if matches.empty and not frame.empty:
                raise self._missing(name, value, frame[name].dropna().unique())
            frame = matches

    def _missing(self, name: str, value: object, values: Any) -> WorkbenchError:
        listed = ", ".join(str(known) for known in sorted(values)) or "none yet"
        return WorkbenchError(f"{name} {value!r} is not in {self._store.path}; there is: {listed}")
