"""How a benchmark times, what its numbers belong to (machine, versions, commit), and where they are kept."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch


def cpu_seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least process time of each way over interleaved rounds."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, function in ways.items():
            started = time.process_time()
            function()
            best[name] = min(best.get(name, 1e9), time.process_time() - started)
    return best


def device_milliseconds(ways: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median time of each way over interleaved rounds, after one that compiles; on CUDA with a cold cache."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    # Larger than any GPU's L2 cache, so that no way finds its inputs there.
    flushed = torch.empty(2**28 if device == "cuda" else 1, dtype=torch.int8, device=device)
    for round_ in range(rounds + 1):
        for name, function in ways.items():
            flushed.zero_()
            milliseconds = _on_cuda(function) if device == "cuda" else _on_this_clock(function)
            if round_:
                times[name].append(milliseconds)
    return {name: median(of_way) for name, of_way in times.items()}


def _on_cuda(function: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def _on_this_clock(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - started)


class Peak:
    """The most resident memory while the block runs, as Linux counts it: `extra`, in bytes over what it began with."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self._base = _status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.extra = _status_bytes("VmHWM") - self._base


def _status_bytes(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def describe() -> str:
    """One line: processor, torch, triton, commit."""
    with open("/proc/cpuinfo") as f:
        names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, timeout=60, check=False).stdout.strip() or "unknown"
    cpu = f"{names[0] if names else platform.machine()}, {len(names)} cores"
    return f"{cpu}; torch {torch.__version__}, triton {version('triton')}; commit {commit}"


def keep(script: Path, title: str, lines: list[str]) -> None:
    """Write benchmarks/results/<name>.md, named after the script."""
    path = script.parent / "results" / f"{script.stem.removeprefix('bench_')}.md"
    path.write_text(f"# {title}\n\n" + "\n".join(lines) + "\n")
