"""Throughput of the engines on a series whose checkpoints take seconds each, and the overhead of the inline engine.

Small llamas are written once. Each scan is a process of its own with one thread per worker. An engine's fixed cost is
the time before the first checkpoint and after the last, and is listed separately. Overhead is the share of the inline
scan's time between them that is not load, forward or statistics.

The work is the same for every engine. If "work s" grows with two workers, they slow each other down through caches and
memory. The cost of an engine shows in "busy", the share of its workers' time that is work.

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
    """Seconds of a whole scan in its own process, seconds of work by the run's timings, and the load before."""
    from workbench.runs import open_run

    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "workbench.cli", "scan", str(series), "--out", str(out), "--probe", probe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    subprocess.run([*command, *arguments, "--json"], env=environment, capture_output=True, timeout=7200, check=True)
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
    arguments = parser.parse_args()
    probe = f"repeats:n={arguments.tokens // 2 - 1},n_sequences={arguments.sequences}"
    lines = [describe(), "", f"{arguments.checkpoints} checkpoints, `{probe}`, one thread per worker.", ""]
    lines += ["| engine | wall s | fixed s | checkpoints s | work s | work per checkpoint s | busy | load before |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    spans: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        series = Path(temporary) / "series"
        write_series(series, arguments.checkpoints)
        for engine in ("inline", "local", *(["ray"] if arguments.ray else [])):
            workers = [] if engine == "inline" else ["--workers", str(arguments.workers)]
            seconds = scan(series, Path(temporary) / engine, [*ENGINES[engine], *workers], probe)
            spans[engine] = seconds["span_s"]
            work_per_checkpoint = seconds["work_s"] / arguments.checkpoints
            busy = seconds["work_s"] / (seconds["span_s"] * (1 if engine == "inline" else arguments.workers))
            lines.append(
                f"| {engine} | {seconds['wall_s']:.1f} | {seconds['wall_s'] - seconds['span_s']:.1f} "
                f"| {seconds['span_s']:.1f} | {seconds['work_s']:.1f} | {work_per_checkpoint:.2f} | {busy:.0%} "
                f"| {seconds['load']:.1f} |"
            )
            print(lines[-1], json.dumps(seconds), flush=True)
            if engine == "inline":
                overhead = 1 - seconds["work_s"] / seconds["span_s"]
    lines += ["", f"Inline spends {overhead:.1%} of its time on neither load, forward nor statistics."]
    lines += [
        f"`{e}` with {arguments.workers} workers: {spans['inline'] / s:.2f} times inline."
        for e, s in spans.items()
        if e != "inline"
    ]
    print("\n".join(lines[-3:]))
    keep(Path(__file__), "Engines", lines)


if __name__ == "__main__":
    main()
