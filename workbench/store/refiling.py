"""File a part anew when its checkpoint is called otherwise than when it was written, or stands elsewhere in training.

A unit's key does not depend on the name of the checkpoint, nor on its total steps and tokens, which follow from the
whole series. They are in the part all the same. So a renamed folder, or tokens that became known, need no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save

from workbench.heads import StoreNotWritable, WorkbenchError
from workbench.store.map_parts import FOLDER, map_path, read_map_label
from workbench.store.part_files import Part, read_label
from workbench.store.part_format import Label, Origin, Table

# Writes the rows of a part again under another label.
Relabel = Callable[[Part, Label], None]
# Puts a file in place in one step.
Put = Callable[[Path, bytes], None]


def refile_rows(root: Path, table: Table, origin: Origin, unit: str, *, relabel: Relabel) -> bool:
    """Whether a unit has a part. It says `origin` afterwards, but for the run's name.

    A damaged part counts as one, as it lies: whoever reads it refuses it.

    Raises:
        StoreNotWritable: if the disk is full or refuses; the part is then as it was.
    """
    expected = root / table / origin.folder / f"{unit}.parquet"
    path = expected if expected.exists() else _elsewhere(root / table, origin, expected.name)
    if path is None:
        return False
    try:
        part = read_label(root, path)
        stamp = path.stat()
    except FileNotFoundError:
        return False
    except WorkbenchError:
        return True
    if not _says(part.label.origin, origin):
        try:
            relabel(part, replace(part.label, origin=replace(origin, run=part.label.origin.run)))
        except StoreNotWritable:
            raise
        except WorkbenchError:
            return True
        _finish(path, expected, stamp)
    return True


def refile_maps(root: Path, origin: Origin, unit: str, *, put: Put) -> bool:
    """Whether the patterns of a unit are in place; as `refile_rows`."""
    expected = map_path(root, origin, unit)
    path = expected if expected.exists() else _elsewhere(root / FOLDER, origin, expected.name)
    if path is None:
        return False
    try:
        if _says(read_map_label(path).origin, origin):
            return True
        stamp = path.stat()
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            metadata = dict(file.metadata() or {})
    except FileNotFoundError:
        return False
    except WorkbenchError:
        return True
    described = json.loads(metadata["wb"])
    described["origin"] = asdict(replace(origin, run=described["origin"]["run"]))
    put(expected, save(tensors, {**metadata, "wb": json.dumps(described)}))
    _finish(path, expected, stamp)
    return True


def _elsewhere(folder: Path, origin: Origin, name: str) -> Path | None:
    """The part of this name in another folder of the same weights."""
    return next(iter(sorted(folder.glob(f"s*-{origin.weights[:8]}/{name}"))), None)


def _says(stored: Origin, origin: Origin) -> bool:
    # The run's folder may have been renamed as well; that changes nothing of the checkpoint.
    return replace(stored, run=origin.run) == origin


def _finish(path: Path, expected: Path, stamp: os.stat_result) -> None:
    """Keep the time of the numbers, by which readers tell the newest, but for a nanosecond: the file has changed."""
    os.utime(expected, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    if path != expected:
        path.unlink(missing_ok=True)
