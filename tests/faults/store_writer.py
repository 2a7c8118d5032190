"""Processes that write a store, to be killed, starved or raced by a test: `python store_writer.py VERB …`."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from workbench.heads import Row, StoreNotWritable
from workbench.store import Origin, Store, canonical_digest

UNITS = [canonical_digest(i) for i in range(12)]


@cache
def rows_of(unit: str) -> list[Row]:
    """The rows of a unit: always the same ones."""
    scores = np.random.default_rng(int(unit[:8], 16)).random(512)
    return [
        Row(i // 16, i % 16, i % 16, "full", None, "induction", 1, "repeats", s, s, s, 0.0, 8, 64, s, s)
        for i, s in enumerate(scores.tolist())
    ]


def origin_of(unit: str) -> Origin:
    step = UNITS.index(unit) // 3
    return Origin("run", f"step{step}", canonical_digest(step), "c" * 32, None, None, step, step, step * 64)


def write(path: Path, units: list[str]) -> None:
    """Commit every unit that is not yet done."""
    store = Store.create(path, job={}, versions={})
    for unit in units:
        if not store.has("scores", origin_of(unit), unit):
            store.commit_scores(origin_of(unit), unit, rows_of(unit), probe_digest=unit, seq_len=64)


def is_whole(path: Path) -> bool:
    """Whether every unit came back as it was written."""
    frame = Store.open(path).scores()
    return len(frame) == 512 * len(UNITS) and all(
        np.array_equal(frame.loc[frame["unit"] == unit, "score"], [row.score for row in rows_of(unit)])
        for unit in UNITS
    )


def kill_loop(path: Path, rounds: int, seed: int) -> dict[str, int]:
    """Kill a writer at a random moment, look, resume; count what was wrong."""
    rng = random.Random(seed)
    started = time.monotonic()
    write(path / "timing", UNITS)
    span = time.monotonic() - started
    count = dict.fromkeys(("killed", "corrupt", "stale", "wrong"), 0)
    for i in range(rounds):
        run = path / f"round{i}"
        writer = _forked(lambda run=run: write(run, UNITS))
        time.sleep(rng.uniform(0, span))
        os.kill(writer, signal.SIGKILL)
        was_in_time = os.WIFSIGNALED(os.waitpid(writer, 0)[1])
        span *= 1.05 if was_in_time else 0.8  # how long a writer takes differs with what else the machine does
        count["killed"] += was_in_time
        store = Store(run)
        count["corrupt"] += len(store.check())
        count["stale"] += len(store.sweep())
        write(run, UNITS)
        count["wrong"] += not is_whole(run) or store.check() != [] or any((run / ".tmp").iterdir())
    return count


def starve(path: Path, limit: int) -> dict[str, object]:
    """Write with a limit on the size of files; say what became of it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return _outcome(path)


def fill(path: Path) -> dict[str, object]:
    """Write copies of the units under ever new names until the disk is full."""
    store = Store.create(path, job={}, versions={})
    for i in range(10_000):
        unit = UNITS[i % len(UNITS)]
        try:
            store.commit_scores(origin_of(unit), canonical_digest([i]), rows_of(unit), probe_digest=str(i), seq_len=64)
        except StoreNotWritable as error:
            return {"error": str(error), "exit_code": error.exit_code, "committed": i}
    return {"error": None, "committed": 10_000}


def hold(path: Path) -> None:
    """Hold the run's lock until killed."""
    with Store.create(path, job={}, versions={}).locked():
        print("holding", flush=True)
        time.sleep(60)


def _outcome(path: Path) -> dict[str, object]:
    try:
        write(path, UNITS)
    except StoreNotWritable as error:
        return {"error": str(error), "exit_code": error.exit_code}
    return {"error": None}


def _forked(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


if __name__ == "__main__":
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    verb, folder, *rest = sys.argv[1:]
    verbs = {
        "write": lambda path, order: write(path, UNITS[:: int(order)]),
        "kill-loop": lambda path, rounds, seed: kill_loop(path, int(rounds), int(seed)),
        "starve": lambda path, limit: starve(path, int(limit)),
        "fill": fill,
        "outcome": _outcome,
        "hold": hold,
    }
    print(json.dumps(verbs[verb](Path(folder), *rest)))
