"""The cost of detectors: on a demo model, and over long sequences against recording the log-sum-exp alone.

`demo`: every default detector on the demo's own probes, one checkpoint of a 2-layer model, in seconds.
`long`: 8 layers, 16 heads, sampled rows. `lse`: rows' log-sum-exp alone; `default`: the detectors that run by default;
`all`: those and every other one that fits the probe and reads recorded rows. Each number is the process time on one
thread, in one process after a warm-up on fewer tokens; rounds are interleaved, and the least one counts.

    python benchmarks/bench_detectors.py [--tokens 16384] [--rows 512] [--rounds 3] [--json] [--write]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from bench_record import SETTING, build
from machine import cpu_seconds, describe, keep

from workbench import probes
from workbench.demo import demo_probes
from workbench.detectors import Detector, find_detectors, measure
from workbench.detectors.registry import all_detectors
from workbench.hooks import open_model
from workbench.kernels import Far
from workbench.pretrain.recipes import recipe
from workbench.pretrain.variants import build_model


def default_detectors() -> list[Detector]:
    return [d for d in find_detectors(None) if isinstance(d, Detector)]


def fitting_detectors(probe: probes.Probe) -> list[Detector]:
    """Every detector that reads recorded rows of this probe: none that decodes, needs pairs or reads weights."""
    known = [d for d in all_detectors().values() if isinstance(d, Detector)]
    return [d for d in known if d.decoding is None and d.fits(probe)]


def demo_seconds(variant: str, rounds: int) -> tuple[int, float]:
    """All default detectors on all four probes of the demo; the cost does not depend on the weights."""
    m = open_model(build_model(recipe(variant)).eval())
    demo = demo_probes()

    def run() -> None:
        for probe in demo:
            measure(m, probe, [d for d in default_detectors() if d.fits(probe)], far=Far(16))

    run()
    return len(default_detectors()), cpu_seconds({"all": run}, rounds)["all"]


def long_seconds(tokens: int, rows: int, rounds: int) -> dict[str, tuple[int, float]]:
    m = open_model(build(tokens))

    def runs(length: int) -> dict[str, tuple[int, Callable[[], object]]]:
        probe = probes.copy_needle(SETTING["vocabulary"], length // 2, length=length, n_sequences=1)
        default, every = default_detectors(), fitting_detectors(probe)
        return {
            "lse": (0, lambda: m.record(probe, {"lse_per_row"}, rows=rows)),
            "default": (len(default), lambda: measure(m, probe, default, far=Far(256), rows=rows)),
            "all": (len(every), lambda: measure(m, probe, every, far=Far(256), rows=rows)),
        }

    for _, run in runs(1024).values():
        run()
    measured = runs(tokens)
    seconds = cpu_seconds({name: run for name, (_, run) in measured.items()}, rounds)
    return {name: (n, seconds[name]) for name, (n, _) in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = {variant: demo_seconds(variant, args.rounds) for variant in ("full", "hybrid")}
    long = long_seconds(args.tokens, args.rows, args.rounds)
    if args.json:
        print(json.dumps({"demo": demo, "tokens": args.tokens, "rows": args.rows, **SETTING, "long": long}))
        return
    lines = [
        describe(),
        "",
        f"1 thread, float32, process time after a warm-up; {args.rounds} interleaved rounds, least",
        "",
        "| demo checkpoint, its 4 probes | detectors | CPU s |",
        "|---|---|---|",
        *(f"| {variant}, 2 layers | {n} | {seconds:.2f} |" for variant, (n, seconds) in demo.items()),
        "",
        f"{args.tokens} tokens, {args.rows} sampled rows; " + ", ".join(f"{k} {v}" for k, v in SETTING.items()),
        "",
        "| recorded | detectors | CPU s | ratio to LSE alone |",
        "|---|---|---|---|",
        *(f"| {name} | {n or '–'} | {s:.2f} | {s / long['lse'][1]:.2f} |" for name, (n, s) in long.items()),
    ]
    if args.write:
        keep(Path(__file__), "What the detectors cost", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
