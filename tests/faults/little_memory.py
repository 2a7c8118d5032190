"""Work in a process whose address space is limited: `python little_memory.py VERB MEGABYTES [PATH …]`."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Generator
from pathlib import Path

import torch

import workbench as wb
from workbench.kernels import CausalMask, Far, Request, SoftmaxLayer, tiles
from workbench.kernels.softmax.blockwise import blockwise_statistics

HEADS, KEYS, ROWS = 32, 8192, 128


@contextlib.contextmanager
def little_memory(megabytes: int) -> Generator[None]:
    """This process may take so much more than it has."""
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attention(megabytes: int) -> dict[str, object]:
    """Statistics of one layer in tiles that begin too large: the sizes tried, and what is equal to what."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, KEYS, 8, generator=generator) for heads in (HEADS, HEADS // 2, HEADS // 2))
    rows = torch.randperm(KEYS, generator=generator)[:ROWS].sort().values
    request = Request(entropy=True, distance=True, far=Far(300), rows=rows)
    whole = 4 * HEADS * KEYS * ROWS
    tried: list[int] = []
    cut = tiles.cut

    def noted(*args, tile_bytes, **kwargs):
        tried.append(tile_bytes)
        return cut(*args, tile_bytes=tile_bytes, **kwargs)

    def measured(tile_bytes):
        layer = SoftmaxLayer(q, k, CausalMask(KEYS), scale=0.35)
        out, found = blockwise_statistics(layer, v, request, tile_bytes=tile_bytes)
        return out, found.lse, found.mass, found.entropy, found.mean_distance, found.far_mass

    tiles.cut = noted
    with little_memory(megabytes):
        pressed = measured(whole)
    sizes = list(tried)
    alike, at_ease = measured(sizes[-1]), measured(whole)
    return {
        "sizes": sizes,
        "equal": all(torch.equal(a, b) for a, b in zip(pressed, alike, strict=True)),
        "error": max(float((a - b).norm() / b.norm()) for a, b in zip(pressed, at_ease, strict=True)),
    }


def scan(megabytes: int, series: str, out: str) -> dict[str, object]:
    """A scan of checkpoints of which one is too large: what failed, and which steps have scores."""
    wb.open_model(Path(series) / "step1")  # what the libraries take for themselves is not what the checkpoint takes
    with little_memory(megabytes):
        run = wb.scan(series, out, ["sink"], ["repeats:n=12,n_sequences=6"])
    failures = run.failures().loc[:, ["ckpt", "kind", "message"]].to_dict("records")
    return {"failures": failures, "steps": sorted(run.scores().step.unique().tolist())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    verb, megabytes, *rest = sys.argv[1:]
    print(json.dumps({"attention": attention, "scan": scan}[verb](int(megabytes), *rest)))
