"""Measure patterns: the server's time for a tile and an atlas, and the cost of maps in a scan.

Server times are wall time of one request inside the process (flask's test client, no browser): the median of several.
The scan's cost is the CPU time of scoring one probe with every default detector, and of the pass that makes its maps,
which runs one sequence of the probe.

    python benchmarks/bench_patterns.py [--tokens 8192] [--rounds 3] [--write]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import cpu_seconds, describe, keep

from workbench import probes
from workbench.app import build_app
from workbench.detectors import Detector, find_detectors, measure
from workbench.heads import Head
from workbench.hooks import open_model
from workbench.hooks.recording.pattern_maps import blocks_of, record_maps
from workbench.kernels import Far
from workbench.scanning.kept_patterns import arrays_of
from workbench.store import MapArrays, Origin, QueriesKeys, Store

HEADS, WIDTH = 32, 64


def noise(n: int, n_layers: int = 1) -> MapArrays:
    """Random patterns of layers of 32 heads at n tokens: head 0 finer, head 1 with queries and keys."""
    rng = np.random.default_rng(0)
    blocks = blocks_of(n)

    def peaks(block: int) -> np.ndarray:
        side = -(-n // block)
        return np.tril(rng.random((side, side), dtype=np.float32))

    q, k = (rng.standard_normal((n, WIDTH)).astype(np.float16) for _ in range(2))
    qk = QueriesKeys(q, k, np.full(n, 10.0, np.float32), np.zeros(n, np.int32), WIDTH**-0.5, None)
    n_kept = n_layers * HEADS
    return MapArrays(
        ids=np.arange(n) % 50,
        pieces=tuple(f" w{i % 50}" for i in range(n)),
        layers=tuple(
            {"layer": layer, "kind": "full", "mixer": "softmax", "window": None, "n_heads": HEADS}
            for layer in range(n_layers)
        ),
        layer=np.repeat(np.arange(n_layers), HEADS),
        head=np.tile(np.arange(HEADS), n_layers),
        is_signed=np.zeros(n_kept, bool),
        block=blocks[0],
        far=256,
        distances=(0, 1),
        peak=np.stack([peaks(blocks[0]) for _ in range(n_kept)]),
        beyond=np.ones((n_kept, 2)),
        sink=np.zeros(n_kept),
        links=np.zeros((n_kept, 16, 2), int),
        link_value=np.zeros((n_kept, 16)),
        fine={0: {b: peaks(b) for b in blocks[1:]}},
        qk={1: qk},
    )


def write_patterns(folder: Path, n: int) -> tuple[Path, int]:
    """A run with such patterns of one layer, and their bytes."""
    store = Store.create(folder / "run", job={}, versions={})
    origin = Origin("run", "c", "ab" * 16, "cd" * 16, None, None, 1, 1, 1)
    return folder / "run", store.commit_maps(origin, "0" * 32, noise(n), probe="p", probe_digest="d")


def request_time(run: Path, address: str, rounds: int) -> tuple[float, int]:
    """Median milliseconds of a request, and the bytes of its answer."""
    client = build_app([run]).server.test_client()
    times, size = [], 0
    for _ in range(rounds + 1):
        started = time.perf_counter()
        answer = client.get(f"/patterns/{address}", headers={"Host": "localhost"})
        times.append(1000 * (time.perf_counter() - started))
        size = len(answer.data)
        assert "X-Workbench" in answer.headers, answer.data
    return statistics.median(times[1:]), size


def server_table(n: int, rounds: int) -> list[str]:
    lines = ["| request | ms | kB |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        run, _ = write_patterns(Path(folder), n)
        middle = n // 2
        for name, address in (
            (f"atlas, {HEADS} heads", "atlas?run=run&layer=0"),
            ("whole pattern, coarse head", f"tile?run=run&layer=0&head=5&q0=0&q1={n}&k0=0&k1={n}"),
            ("whole pattern, finer head", f"tile?run=run&layer=0&head=0&q0=0&q1={n}&k0=0&k1={n}"),
            (
                "zoom to a quarter, finer head",
                f"tile?run=run&layer=0&head=0&q0={middle}&q1={n}&k0=0&k1={middle}",
            ),
            ("exact crop, 512 × 512", f"tile?run=run&layer=0&head=1&q0={middle}&q1={middle + 512}&k0=0&k1=512"),
        ):
            ms, size = request_time(run, address, rounds)
            lines.append(f"| {name} | {ms:.1f} | {size / 1e3:.0f} |")
    return lines


def scan_cost(tokens: int, n_sequences: int, rounds: int) -> tuple[dict[str, float], int]:
    """CPU seconds of scoring a probe with all default detectors and of its maps, and the maps' bytes."""
    from bench_record import SETTING, build

    m = open_model(build(tokens))
    probe = probes.copy_needle(SETTING["vocabulary"], tokens // 2, length=tokens, n_sequences=n_sequences)
    fit = [d for d in find_detectors(None) if isinstance(d, Detector) and d.fits(probe)]
    flagged = [Head(layer, 0) for layer in range(4)]
    measured: dict[str, Callable[[], object]] = {
        "scores": lambda: measure(m, probe, fit, far=Far(256)),
        "maps": lambda: arrays_of(record_maps(m, probe.tokens[0], far=256, fine=flagged), None),
    }
    seconds = cpu_seconds(measured, rounds)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "r", job={}, versions={})
        origin = Origin("r", "c", "ab" * 16, "cd" * 16, None, None, 1, 1, 1)
        maps = arrays_of(record_maps(m, probe.tokens[0], far=256, fine=flagged), None)
        size = store.commit_maps(origin, "0" * 32, maps, probe="p", probe_digest="d")
    return seconds, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    print(describe(), flush=True)
    lines = [
        describe(),
        "",
        f"## The server, {options.tokens:,} tokens",
        "",
        *server_table(options.tokens, 4 * options.rounds + 1),
    ]
    lines += ["", "## A scan with maps against one without (8 layers, 16 heads, 4 of them kept finer)", ""]
    lines += ["| probe | scores, CPU s | maps, CPU s | with / without | part, kB |", "|---|---|---|---|---|"]
    for tokens, n_sequences in ((96, 40), (512, 8), (2048, 2)):
        seconds, size = scan_cost(tokens, n_sequences, options.rounds)
        ratio = 1 + seconds["maps"] / seconds["scores"]
        probe = f"{n_sequences} × {tokens:,} tokens"
        lines.append(f"| {probe} | {seconds['scores']:.2f} | {seconds['maps']:.2f} | {ratio:.2f} | {size / 1e3:.0f} |")
    print("\n".join(lines))
    if options.write:
        keep(Path(__file__), "Patterns: server times, and what maps add to a scan", lines)


if __name__ == "__main__":
    main()
