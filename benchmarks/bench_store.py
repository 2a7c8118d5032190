"""Reading a run of 5.7 million rows: open it, one head over all checkpoints, the top 50, by the workbench and others.

154 checkpoints (Pythia's), 48 layers of 64 heads, 12 detectors. `top 50` and `one head` are of one detector: the first
question reads its parts from disk, later ones its table in memory.

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
LAST = f"step{STEPS[-1]}"


def milliseconds(question: Callable[[], object], rounds: int = 7) -> float:
    """Median wall time."""
    taken: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        question()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def by_workbench(folder: Path) -> dict[str, float]:
    """Milliseconds of each question to `open_run`."""
    from workbench.runs import open_run

    taken_ms: dict[str, float] = {}
    started = time.perf_counter()
    run = open_run(folder)
    assert DETECTOR in run.detectors
    taken_ms["open the run, list its detectors"] = 1000 * (time.perf_counter() - started)
    started = time.perf_counter()
    run.cube(DETECTOR)
    taken_ms["first look at one detector: its cube"] = 1000 * (time.perf_counter() - started)
    taken_ms["one head, all checkpoints"] = milliseconds(lambda: run.cube(DETECTOR).head(LAYER, HEAD))
    taken_ms["all heads, one checkpoint"] = milliseconds(lambda: run.cube(DETECTOR).checkpoint(LAST))
    taken_ms["top 50 at the last checkpoint"] = milliseconds(lambda: run.cube(DETECTOR).top(50, ckpt=LAST))
    taken_ms["top 50 over all checkpoints"] = milliseconds(lambda: run.cube(DETECTOR).top(50, ckpt=None))
    return taken_ms


def by_others(folder: Path) -> dict[str, float]:
    """Milliseconds of the same question with those other programs that are installed."""
    parts, taken_ms = f"{folder}/scores/*/*.parquet", dict[str, float]()
    filters = [("detector", "==", DETECTOR), ("layer", "==", LAYER), ("head", "==", HEAD)]
    if find_spec("pandas"):
        import pandas as pd

        taken_ms["pandas: one head, all checkpoints"] = milliseconds(
            lambda: pd.read_parquet(folder / "scores", filters=filters, columns=["step", "score"]), rounds=3
        )
    if find_spec("duckdb"):
        import duckdb

        where = f"detector = '{DETECTOR}' and layer = {LAYER} and head = {HEAD}"
        query = f"select step, score from read_parquet('{parts}') where {where}"
        taken_ms["duckdb: one head, all checkpoints"] = milliseconds(lambda: duckdb.sql(query).fetchall(), rounds=3)
    if find_spec("polars"):
        import polars as pl

        named = (pl.col("detector") == DETECTOR) & (pl.col("layer") == LAYER) & (pl.col("head") == HEAD)
        taken_ms["polars: one head, all checkpoints"] = milliseconds(
            lambda: pl.scan_parquet(parts).filter(named).select("step", "score").collect(), rounds=3
        )
    return taken_ms


def main() -> None:
    from machine import describe, keep

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--detectors", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "run"
        if not folder.exists():
            write(folder, rising=0.08, layers=arguments.layers, heads=arguments.heads, detectors=arguments.detectors)
        n_rows = len(STEPS) * arguments.layers * arguments.heads * arguments.detectors
        lines = [describe(), "", f"{n_rows:,} rows in {len(STEPS) * arguments.detectors:,} parts. "]
        lines[-1] += f"Load average at the start: {os.getloadavg()[0]:.1f}."
        lines += ["", "| question | ms |", "|---|---|"]
        for question, taken in (by_workbench(folder) | by_others(folder)).items():
            lines.append(f"| {question} | {taken:.3g} |")
            print(lines[-1], flush=True)
        if (arguments.layers, arguments.heads, arguments.detectors) == (48, 64, 12):
            keep(Path(__file__), "Reading a large run", lines)


if __name__ == "__main__":
    main()
