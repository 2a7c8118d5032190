"""The parts of a run as data frames; each part is read once, also while the run is still being written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from workbench.store.part_files import Part, part_files, read_label, read_rows
from workbench.store.part_format import COLUMNS, SCORES, VARYING, Table, canonical_digest
from workbench.store.score_cube import COLUMNS as CUBE_COLUMNS
from workbench.store.score_cube import Cube, make_cube

_Stamp = tuple[int, int]
# Columns that only the label of a part has.
_ADDED = {
    "scores": (),
    "metrics": tuple(SCORES.field(name) for name in ("ckpt", "step_total", "probe_digest", "seq_len", "unit")),
}
_DUPLICATE = {
    "scores": ["layer", "head", "kv_head"],
    "metrics": ["metric", "distance", "position"],
}
# Of whole rows: two detectors of 48 layers of 64 heads over 150 checkpoints.
_KEPT_BYTES = 128 * 2**20


class Reader:
    """Keeps the whole rows it has read; `refresh` reads only files whose (name, time, size) has changed.

    Frames have one row per head (scores) or number (metrics), by step_total, with text as categories;
    `plain_text` makes them strings. Those of metrics also have ckpt, step_total, probe_digest, seq_len and unit.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stamps: dict[Path, _Stamp] = {}
        self._parts: dict[Path, Part] = {}
        self._rows: OrderedDict[Path, pa.Table] = OrderedDict()
        self._kept_bytes = 0
        self._cubes: dict[tuple[tuple[Path, _Stamp], ...], Cube] = {}
        # How often the parts were other ones than before.
        self.generation = 0
        self.refresh()

    def refresh(self) -> tuple[Part, ...]:
        """Read the disk again and return the parts that are new or replaced.

        Raises:
            WorkbenchError: if a file among the parts is not whole.
        """
        stamps: dict[Path, _Stamp] = {}
        changed: list[Part] = []
        for table in ("scores", "metrics"):
            for path in part_files(self.root, table):
                try:
                    stat = path.stat()
                    stamp = stat.st_mtime_ns, stat.st_size
                    if self._stamps.get(path) != stamp:
                        self._forget(path)
                        self._parts[path] = read_label(self.root, path)
                        changed.append(self._parts[path])
                except FileNotFoundError:
                    continue
                stamps[path] = stamp
        for path in self._stamps.keys() - stamps.keys():
            self._parts.pop(path, None)
            self._forget(path)
        if changed or self._stamps.keys() != stamps.keys():
            self._cubes.clear()
            self.generation += 1
        self._stamps = stamps
        return tuple(changed)

    def parts(
        self, table: Table | None = None, *, detector: str | None = None, probe: str | None = None
    ) -> tuple[Part, ...]:
        """The parts in series order; a filter that is None lets all through."""
        return tuple(
            self._parts[path]
            for path in self._stamps
            if (table is None or self._parts[path].label.table == table)
            and (detector is None or self._parts[path].label.detector == detector)
            and (probe is None or self._parts[path].label.probe == probe)
        )

    def fingerprint(self, parts: Iterable[Part]) -> str:
        """A digest of which parts these are and when they were written."""
        return canonical_digest([(part.path.name, *self._stamps[part.path]) for part in parts])

    def cube(self, parts: Sequence[Part]) -> Cube:
        """The scores of these parts of one detector and probe, kept until one of them changes."""
        stamps = tuple((part.path, self._stamps[part.path]) for part in parts if part.label.rows)
        if stamps not in self._cubes:
            rows = {part: read_rows(self.root, part, CUBE_COLUMNS) for part in parts if part.label.rows}
            self._cubes[stamps] = make_cube(list(rows), rows)
        return self._cubes[stamps]

    def written(self, part: Part) -> int:
        """When a part was put in place, in nanoseconds."""
        return self._stamps[part.path][0]

    def frame(
        self,
        table: Table,
        parts: Iterable[Part],
        *,
        columns: Sequence[str] | None = None,
        where: Mapping[str, int | str] = MappingProxyType({}),
    ) -> pd.DataFrame:
        """The rows of these parts of one table, exact duplicates dropped: those of the first part stay.

        With `columns` only those are read, and nothing is kept. `where`: values that rows must have, in columns that
        differ within a part.
        """
        parts = [part for part in parts if part.label.rows]
        identities = [part.label.identity for part in parts]
        is_repeated = len(set(identities)) < len(identities)
        names = None if columns is None else [*columns, *(_DUPLICATE[table] if is_repeated else ())]
        rows_of_parts = list(self._filtered(parts, names, where))
        frame = _joined(table, rows_of_parts, names)
        if is_repeated:
            frame = _drop_duplicates(frame, table, rows_of_parts)
        return frame if columns is None else frame.loc[:, list(columns)]

    def _filtered(
        self, parts: Sequence[Part], columns: Sequence[str] | None, where: Mapping[str, int | str]
    ) -> Iterable[tuple[Part, pa.Table]]:
        for part in parts:
            try:
                rows = self._rows_of(part, None if columns is None else {*columns, *where})
            except FileNotFoundError:
                continue
            for name, value in where.items():
                rows = rows.filter(pa.array(rows[name].to_numpy() == value))
            if not where or rows.num_rows:
                yield part, rows

    def _rows_of(self, part: Part, columns: set[str] | None) -> pa.Table:
        """The rows of a part with at least those of these columns in which they differ; whole rows are kept."""
        if part.path in self._rows:
            return self._rows[part.path]
        varying = VARYING[part.label.table]
        if columns is not None:
            return read_rows(self.root, part, [name for name in varying if name in columns] or varying[:1])
        rows = read_rows(self.root, part)
        self._keep(part.path, rows)
        return rows

    def _keep(self, path: Path, rows: pa.Table) -> None:
        self._rows[path] = rows
        self._kept_bytes += rows.nbytes
        while self._kept_bytes > _KEPT_BYTES:
            self._forget(next(iter(self._rows)))

    def _forget(self, path: Path) -> None:
        if path in self._rows:
            self._kept_bytes -= self._rows.pop(path).nbytes


def plain_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame with its categories as strings."""
    columns = {name: _as_strings(column) for name, column in frame.items()}
    return pd.DataFrame(columns, index=frame.index, columns=frame.columns)


def _as_strings(column: pd.Series) -> pd.Series:
    """The column; of categories, each written once and then repeated."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return column
    texts = pd.array(column.cat.categories.tolist(), dtype="str")
    return pd.Series(texts.take(column.cat.codes.to_numpy(), allow_fill=True), index=column.index, name=column.name)


def _joined(table: Table, rows_of_parts: Sequence[tuple[Part, pa.Table]], names: Sequence[str] | None) -> pd.DataFrame:
    fields = [field for field in [*COLUMNS[table], *_ADDED[table]] if names is None or field.name in names]
    varying = [field.name for field in fields if field.name in VARYING[table]]
    tables = [COLUMNS[table].empty_table(), *(rows for _, rows in rows_of_parts)]
    rows = pa.concat_tables(columns.select(varying) for columns in tables)
    shared = [part.label.shared() for part, _ in rows_of_parts]
    part = np.repeat(np.arange(len(rows_of_parts)), [rows.num_rows for _, rows in rows_of_parts])
    columns: dict[str, Any] = {}
    for field in fields:
        if field.name in varying:
            columns[field.name] = _column(rows[field.name], field)
        else:
            columns[field.name] = _spread([values[field.name] for values in shared], part, field)
    return pd.DataFrame(columns)


def _column(values: pa.ChunkedArray, field: pa.Field) -> Any:
    if field.type == pa.string():
        return pd.Categorical(values.dictionary_encode().to_pandas())
    if field.type == pa.int64() and field.nullable:
        return values.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return values.to_pandas()


def _spread(values: Sequence[Any], part: np.ndarray, field: pa.Field) -> Any:
    """Each part's value on each of the part's rows."""
    different = set(values)
    if field.type == pa.string():
        categories = sorted(different - {None})
        codes = {value: code for code, value in enumerate(categories)} | {None: -1}
        of_parts = np.array([codes[value] for value in values], dtype=np.int64)
        return pd.Categorical.from_codes(of_parts.take(part), categories=pd.Index(categories, dtype="str"))
    if field.nullable:
        numbers = np.array([value or 0 for value in values], dtype=np.int64)
        is_missing = np.array([value is None for value in values], dtype=bool)
        return pd.arrays.IntegerArray(numbers.take(part), is_missing.take(part))
    return np.array(values, dtype=np.int64).take(part)


def _drop_duplicates(frame: pd.DataFrame, table: Table, rows_of_parts: Sequence[tuple[Part, pa.Table]]) -> pd.DataFrame:
    """Rows can only repeat where two parts share their identity; rows of one part never repeat each other."""
    identities = [part.label.identity for part, _ in rows_of_parts]
    lengths = [rows.num_rows for _, rows in rows_of_parts]
    same = np.repeat([identities.index(identity) for identity in identities], lengths)
    part = np.repeat(np.arange(len(rows_of_parts)), lengths)
    key = frame[_DUPLICATE[table]].assign(_same=same, _part=part)
    names = [*_DUPLICATE[table], "_same"]
    key["_occurrence"] = key.groupby(["_part", *names], dropna=False, observed=True).cumcount()
    repeats = key.duplicated([*names, "_occurrence"])
    return frame.loc[~repeats].reset_index(drop=True)
