"""Reading a run of 5.7 million rows: open it, one head over all checkpoints, the top 50, by the workbench and others.

154 checkpoints (Pythia's), 48 layers of 64 heads, 12 detectors. `top 50` and `one head` are asked of one detector: the
first time its parts are read from disk, after that its table is in memory.

    python benchmarks/bench_store.py [--folder DIR] [--layers 48] [--heads 64] [--detectors 12]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from bench_emergence import STEPS, write

LAYER, HEAD, DETECTOR = 17, 5, "detector03"


def milliseconds(question: Callable[[], object], rounds: int = 7) -> float:
    """Median wall time."""
    taken: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        question()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def by_workbench(folder: Path) -> dict[str, float]:
    """Questions put to `open_run`, in ms."""
    from workbench.runs import open_run

    found: dict[str, float] = {}
    started = time.perf_counter()
    run = open_run(folder)
    assert DETECTOR in run.detectors
    found["open the run, list its detectors"] = 1000 * (time.perf_counter() - started)
    started = time.perf_counter()
    run.cube(DETECTOR)
    found["first look at one detector: its cube"] = 1000 * (time.perf_counter() - started)
    found["one head, all checkpoints"] = milliseconds(lambda: run.cube(DETECTOR).head(LAYER, HEAD))
    found["all heads, one checkpoint"] = milliseconds(lambda: run.cube(DETECTOR).checkpoint(f"step{STEPS[-1]}"))
    found["top 50 at the last checkpoint"] = milliseconds(lambda: run.cube(DETECTOR).top(50, ckpt=f"step{STEPS[-1]}"))
    found["top 50 over all checkpoints"] = milliseconds(lambda: run.cube(DETECTOR).top(50, ckpt=None))
    return found


def by_others(folder: Path) -> dict[str, float]:
    """The same two questions put to the parts by other programs, in ms; those that are installed."""
    parts, found = f"{folder}/scores/*/*.parquet", dict[str, float]()
    ask = [("detector", "==", DETECTOR), ("layer", "==", LAYER), ("head", "==", HEAD)]
    if find_spec("pandas"):
        import pandas as pd

        found["pandas: one head, all checkpoints"] = milliseconds(
            lambda: pd.read_parquet(folder / "scores", filters=ask, columns=["step", "score"]), rounds=3
        )
    if find_spec("duckdb"):
        import duckdb

        where = f"detector = '{DETECTOR}' and layer = {LAYER} and head = {HEAD}"
        query = f"select step, score from read_parquet('{parts}') where {where}"
        found["duckdb: one head, all checkpoints"] = milliseconds(lambda: duckdb.sql(query).fetchall(), rounds=3)
    if find_spec("polars"):
        import polars as pl

        named = (pl.col("detector") == DETECTOR) & (pl.col("layer") == LAYER) & (pl.col("head") == HEAD)
        found["polars: one head, all checkpoints"] = milliseconds(
            lambda: pl.scan_parquet(parts).filter(named).select("step", "score").collect(), rounds=3
        )
    return found


def main() -> None:
    from machine import describe, keep

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--detectors", type=int, default=12)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "run"
        if not folder.exists():
            write(folder, 0.08, given.layers, given.heads, given.detectors)
        n_rows = len(STEPS) * given.layers * given.heads * given.detectors
        lines = [describe(), "", f"{n_rows:,} rows in {len(STEPS) * given.detectors:,} parts. "]
        lines[-1] += f"Load average at the start: {os.getloadavg()[0]:.1f}."
        lines += ["", "| question | ms |", "|---|---|"]
        for question, taken in (by_workbench(folder) | by_others(folder)).items():
            lines.append(f"| {question} | {taken:.3g} |")
            print(lines[-1], flush=True)
        if (given.layers, given.heads, given.detectors) == (48, 64, 12):
            keep(Path(__file__), "Reading a large run", lines)


if __name__ == "__main__":
    main()
