"""Terminal output: data on stdout, messages and progress on stderr."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, SupportsFloat, runtime_checkable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.files.plain_json import json_text, plain

STDOUT, STDERR = Console(), Console(stderr=True)


@runtime_checkable
class ScanProgress(Protocol):
    """The fields of `workbench.scanning.Progress` that a display reads."""

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
    @property
    def tokens(self) -> int: ...


def print_json(document: object) -> None:
    """Print one JSON document on stdout; NaN, infinity and missing values become null."""
    print(json_text(document, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table on stdout; numbers are right-aligned, NaN and None are a dash."""
    table = Table(title=title, box=None, pad_edge=False, title_justify="left")
    for i, column in enumerate(columns):
        is_number = all(not isinstance(plain(row[i]), str) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", no_wrap=is_number)
    for row in rows:
        table.add_row(*(Text(shown(v)) for v in row))
    # A pipe has no width: rows are not wrapped.
    console = STDOUT if sys.stdout.isatty() else Console(width=240)
    console.print(table)


def shown(value: Any) -> str:
    """Format a value for a table cell."""
    value = plain(value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return fixed(value) if abs(value) < 1000 else f"{value:.4g}"
    return str(value)


def fixed(value: SupportsFloat, decimals: int = 3, *, sign: str = "") -> str:
    """A number with so many decimals, or so many significant digits where the decimals would leave fewer than two.

    A learning rate of 0.0001 is not 0.000. `sign`: "+" writes the sign of positive numbers too.
    """
    value = float(value)
    is_small = 0 < abs(value) < 10 ** (1 - decimals)
    return f"{value:{sign}.{decimals}{'g' if is_small else 'f'}}"


def warn(message: str) -> None:
    """Print a message on stderr."""
    STDERR.print(message, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def showing_progress() -> Generator[Any]:
    """Yield a callback for `scan`: a bar with the remaining time on a terminal, one line per probe elsewhere."""
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
        task = bar.add_task("starting", total=None, eta="")

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


@contextmanager
def watched_bar(unit: str, *, shown: bool = True) -> Generator[Callable[[int, int, str], None]]:
    """Yield a callback `(done, total, description)`: a tqdm bar on stderr if `is_watched()`, else no output.

    `shown=False` never shows one. A total of 0 is one that is not known.
    """
    if not (shown and is_watched()):
        yield lambda _done, _total, _description: None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns in notebooks without ipywidgets, and then prints a text bar
        from tqdm.auto import tqdm

    with tqdm(unit=unit) as bar:

        def show(done: int, total: int, description: str) -> None:
            if bar.total != (total or None):
                bar.reset(total=total or None)
            bar.set_description_str(description, refresh=False)
            bar.update(done - bar.n)

        yield show


def is_watched() -> bool:
    """Whether a person sees stderr as it is written: on a terminal or in a notebook."""
    ipython: Any = sys.modules.get("IPython")
    is_notebook = ipython is not None and type(ipython.get_ipython()).__module__ == "ipykernel.zmqshell"
    return is_notebook or sys.stderr.isatty()


class TokenPace:
    """A line per probe: tokens done, and from the pace so far the time to go; the first line says what it costs."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, probe: str, done: int, total: int) -> None:
        if not done:
            warn(f"{total:,} tokens to score")
        passed = time.monotonic() - self._started
        to_go = f", {duration(passed / done * (total - done))} to go" if done and probe else ""
        warn(f"{probe or 'done'}: {done:,}/{total:,} tokens{to_go}")


class _Quarters:
    """One line when a phase starts and at each quarter of it."""

    def __init__(self) -> None:
        self._printed: set[tuple[str, str, int]] = set()

    def __call__(self, name: str, phase: str, done: int, total: int) -> None:
        quarter = 4 * done // total if total else 0
        if (name, phase, quarter) not in self._printed:
            self._printed.add((name, phase, quarter))
            warn(f"{name} {phase}: {done}/{total}")


class _Lines:
    """First what the scan costs; then one line when a checkpoint's probe starts or a failure is stored."""

    def __init__(self) -> None:
        self._last: tuple[str, str, int] | None = None
        self._has_cost = False

    def __call__(self, progress: ScanProgress) -> None:
        if progress.tokens and not self._has_cost:
            self._has_cost = True
            warn(f"{progress.planned} units, {progress.tokens:,} tokens in all")
        key = (progress.checkpoint, progress.probe, progress.failed)
        if key == self._last or (not progress.probe and progress.failed == (self._last or key)[2]):
            return
        self._last = key
        failed = f", {progress.failed} failed" if progress.failed else ""
        eta = "" if progress.eta_s is None else f", {duration(progress.eta_s)} to go"
        warn(f"{progress.checkpoint} {progress.probe}: {progress.done}/{progress.planned} done{failed}{eta}")


def duration(seconds: float | None) -> str:
    """Format seconds as `1 h 20 min`, `3 min 5 s` or `12 s`; None and NaN are `?`."""
    if seconds is None or math.isnan(seconds):
        return "?"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
