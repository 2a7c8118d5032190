"""What scans were asked for, newest first, and which weights each checkpoint had when a scan last looked at it.

Both are small files beside the parts: a scan that finds every unit done still becomes the newest request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.files.atomic import replace_file
from workbench.files.plain_json import json_text
from workbench.store.map_parts import MapLabel, is_map_of
from workbench.store.part_format import Label, Origin, canonical_digest
from workbench.store.score_settings import Settings

REQUESTS, CURRENT = "requests", "current"
# How a request writes the probes of a series that nobody chose.
DEFAULT_PROBE = "default"


@dataclass(frozen=True, slots=True)
class WrittenProbe:
    """A probe as a scan was asked for it: its text, and its digest in each vocabulary of the series."""

    written: str
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """What a scan was asked for: units of a version, with their settings, and the probes of these.

    `at`: when, in nanoseconds since 1970; later requests have larger numbers, whatever the clocks say. `checkpoints`:
    the directory.
    """

    at: int
    units: Mapping[tuple[str, str, str], tuple[int, Settings]]
    probes: Mapping[str, WrittenProbe]
    checkpoints: str | None

    def maps_are(self, label: MapLabel) -> bool:
        """Whether it asks for these patterns on some checkpoint."""
        _, settings = self.units.get(("maps", "maps", label.probe), (0, None))
        probe = self.probes.get(label.probe)
        return (
            settings is not None
            and (probe is None or label.probe_digest in probe.digests)
            and is_map_of(label, settings.dtype, settings.far_window)
        )

    def names(self, label: Label) -> bool:
        """Whether it asks for this unit on some checkpoint."""
        version, settings = self.units.get((label.table, label.detector, label.probe), (None, None))
        probe = self.probes.get(label.probe)
        return (
            label.version == version
            and label.settings == settings
            and (probe is None or label.probe_digest in probe.digests)
        )


@dataclass(frozen=True, slots=True)
class Current:
    """What a checkpoint's name stands for: the `Origin.state` of its rows, and its probes' digests by name."""

    state: tuple[Any, ...]
    probes: Mapping[str, str]


def request_of(units: Sequence[Mapping[str, Any]], probes: Mapping[str, WrittenProbe]) -> Request:
    """A request that is not written yet; `units` as in the store's plan."""
    by_name = {
        (unit["table"], unit["detector"], unit["probe"]): (unit["version"], Settings.from_json(unit["settings"]))
        for unit in units
    }
    return Request(0, by_name, probes, None)


def write_request(
    root: Path,
    units: Sequence[Mapping[str, Any]],
    probes: Mapping[str, WrittenProbe],
    *,
    checkpoints: Path | str,
    temporaries: Path,
) -> None:
    """Make this the newest request of a run. `units`: as in the store's plan.

    Raises:
        StoreNotWritable: if the disk is full or refuses.
    """
    earlier = read_requests(root)
    described = {name: {"written": p.written, "digests": sorted(p.digests)} for name, p in probes.items()}
    written = {name: probe.written for name, probe in probes.items()}
    path = root / REQUESTS / f"{canonical_digest([list(map(dict, units)), written])}.json"
    document = {
        "at": max([time.time_ns(), *(request.at + 1 for request in earlier[:1])]),
        "checkpoints": str(checkpoints),
        "probes": described,
        "units": [dict(unit) for unit in units],
    }
    replace_file(path, f"{json_text(document, indent=1)}\n".encode(), temporaries=temporaries)


def read_requests(root: Path) -> tuple[Request, ...]:
    """The requests of a run, the newest first; a file that another program damaged is none."""
    requests = [request for path in sorted((root / REQUESTS).glob("*.json")) if (request := _read(path)) is not None]
    return tuple(sorted(requests, key=lambda request: request.at, reverse=True))


def note_current(root: Path, origin: Origin, probes: Mapping[str, str], *, temporaries: Path) -> bool:
    """Note what a checkpoint's name stands for now, and the digests of the probes in its vocabulary.

    Returns:
        Whether it stood for something else before.

    Raises:
        StoreNotWritable: if the disk is full or refuses.
    """
    path = root / CURRENT / f"{canonical_digest(origin.ckpt)[:16]}.json"
    before = _read_current(path)
    if before != (origin.ckpt, Current(origin.state, dict(probes))):
        document = {"ckpt": origin.ckpt, "state": origin.state, "probes": dict(probes)}
        replace_file(path, f"{json_text(document)}\n".encode(), temporaries=temporaries)
    return before is not None and before[1].state != origin.state


def read_current(root: Path) -> dict[str, Current]:
    """What each checkpoint's name stood for when a scan last looked at it."""
    return dict(known for path in sorted((root / CURRENT).glob("*.json")) if (known := _read_current(path)) is not None)


def accounts_stamp(root: Path) -> tuple[int, ...]:
    """A value that changes when a request or what a name stands for has been written."""
    folders = (root / REQUESTS, root / CURRENT)
    return tuple(folder.stat().st_mtime_ns if folder.is_dir() else 0 for folder in folders)


def _read_current(path: Path) -> tuple[str, Current] | None:
    try:
        document = json.loads(path.read_bytes())
        return document["ckpt"], Current(tuple(document["state"]), dict(document["probes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `check` names a damaged one; the parts say when they were written


def _read(path: Path) -> Request | None:
    try:
        document = json.loads(path.read_bytes())
        probes = {
            name: WrittenProbe(probe["written"], tuple(probe["digests"])) for name, probe in document["probes"].items()
        }
        request = request_of(document["units"], probes)
        return replace(request, at=int(document["at"]), checkpoints=document.get("checkpoints"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # `check` names it; the parts say when they were written
