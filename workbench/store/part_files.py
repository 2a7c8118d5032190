"""Find, read and check the Parquet parts of a run, one for each committed unit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.heads import StoreTooNew, WorkbenchError
from workbench.store.part_format import (
    COLUMNS,
    DIGEST,
    SCHEMA,
    VARYING,
    Label,
    Table,
    canonical_digest,
    columns_of,
    part_digest,
)

_JSON_FOLDERS = (".", "failures", "requests", "current")


@dataclass(frozen=True, slots=True)
class Part:
    """A committed unit and its file."""

    path: Path
    label: Label


@dataclass(frozen=True, slots=True)
class Problem:
    """A file among the parts that is no whole part, and the reason."""

    path: Path
    reason: str


def part_files(root: Path, table: Table) -> Iterator[Path]:
    """Every file that lies where a part would, in series order."""
    for folder in sorted((root / table).glob("s*-*")):
        if folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if path.suffix == ".parquet")


def read_label(root: Path, path: Path) -> Part:
    """Read the label of a part from the end of its file, without its rows.

    Raises:
        FileNotFoundError: if it is no longer there.
        WorkbenchError: if it is not a whole part.
        StoreTooNew: if a newer workbench wrote it.
    """
    try:
        metadata = pq.read_metadata(path).metadata
        label = Label.from_metadata(metadata or {})
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise _corrupt(root, path, _first_line(error)) from error
    if label.schema > SCHEMA:
        raise StoreTooNew(
            f"{path} has schema {label.schema}, this version reads up to {SCHEMA}; "
            "pip install --upgrade attention-workbench"
        )
    if label.unit != path.stem:
        raise _corrupt(root, path, f"holds unit {label.unit}, not the one it is named after")
    if label.table != path.parent.parent.name:
        raise _corrupt(root, path, f"holds {label.table} but lies among {path.parent.parent.name}")
    return Part(path, label)


def read_rows(root: Path, part: Part, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the columns in which a part's rows differ, or some of them; the label has the others.

    Raises:
        FileNotFoundError: if it is no longer there.
        WorkbenchError: if it is not whole.
    """
    return _read(root, part, list(columns or VARYING[part.label.table])).replace_schema_metadata(None)


def read_beside(
    root: Path, part: Part, columns: Sequence[str], others: Sequence[str]
) -> tuple[pa.Table, tuple[bytes, ...] | None]:
    """Some columns of a part, and others as they are stored, by which two parts are known to hold the same there.

    To compare what is stored costs a tenth of reading it. None where the part is stored in several pieces.

    Raises:
        FileNotFoundError: if it is no longer there.
        WorkbenchError: if it is not whole.
    """
    with _opened(root, part) as (file, content):
        table = file.read(list(columns), use_threads=False)
        metadata = file.metadata
    _require_rows(root, part, table)
    stored = None
    if metadata.num_row_groups == 1:
        group, names = metadata.row_group(0), columns_of(part.label.table, part.label.schema).names
        stored = tuple(_stored(content, group.column(names.index(name))) for name in others)
    return table.replace_schema_metadata(None), stored


def _stored(content: bytes, column: Any) -> bytes:
    """The bytes of a column: how it is packed, and its pages."""
    start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
    how = f"{column.physical_type} {column.compression} {column.encodings} {column.num_values} ".encode()
    return how + content[start : start + column.total_compressed_size]


def check_parts(root: Path) -> list[Problem]:
    """Read every part and every JSON file beside them again, and list those that are not whole; nothing is mended."""
    problems: list[Problem] = []
    for table in COLUMNS:
        folder = root / table
        if not folder.is_dir():
            continue
        for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
            reason = _fault(root, path, folder)
            if reason is not None:
                problems.append(Problem(path, reason))
    for path in [path for folder in _JSON_FOLDERS for path in sorted((root / folder).glob("*.json"))]:
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            problems.append(Problem(path, f"is not JSON ({error})"))
    return problems


def _fault(root: Path, path: Path, folder: Path) -> str | None:
    if path.suffix != ".parquet" or path.parent.parent != folder or not path.parent.name.startswith("s"):
        return "not a part: foreign files do not belong here"
    try:
        part = read_label(root, path)
        if part.label.origin.folder != path.parent.name:
            return f"is of {part.label.ckpt} and belongs into {part.label.origin.folder}"
        table = _read(root, part, columns_of(part.label.table, part.label.schema).names)
    except FileNotFoundError:
        return None
    except WorkbenchError as error:
        return str(error).removeprefix(f"{path} ").partition("; ")[0]
    return _contradiction(table, part.label, pq.read_metadata(path).metadata.get(DIGEST, b"").decode())


def _contradiction(table: pa.Table, label: Label, digest: str) -> str | None:
    """What in a part's label contradicts its rows, its digest or its unit's key; None if nothing does."""
    for name, value in label.shared().items():
        if name in table.schema.names and table[name].unique().to_pylist() not in ([], [value]):
            return f"says {name} {value!r} and has rows of {table[name].unique().to_pylist()}"
    if digest and part_digest(table, label) != digest:
        return "holds other rows than were written"
    if label.determined:
        determined = json.loads(label.determined)
        if canonical_digest(determined) != label.unit:
            return f"is named unit {label.unit}, and what determines its numbers makes {canonical_digest(determined)}"
        for name, value in _of_key(label).items():
            if determined.get(name, value) != value:
                return f"has numbers of {name} {determined[name]!r} and says {value!r}"
    return None


def _of_key(label: Label) -> dict[str, Any]:
    """The values that a unit's key and the part's label have in common."""
    origin = label.origin
    return {
        "weights": origin.weights,
        "config": origin.config,
        "place": [origin.stage, origin.branch, origin.step],
        "detector": [label.detector, label.version],
        "probe": [label.probe, label.probe_digest],
    }


def _read(root: Path, part: Part, columns: list[str]) -> pa.Table:
    with _opened(root, part) as (file, _):
        table = file.read(columns, use_threads=False)
    _require_rows(root, part, table)
    return table


@contextlib.contextmanager
def _opened(root: Path, part: Part) -> Generator[tuple[pq.ParquetFile, bytes]]:
    """A part and its bytes, read at once; what is not whole in it is refused, inside the block too."""
    schema = columns_of(part.label.table, part.label.schema)
    try:
        content = part.path.read_bytes()
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True, pre_buffer=False) as file:
            stored = file.schema_arrow
            if stored.names != schema.names or stored.types != schema.types:
                raise _corrupt(root, part.path, f"has other columns than schema {part.label.schema}")
            yield file, content
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise _corrupt(root, part.path, _first_line(error)) from error


def _require_rows(root: Path, part: Part, table: pa.Table) -> None:
    if table.num_rows != part.label.rows:
        raise _corrupt(root, part.path, f"has {table.num_rows} rows where {part.label.rows} were written")


def _corrupt(root: Path, path: Path, reason: str) -> WorkbenchError:
    return WorkbenchError(
        f"{path} is not a whole part ({reason}); `workbench check {root}` lists all such files: "
        "delete them and run the scan again"
    )


def _first_line(error: Exception) -> str:
    text = f"no {error.args[0].decode()} in its metadata" if isinstance(error, KeyError) else str(error)
    return text.splitlines()[0] if text else type(error).__name__
