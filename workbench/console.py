"""What the command line says and where: data to stdout, everything else to stderr, progress as the terminal allows."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.plain_json import json_text, plain

STDOUT, STDERR = Console(), Console(stderr=True)


@runtime_checkable
class ScanProgress(Protocol):
    """What a progress display reads: see `workbench.scanning.Progress`."""

    @property
    def done(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def planned(self) -> int: ...
    @property
    def checkpoint(self) -> str: ...
    @property
    def probe(self) -> str: ...
    @property
    def eta_s(self) -> float | None: ...


def say_json(document: object) -> None:
    """One JSON document on stdout; what is not a number in JSON (NaN, NA) becomes null."""
    print(json_text(document, indent=2))


def say_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
    """A table on stdout; numbers to the right, NaN and None as a dash."""
    table = Table(title=title, box=None, pad_edge=False, title_justify="left")
    for i, column in enumerate(columns):
        is_number = all(not isinstance(plain(row[i]), str) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", no_wrap=is_number)
    for row in rows:
        table.add_row(*(Text(shown(v)) for v in row))
    # A pipe has no width: let a row be as long as it is.
    console = STDOUT if sys.stdout.isatty() else Console(width=240)
    console.print(table)


def shown(value: Any) -> str:
    """A value as a table shows it."""
    value = plain(value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"
    return str(value)


def warn(message: str) -> None:
    STDERR.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def showing_progress() -> Generator[Any]:
    """Yield a callback for `scan`: a bar with the time to go on a terminal, one line per probe elsewhere."""
    if not STDERR.is_terminal:
        yield _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    with Progress(*columns, console=STDERR) as bar:
        task = bar.add_task("looking", total=None, eta="")

        def show(progress: ScanProgress) -> None:
            failed = f", {progress.failed} failed" if progress.failed else ""
            bar.update(
                task,
                total=progress.planned or None,
                completed=progress.done,
                description=f"{progress.checkpoint} {progress.probe}{failed}",
                eta=f"{duration(progress.eta_s)} to go",
            )

        yield show


@contextmanager
def showing_phases() -> Generator[Any]:
    """Yield a callback `(name, phase, done, total)`: a bar per name on a terminal, a line per quarter elsewhere."""
    if not STDERR.is_terminal:
        yield _Quarters()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=STDERR) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, phase: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], description=f"{name:8} {phase:9}", completed=done, total=total or None)

        yield show


class _Quarters:
    def __init__(self) -> None:
        self._told: set[tuple[str, str, int]] = set()

    def __call__(self, name: str, phase: str, done: int, total: int) -> None:
        quarter = 4 * done // total if total else 0
        if (name, phase, quarter) not in self._told:
            self._told.add((name, phase, quarter))
            warn(f"{name} {phase}: {done}/{total}")


class _Lines:
    """One line when a checkpoint's probe starts or a failure comes, at most one a second otherwise."""

    def __init__(self) -> None:
        self._last: tuple[str, str, int] | None = None
        self._at = 0.0

    def __call__(self, progress: ScanProgress) -> None:
        key = (progress.checkpoint, progress.probe, progress.failed)
        if key == self._last or (not progress.probe and progress.failed == (self._last or key)[2]):
            return
        self._last, self._at = key, time.monotonic()
        failed = f", {progress.failed} failed" if progress.failed else ""
        eta = "" if progress.eta_s is None else f", {duration(progress.eta_s)} to go"
        warn(f"{progress.checkpoint} {progress.probe}: {progress.done}/{progress.planned} done{failed}{eta}")


def duration(seconds: float | None) -> str:
    """`1 h 20 min`, `3 min 5 s`, `12 s`."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
