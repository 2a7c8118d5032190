"""Throughput of the engines on a series whose checkpoints take seconds each, and what inline costs beside the work.

Small llamas are written once; each scan is a process of its own with one thread per worker. What comes before the first
checkpoint and after the last is an engine's fixed cost, and stands apart. Overhead: the share of the inline scan's time
between them that is not load, forward or statistics.

The work is the same for every engine. Where "work s" grows with two workers, that is what they cost each other in
caches and memory; what an engine costs shows in "busy", the share of its workers' time that is work.

    python benchmarks/bench_engines.py [--checkpoints 24] [--tokens 512] [--sequences 16] [--workers 2] [--ray]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENGINES = {"inline": [], "local": ["--engine", "local"], "ray": ["--engine", "ray"]}


def write_series(folder: Path, n: int) -> None:
    """Checkpoints of one shape and different weights: 8 layers, 512 wide."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )
    for i in range(n):
        torch.manual_seed(i)
        LlamaForCausalLM(config).save_pretrained(folder / f"step{i}")


def scan(series: Path, out: Path, arguments: list[str], probe: str) -> dict[str, float]:
    """Seconds of a whole scan in a process of its own, of its work by the run's own account, and the load before."""
    from workbench.runs import open_run

    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "workbench.cli", "scan", str(series), "--out", str(out), "--probe", probe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    subprocess.run([*command, *arguments, "--json"], env=environment, capture_output=True, check=True)
    wall = time.perf_counter() - started
    timings = open_run(out).timings()
    work = sum(t.load_s + t.forward_s + t.statistics_s for t in timings.each)
    span = max(t.at for t in timings.each) - min(t.at - t.total_s for t in timings.each)
    return {
        "wall_s": wall,
        "span_s": span,
        "work_s": work,
        "load": load,
        "workers": len({t.worker for t in timings.each}),
    }


def main() -> None:
    from machine import describe, keep

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    probe = f"repeats:n={given.tokens // 2 - 1},n_sequences={given.sequences}"
    lines = [describe(), "", f"{given.checkpoints} checkpoints, `{probe}`, one thread per worker.", ""]
    lines += ["| engine | wall s | fixed s | checkpoints s | work s | work per checkpoint s | busy | load before |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    spans: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        series = Path(temporary) / "series"
        write_series(series, given.checkpoints)
        for engine in ("inline", "local", *(["ray"] if given.ray else [])):
            workers = [] if engine == "inline" else ["--workers", str(given.workers)]
            found = scan(series, Path(temporary) / engine, [*ENGINES[engine], *workers], probe)
            spans[engine] = found["span_s"]
            each = found["work_s"] / given.checkpoints
            busy = found["work_s"] / (found["span_s"] * (1 if engine == "inline" else given.workers))
            lines.append(
                f"| {engine} | {found['wall_s']:.1f} | {found['wall_s'] - found['span_s']:.1f} | {found['span_s']:.1f} "
                f"| {found['work_s']:.1f} | {each:.2f} | {busy:.0%} | {found['load']:.1f} |"
            )
            print(lines[-1], json.dumps(found), flush=True)
            if engine == "inline":
                overhead = 1 - found["work_s"] / found["span_s"]
    lines += ["", f"Inline spends {overhead:.1%} of its time on neither load, forward nor statistics."]
    lines += [
        f"`{e}` with {given.workers} workers: {spans['inline'] / s:.2f} times inline."
        for e, s in spans.items()
        if e != "inline"
    ]
    print("\n".join(lines[-3:]))
    keep(Path(__file__), "Engines", lines)


if __name__ == "__main__":
    main()
