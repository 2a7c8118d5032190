"""Time and memory of `Run.emergence`, `lock_in` and `top` on a run as large as the largest public series.

154 checkpoints (Pythia's), 48 layers of 64 heads, 12 detectors: 5.7 million rows. `rising`: the share of heads that
emerge, whose intervals are drawn. The run is written once, then each measurement is a fresh process that opens it.

    python benchmarks/bench_emergence.py [--folder DIR] [--rising 0.08] [--layers 48] [--heads 64] [--detectors 12]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = (0, *(2**i for i in range(10)), *range(1000, 144_000, 1000))
TOKENS_PER_STEP = 2_097_152
SE, N_SEQ = 0.01, 16


def write(path: Path, *, rising: float, layers: int, heads: int, detectors: int) -> None:
    """A run with logistic rises at random times, in parts like those of a scan."""
    import numpy as np

    from workbench.heads import Row
    from workbench.store import Origin, Store, canonical_digest

    store = Store.create(path, job={}, versions={})
    rng = np.random.default_rng(0)
    n = layers * heads
    x = np.log(np.maximum(np.array(STEPS) * float(TOKENS_PER_STEP), 1e-300))
    for d in range(detectors):
        middle, width = rng.uniform(x[5], x[-20], n), rng.uniform(0.1, 0.8, n)
        height = np.where(rng.random(n) < rising, rng.uniform(0.4, 0.9, n), 0.02)
        z = np.clip((x[:, None] - middle) / width, -60, 60)
        score = rng.uniform(0, 0.1, n) + height / (1 + np.exp(-z)) + rng.normal(0, SE, (len(x), n))
        for i, step in enumerate(STEPS):
            name = f"step{step}"
            weights = canonical_digest(name)
            origin = Origin("bench", name, weights, "c" * 32, None, None, step, step, step * TOKENS_PER_STEP)
            rows = [
                Row(
                    layer=h // heads,
                    head=h % heads,
                    kv_head=h % heads,
                    kind="full",
                    window=None,
                    detector=f"detector{d:02d}",
                    version=1,
                    probe="repeats",
                    score=float(value),
                    half_a=float(value) - SE,
                    half_b=float(value) + SE,
                    sd_seq=SE * N_SEQ**0.5,
                    n_seq=N_SEQ,
                    n=1024,
                    ci_lo=float(value) - 2 * SE,
                    ci_hi=float(value) + 2 * SE,
                )
                for h, value in enumerate(score[i])
            ]
            determined = {
                "schema": 1,
                "weights": weights,
                "config": origin.config,
                "place": [None, None, step],
                "detector": [f"detector{d:02d}", 1],
                "dtype": None,
                "probe": ["repeats", "repeats"],
                "rows": None,
                "far": None,
                "seed": 0,
            }
            unit = canonical_digest(determined)
            store.commit_scores(origin, unit, rows, probe_digest="repeats", seq_len=256, determined=determined)
            store.note_current(origin, {"repeats": "repeats"})


def measure(path: Path, call: str) -> dict[str, float]:
    """Seconds of one call for every detector, reading included, and the largest resident memory in MB."""
    from workbench.runs import open_run

    started, cpu = time.perf_counter(), time.process_time()
    run = open_run(path)
    if call == "top":
        run.top()
    else:
        for detector in run.detectors:
            getattr(run, call)(detector)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rising", type=float, default=0.08)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--detectors", type=int, default=12)
    parser.add_argument("--measure")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder, options.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "run"
        if not folder.exists():
            write(
                folder,
                rising=options.rising,
                layers=options.layers,
                heads=options.heads,
                detectors=options.detectors,
            )
        report(folder, options)


def report(folder: Path, options: argparse.Namespace) -> None:
    """Measure each call in a fresh process with two numeric threads, and keep the table."""
    from machine import describe, keep

    load = f"Load average at the start: {os.getloadavg()[0]:.1f}."
    size = f"{len(STEPS)} checkpoints x {options.layers * options.heads:,} heads x {options.detectors} detectors"
    lines = [
        describe(),
        "",
        f"{size}; {options.rising:.0%} of the heads emerge. All detectors, reading included. {load}",
        "",
    ]
    lines += ["| call | wall s | CPU s | peak MB |", "|---|---|---|---|"]
    for call in ("emergence", "top", "lock_in"):
        command = [sys.executable, __file__, "--folder", str(folder), "--measure", call]
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=7200, check=True)
        cost = json.loads(process.stdout)
        lines.append(f"| `{call}` | {cost['wall_s']:.1f} | {cost['cpu_s']:.1f} | {cost['peak_mb']:.0f} |")
        print(lines[-1], flush=True)
    if (options.layers, options.heads, options.detectors) == (48, 64, 12):
        keep(Path(__file__), "Emergence over a large series", lines)


if __name__ == "__main__":
    main()
