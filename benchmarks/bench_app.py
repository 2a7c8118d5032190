"""Measure the app on a run as large as the largest public series: times, bytes sent and memory.

48 layers of 64 heads, 154 checkpoints (Pythia's), 12 detectors: 5.7 million rows, with model-level numbers and the
patterns of two layers of 32 heads at 8,192 tokens, written once. The app runs in a process of its own; a headless
Chromium (WORKBENCH_CHROMIUM, or `chromium` on the path) opens it on the same machine. The first page is that of a fresh
process in a fresh browser that has been open for 1.5 s. A number is the median of `--rounds`, with the least and the
most beside it.

    python benchmarks/bench_app.py [--folder DIR] [--layers 48] [--heads 64] [--detectors 12] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_emergence import STEPS, TOKENS_PER_STEP, write
from bench_patterns import noise
from machine import describe, keep

from workbench.heads import Metric
from workbench.store import Origin, Store, canonical_digest

OVERVIEW_DRAWN = """() => {
  const plot = document.querySelector('#grid .js-plotly-plot');
  const drawn = id => document.querySelector(`#${id} .js-plotly-plot`)?.data?.length > 0;
  return plot && plot.broughtTo && drawn('emergence') && drawn('strips') && document.querySelector('.kpi');
}"""
STEP = """key => new Promise(done => {
  const plot = document.querySelector('#grid .js-plotly-plot');
  const [before, start] = [plot.broughtTo, performance.now()];
  const look = () => plot.broughtTo !== before
    ? requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)))
    : setTimeout(look, 1);
  document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
  look();
})"""
# Drag over the pattern, or double-click back to all of it; ends two frames after the canvas holds the other tile.
TILE = """() => new Promise(done => {
  const canvas = document.querySelector('#head-patterns canvas.map');
  const start = performance.now();
  new MutationObserver((_, observer) => {
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
  }).observe(canvas, { attributes: true });
  const box = canvas.getBoundingClientRect();
  const mouse = (type, x, y) => new MouseEvent(type, { clientX: box.left + x, clientY: box.top + y, bubbles: true });
  if (document.querySelector('#head-patterns .card button:not([disabled])')?.textContent === 'whole pattern') {
    canvas.dispatchEvent(mouse('dblclick', 5, 5));
  } else {
    canvas.dispatchEvent(mouse('mousedown', 10, box.height / 2));
    window.dispatchEvent(mouse('mouseup', box.width / 2, box.height - 10));
  }
})"""
# Show a head of another layer: the atlas of the layer, its pattern, its tokens and links.
ATLAS = """layer => new Promise(async done => {
  const start = performance.now();
  const source = { run: RUN, probe: 'repeats' };
  await window.workbenchPatterns.show('head-patterns', source, { layer, head: 3 }, () => {});
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
})"""
PATTERN_DRAWN = (
    "() => document.querySelector('#head-patterns canvas.atlas') && document.querySelector('#history .trace')"
)
N_STEPS, N_DRAWN = 20, 12
OPEN_MS = 1500
T = 8192
# Limits of the design; "" where it has none.
LIMITS: dict[str, float | str] = {
    "`workbench app` answers after, s": 2.0,
    "first page usable after, s": 2.5,
    "again, tables kept, s": 2.5,
    "checkpoint step, median ms": 100.0,
    "checkpoint step, slowest tenth ms": 100.0,
    "data of the first page as sent, MB": 1.0,
    "Head page, first time, s": "",
    f"tile of a pattern at T = {T}, ms": 100.0,
    "atlas of 32 heads with a pattern and its tokens, ms": 250.0,
    "memory of the app after the Overview, MB": 600.0,
    "memory of the app after all detectors and a Head page, MB": 600.0,
}


def enrich(folder: Path) -> None:
    """Add to a run of scores two model-level numbers at every checkpoint, and patterns at the last."""
    store, rng = Store.open(folder), np.random.default_rng(1)
    origins = [_origin(step) for step in STEPS]
    for origin in origins:
        name = origin.ckpt
        for metric, base in (("copy_accuracy", 0.5), ("loss_nats", 3.0)):
            values = [(d, base + rng.normal(0, 0.01)) for d in (None, 8, 32, 128)]
            rows = [Metric("repeats", metric, d, None, v, v, v, 512, v - 0.02, v + 0.02) for d, v in values]
            store.commit_metrics(origin, canonical_digest([name, metric]), rows, probe_digest="repeats", seq_len=256)
    store.commit_maps(origins[-1], "0" * 32, noise(T, n_layers=2), probe="repeats", probe_digest="repeats")


def _origin(step: int) -> Origin:
    """A checkpoint as `bench_emergence.write` names it."""
    name = f"step{step}"
    return Origin("bench", name, canonical_digest(name), "c" * 32, None, None, step, step, step * TOKENS_PER_STEP)


def start(folder: Path) -> tuple[subprocess.Popen[str], str, float]:
    """The app's process, its address, and the seconds until it answered."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "workbench.cli", "app", str(folder), "--port", "0", "--no-browser"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    late = threading.Timer(300, server.kill)
    late.start()
    address = re.search(r"http://\S+", server.stderr.readline())
    late.cancel()
    if address is None:
        server.kill()
        raise SystemExit(f"the app did not start:\n{server.communicate(timeout=30)[1]}")
    return server, address[0], time.perf_counter() - begun


def measure_pages(address: str, chromium: str, pid: int) -> dict[str, float]:
    """Times, bytes and memory of the Overview and of a Head page in a fresh browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox"])
        tab = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        tab.goto("about:blank")
        tab.wait_for_timeout(OPEN_MS)
        numbers = _overview(tab, address) | {"memory of the app after the Overview, MB": resident(pid)}
        numbers |= _head_page(tab, address)
        _every_detector(tab, address)
        browser.close()
    return numbers | {"memory of the app after all detectors and a Head page, MB": resident(pid)}


def _overview(tab: Any, address: str) -> dict[str, float]:
    sizes: list[int] = []

    def weigh(request: Any) -> None:
        if "_dash-update-component" in request.url:
            sizes.append(request.sizes()["responseBodySize"])

    tab.on("requestfinished", weigh)
    seconds: list[float] = []
    for _ in range(2):
        begun = time.perf_counter()
        tab.goto(address)
        tab.wait_for_function(OVERVIEW_DRAWN, timeout=120_000)
        seconds.append(time.perf_counter() - begun)
        tab.wait_for_timeout(3000)
    tab.remove_listener("requestfinished", weigh)
    times = [tab.evaluate(STEP, "[") for _ in range(N_STEPS)]
    return {
        "first page usable after, s": seconds[0],
        "again, tables kept, s": seconds[1],
        "checkpoint step, median ms": statistics.median(times),
        "checkpoint step, slowest tenth ms": float(np.quantile(times, 0.9)),
        "data of the first page as sent, MB": sum(sizes) / 2 / 1e6,
    }


def _head_page(tab: Any, address: str) -> dict[str, float]:
    begun = time.perf_counter()
    tab.goto(f"{address}head?head=L0H0")
    tab.wait_for_function(PATTERN_DRAWN, timeout=120_000)
    seconds = time.perf_counter() - begun
    tab.wait_for_timeout(1000)
    tab.locator("#head-patterns canvas.map").scroll_into_view_if_needed()
    tiles = [tab.evaluate(TILE) for _ in range(N_DRAWN)]
    run = tab.evaluate("() => new URLSearchParams(location.search).get('of')")
    atlases = [tab.evaluate(ATLAS.replace("RUN", repr(run)), i % 2) for i in range(N_DRAWN)]
    return {
        "Head page, first time, s": seconds,
        f"tile of a pattern at T = {T}, ms": statistics.median(tiles),
        "atlas of 32 heads with a pattern and its tokens, ms": statistics.median(atlases),
    }


def _every_detector(tab: Any, address: str) -> None:
    tab.goto(f"{address}overview")
    tab.wait_for_function(OVERVIEW_DRAWN, timeout=120_000)
    names = tab.evaluate("() => fetch('export/head.csv?page=head').then(answer => answer.text())").splitlines()
    for name in sorted({line.partition(",")[0] for line in names[1:]}):
        tab.goto(f"{address}overview?detector={name}")
        tab.wait_for_function(OVERVIEW_DRAWN, timeout=120_000)


def resident(pid: int) -> float:
    """The most memory that a process has held, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    return int(peak[1]) * 1024 / 1e6 if peak else float("nan")


def measure(folder: Path, chromium: str) -> dict[str, float]:
    """All numbers of one fresh process."""
    server, address, seconds = start(folder)
    try:
        return {"`workbench app` answers after, s": seconds, **measure_pages(address, chromium, server.pid)}
    finally:
        server.terminate()  # not SIGINT, which a process that `nohup` started ignores
        try:
            server.communicate(timeout=30)
        finally:
            server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--detectors", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    chromium = os.environ.get("WORKBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("there is no chromium on the path; set WORKBENCH_CHROMIUM to one")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "run"
        if not folder.exists():
            write(folder, rising=0.08, layers=options.layers, heads=options.heads, detectors=options.detectors)
        if not (folder / "maps").exists():
            enrich(folder)
        loads: list[float] = []
        rounds: list[dict[str, float]] = []
        for _ in range(options.rounds):
            loads.append(os.getloadavg()[0])
            rounds.append(measure(folder, chromium))
    size = f"{len(STEPS)} checkpoints x {options.layers * options.heads:,} heads x {options.detectors} detectors"
    lines = [
        describe(),
        "",
        f"{size}; one run in headless Chromium with software rendering, on the same machine; {options.rounds} fresh "
        f"processes; in each {N_STEPS} steps, {N_DRAWN} tiles and atlases. Load average before each: "
        f"{', '.join(f'{load:.1f}' for load in loads)}. Memory: the most resident, as Linux counts it.",
        "",
        "| what | median | least – most | limit |",
        "|---|---|---|---|",
        *(_row(name, [numbers[name] for numbers in rounds]) for name in LIMITS),
    ]
    print("\n".join(lines[2:]))
    if (options.layers, options.heads, options.detectors) == (48, 64, 12):
        keep(Path(__file__), "The app over a large series", lines)


def _row(name: str, values: list[float]) -> str:
    limit = LIMITS[name] and f"< {LIMITS[name]:g}"
    return f"| {name} | {statistics.median(values):.3g} | {min(values):.3g} – {max(values):.3g} | {limit} |"


if __name__ == "__main__":
    main()
