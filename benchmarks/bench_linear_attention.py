"""Cost of linear attention, forward and backward: against softmax on a CPU, against the memory floor on a GPU.

All ways run interleaved in one process on one thread; the minimum of process time over the rounds is reported.

    python benchmarks/bench_linear_attention.py [--tokens 1024 2048 4096] [--rounds 3] [--write]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from machine import cpu_seconds, describe, device_milliseconds, keep

from workbench.analysis.state_precision import lightning_slopes
from workbench.kernels import ops

PEAK_BYTES = 4.3e12
GPU_SHAPE = (64, 128)


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """T × T linear attention, written out."""
    i = torch.arange(q.shape[2])
    distance = (i[:, None] - i).float()
    decay = torch.where(distance >= 0, torch.exp(-slopes[:, None, None] * distance), 0)
    return (q @ k.transpose(-1, -2) * decay) @ v


def ways(n: int, device: str, dtype: torch.dtype, heads: int, d: int) -> dict[str, Callable[[], object]]:
    q, k, v = (torch.nn.functional.silu(torch.randn(1, heads, n, d, device=device, dtype=dtype)) for _ in range(3))
    slopes = lightning_slopes(3, 80, 64)[:heads].float().to(device)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    def backward() -> None:
        out = ops.linear_attention(*leaves, log_decay=-slopes).out
        torch.autograd.grad(out, leaves, out.detach())

    def forward() -> object:
        with torch.no_grad():
            return ops.linear_attention(q, k, v, log_decay=-slopes)

    sdpa = torch.nn.functional.scaled_dot_product_attention
    calls: dict[str, Callable[[], object]] = {
        "sdpa": lambda: sdpa(q, k, v, is_causal=True),
        "forward": forward,
        "forward and backward": backward,
    }
    if device == "cpu" and n <= 4096:
        calls["eager"] = lambda: eager(q, k, v, slopes)
    if device == "cuda" and find_spec("fla") is not None:
        from fla.ops.simple_gla import chunk_simple_gla

        turned = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        calls["fla"] = lambda: chunk_simple_gla(*turned, g_gamma=-slopes, scale=1.0)
    return calls


def on_cpu(lengths: list[int], rounds: int) -> list[str]:
    lines = ["CPU, float32, 1 thread, B1 H2 D64; seconds of process time (ratio to softmax sdpa)", ""]
    for n in lengths:
        best = cpu_seconds(ways(n, "cpu", torch.float32, 2, 64), rounds)
        lines += [f"- T {n}: " + ", ".join(f"{x} {s:.3f} ({s / best['sdpa']:.2f}x)" for x, s in best.items())]
    return lines


def on_gpu(lengths: list[int], rounds: int) -> list[str]:
    if not torch.cuda.is_available():
        return ["CUDA: not run"]
    return list(on_device(lengths, rounds, "cuda", torch.bfloat16, GPU_SHAPE))


def on_device(
    lengths: list[int], rounds: int, device: str, dtype: torch.dtype, shape: tuple[int, int]
) -> Iterator[str]:
    """A line for each length, as soon as it is measured; the floor is that of the forward pass."""
    heads, d = shape
    yield f"{str(dtype).removeprefix('torch.')}, B1 H{heads} D{d}; ms (ratio to the floor of memory traffic)"
    yield ""
    for n in lengths:
        floor = 1e3 * 4 * dtype.itemsize * n * heads * d / PEAK_BYTES
        times = device_milliseconds(ways(n, device, dtype, heads, d), rounds, device)
        values = ", ".join(f"{x} {s:.3f} ({s / floor:.2f}x)" for x, s in times.items())
        yield f"- T {n}, floor {floor:.3f} ms: {values}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--gpu-tokens", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu-rounds", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        describe(),
        "",
        *on_cpu(options.tokens, options.rounds),
        "",
        *on_gpu(options.gpu_tokens, options.gpu_rounds),
    ]
    if options.write:
        keep(Path(__file__), "Cost of linear attention", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
