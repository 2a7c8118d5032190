"""What a benchmark's numbers belong to: machine, versions and commit; and where they are kept."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def describe() -> str:
    """One line: processor, torch, triton, commit."""
    with open("/proc/cpuinfo") as f:
        names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    cpu = f"{names[0] if names else platform.machine()}, {len(names)} cores"
    return f"{cpu}; torch {torch.__version__}, triton {version('triton')}; commit {commit}"


def keep(script: Path, title: str, lines: list[str]) -> None:
    """Write benchmarks/results/<name>.md, named after the script."""
    path = script.parent / "results" / f"{script.stem.removeprefix('bench_')}.md"
    path.write_text(f"# {title}\n\n" + "\n".join(lines) + "\n")
