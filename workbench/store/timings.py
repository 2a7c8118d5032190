"""How long units took, by checkpoint and probe, and how long the rest will take; no result depends on it.

Each process appends lines to a file of its own; readers skip a line that a crash has torn.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.files.atomic import append_line
from workbench.files.plain_json import json_text

FOLDER = "timings"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that the units of one checkpoint and probe took together, their scores or their maps.

    `digest_s` (reading the weights for their digest) and `load_s` are counted with the checkpoint's first probe.
    `forward_s`: the model's forward passes with the statistics inside them; `statistics_s`: scoring; `write_s`: the
    commits. `at`: seconds since 1970; `worker`: the process.
    """

    ckpt: str
    probe: str
    units: int
    digest_s: float
    load_s: float
    forward_s: float
    statistics_s: float
    write_s: float
    at: float = 0.0
    worker: str = ""
    what: Literal["scores", "maps"] = "scores"

    @property
    def total_s(self) -> float:
        """The sum of all five."""
        return self.digest_s + self.load_s + self.forward_s + self.statistics_s + self.write_s


@dataclass(frozen=True, slots=True)
class Timings:
    """The timings of a run in order of time, and when its last scan began, in seconds since 1970."""

    each: tuple[Timing, ...]
    began: float | None

    def eta_s(self, n_left: int, now: float | None = None) -> float | None:
        """Seconds until `n_left` units are done at the pace of the last scan; None where it has done nothing yet."""
        if n_left == 0:
            return 0.0
        if self.began is None:
            return None
        recent = [t for t in self.each if t.at >= self.began]
        n_units = sum(t.units for t in recent)
        if not n_units:
            return None
        last = max(t.at for t in recent)
        pace = max(last - self.began, 1e-3) / n_units
        return max(0.0, pace * n_left - max(0.0, (time.time() if now is None else now) - last))

    def slowest(self, n: int) -> list[Timing]:
        """The `n` that took longest."""
        return sorted(self.each, key=lambda t: t.total_s, reverse=True)[:n]


def add_timing(root: Path, timing: Timing) -> None:
    """Append a timing of this process, with the time and the process.

    Raises:
        StoreNotWritable: if the disk is full or refuses.
    """
    _append(root, {**asdict(timing), "at": time.time(), "worker": _worker()})


def begin(root: Path) -> None:
    """Note that a scan begins now; its pace counts from here."""
    _append(root, {"began": time.time(), "worker": _worker()})


def read_timings(root: Path) -> Timings:
    """The timings of all processes so far."""
    each: list[Timing] = []
    began: list[float] = []
    for path in sorted((root / FOLDER).glob("*.jsonl")):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                record: dict[str, Any] = json.loads(line)
                if "began" in record:
                    began.append(float(record["began"]))
                else:
                    each.append(Timing(**record))
            except (ValueError, TypeError):  # torn by a crash, or of another version
                continue
    return Timings(tuple(sorted(each, key=lambda t: t.at)), max(began, default=None))


def _append(root: Path, record: dict[str, Any]) -> None:
    append_line(root / FOLDER / f"{_worker()}.jsonl", json_text(record))


def _worker() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"
