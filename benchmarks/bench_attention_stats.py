"""Cost of attention statistics against attention without them: ratios on a CPU, kernels against floors on a GPU.

All ways run interleaved in one process on one thread; the minimum of process time over the rounds is reported. Peak
memory is that of one call in a process of its own, over the inputs.

    python benchmarks/bench_attention_stats.py [--tokens 1024 2048 4096 8192 16384] [--rounds 3] [--write]
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from machine import Peak, cpu_seconds, describe, device_milliseconds, keep

from workbench.kernels import Request, SoftmaxLayer, ops
from workbench.kernels.key_intervals import intervals

PEAK_FLOPS = 790e12
WINDOWS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
# Heads, key/value heads, channels; the fewer, the more a call costs beside its products.
CPU_SHAPES = ((4, 2, 64), (2, 1, 64))
GPU_SHAPE = (32, 8, 128)
PEAK_WAYS = ("sdpa", "output and lse", "all statistics")


def everything(tokens: torch.Tensor) -> Request:
    """All statistics at once; tags as for induction, on tokens of a vocabulary of 512."""
    tags = {"query_tags": tokens[None], "key_tags": tokens.roll(1)[None]}
    return Request(entropy=True, top=True, distance=True, windows=WINDOWS, **tags)


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tokens: torch.Tensor | None = None) -> object:
    """T × T attention, written out."""
    n = q.shape[2]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    pattern = scores.softmax(-1)
    out = pattern @ v
    if tokens is None:
        return out
    distance = torch.arange(n)[:, None] - torch.arange(n)
    far = [(pattern * (distance >= w)).sum(-1) for w in WINDOWS]
    tagged = (pattern * (tokens[:, None] == tokens.roll(1))).sum(-1)
    return out, torch.special.entr(pattern).sum(-1), pattern.max(-1), (pattern * distance).sum(-1), far, tagged


def ways(n: int, device: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> dict[str, Callable[[], object]]:
    heads, kv, d = shape
    q, k, v = (torch.randn(1, h, n, d, device=device, dtype=dtype) for h in (heads, kv, kv))
    layer = SoftmaxLayer(q, k, intervals(n, n, device=device), d**-0.5)
    tokens = torch.randint(512, (n,), device=device, dtype=torch.int32)
    every_statistic = everything(tokens)
    lse = torch.full((1, heads, n), math.log(n), device=device)  # arbitrary; the lse of a run would leave memory behind
    sdpa = torch.nn.functional.scaled_dot_product_attention
    calls: dict[str, Callable[[], object]] = {
        "sdpa": lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True),
        "output and lse": lambda: ops.attention_profile(layer, v, Request()),
        "all statistics": lambda: ops.attention_profile(layer, v, every_statistic),
        "statistics, no output": lambda: ops.attention_profile(layer, None, every_statistic),
        "column sums": lambda: ops.attention_column_sums(layer, lse),
    }
    if device == "cpu" and n <= 4096:
        calls["eager"] = lambda: eager(q, k, v)
        calls["eager and statistics"] = lambda: eager(q, k, v, tokens)
    return calls


def on_cpu(lengths: list[int], rounds: int) -> list[str]:
    lines = ["CPU, float32, 1 thread, B1 D64; seconds of process time (ratio to sdpa)"]
    for shape in CPU_SHAPES:
        lines += ["", f"H{shape[0]} Hkv{shape[1]}:", ""]
        for n in lengths:
            # A short call is easily disturbed: the least of many counts.
            best = cpu_seconds(ways(n, "cpu", torch.float32, shape), rounds * max(1, 8192 // n))
            lines += [f"- T {n}: " + ", ".join(f"{x} {s:.3f} ({s / best['sdpa']:.2f}x)" for x, s in best.items())]
    n = max(lengths)
    peaks = [f"{way} {peak_in_own_process(way, n) / 1e6:.0f}" for way in PEAK_WAYS]
    return [*lines, "", f"Extra peak memory at T {n}, B1 H4 Hkv2 D64, MB: " + ", ".join(peaks)]


def peak_in_own_process(way: str, n: int) -> int:
    """Extra peak memory of one call, in bytes."""
    command = [sys.executable, __file__, "--peak", way, "--tokens", str(n)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return int(
        subprocess.run(command, env=environment, timeout=7200, check=True, capture_output=True, text=True).stdout
    )


def peak(way: str, n: int) -> int:
    """The same, in this process; a short call comes first, so that one-time loading is not counted."""
    ways(256, "cpu", torch.float32, CPU_SHAPES[0])[way]()
    run = ways(n, "cpu", torch.float32, CPU_SHAPES[0])[way]
    with Peak() as memory:
        run()
    return memory.extra


def on_gpu(lengths: list[int], rounds: int) -> list[str]:
    if not torch.cuda.is_available():
        return ["CUDA: not run"]
    return list(on_device(lengths, rounds, "cuda", torch.bfloat16, GPU_SHAPE))


def on_device(
    lengths: list[int], rounds: int, device: str, dtype: torch.dtype, shape: tuple[int, int, int]
) -> Iterator[str]:
    """A line for each length, as soon as it is measured."""
    heads, kv, d = shape
    yield f"{str(dtype).removeprefix('torch.')}, B1 H{heads} Hkv{kv} D{d} causal; ms (ratio to sdpa, to output and lse)"
    yield ""
    for n in lengths:
        times = device_milliseconds(ways(n, device, dtype, shape), rounds, device)
        floor = 1e3 * 4 * d * heads * n * n / 2 / PEAK_FLOPS
        values = (
            f"{x} {s:.3f} ({s / times['sdpa']:.2f}x, {s / times['output and lse']:.2f}x)" for x, s in times.items()
        )
        yield f"- T {n}, floor {floor:.3f} ms: " + ", ".join(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--gpu-tokens", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu-rounds", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    parser.add_argument("--peak", choices=PEAK_WAYS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(peak(options.peak, options.tokens[0]))
        return
    with torch.no_grad():
        lines = [
            describe(),
            "",
            *on_cpu(options.tokens, options.rounds),
            "",
            *on_gpu(options.gpu_tokens, options.gpu_rounds),
        ]
    if options.write:
        keep(Path(__file__), "Cost of attention statistics", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
