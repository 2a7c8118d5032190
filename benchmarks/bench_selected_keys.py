"""Cost of statistics of a layer that selects blocks of keys, reading the selected keys alone, against reading all.

MiniMax-M3's shape: 64 query heads in 4 groups, each of which selects 16 blocks of 128 keys per row, the row's own among
them; heads of 128 channels. Groups are recorded one at a time and cost the same, so one of them is timed. Both ways run
interleaved in one process on one thread; the minimum of process time over the rounds is reported.

Rows of a tile share its keys, so what is saved depends on how much their selections agree. `clustered`: blocks drift
with the row, and noise makes rows differ as much as they do in SmolLM2-135M on English text where each row selects the
blocks that hold its highest scores: row to row 0.84 of the blocks stay (0.71 to 0.95 over five layers and three groups
at 8,192 tokens), and 16 rows select 26 blocks together (19 to 36, of 48 to 62). `random`: every row selects for itself,
which is the worst case.

    python benchmarks/bench_selected_keys.py [--tokens 4096 16384] [--rounds 2] [--write]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import cpu_seconds, describe, device_milliseconds, keep

from workbench.kernels import CausalMask, Far, Hidden, Request, SelectedMask, SoftmaxLayer
from workbench.kernels.key_intervals import intervals
from workbench.kernels.softmax.blockwise import blockwise_statistics
from workbench.kernels.softmax.triton_launch import triton_profile

HEADS, CHANNELS, BLOCK, SELECTED = 16, 128, 128, 16
# Rows over which the clustered blocks change, and the size of what differs between rows, for 0.84 to stay.
DRIFT = 256
NOISE = {4096: 0.6, 16384: 0.2}
TILE_ROWS = 16


@dataclass(frozen=True, slots=True)
class EveryKey:
    """A mask whose tiles have a column for every key that a row may see, whatever is selected."""

    mask: SelectedMask

    def key_range(self, rows: torch.Tensor) -> tuple[int, int]:
        return self.mask.key_range(rows)

    def hidden(self, batch: slice, rows: torch.Tensor, keys: tuple[int, int]) -> list[Hidden]:
        return self.mask.hidden(batch, rows, keys)


def selected_blocks(n: int, *, is_clustered: bool, generator: torch.Generator) -> torch.Tensor:
    """The blocks of every row, the row's own among them; rows with fewer in their past select some that they hide."""
    n_blocks, row = n // BLOCK, torch.arange(n)
    score = torch.randn(n, n_blocks, generator=generator)
    if is_clustered:
        knots = torch.randn(n // DRIFT + 2, n_blocks, generator=generator)
        at, part = row // DRIFT, (row % DRIFT / DRIFT)[:, None]
        drift = (knots[at] * (1 - part) + knots[at + 1] * part) / (part**2 + (1 - part) ** 2).sqrt()
        score = drift + NOISE.get(n, 0.2) * score
    score.masked_fill_(torch.arange(n_blocks) > row[:, None] // BLOCK, -torch.inf)
    score[row, row // BLOCK] = torch.inf
    return score.topk(min(SELECTED, n_blocks), -1).indices[None].int()


def described(selected: torch.Tensor, n: int) -> str:
    """How far the selections of neighbouring rows agree, over the later half of the rows."""
    n_blocks, own = n // BLOCK, torch.arange(n)[:, None] // BLOCK
    marked = torch.zeros(n, n_blocks, dtype=torch.bool).scatter_(1, selected[0].long(), True)
    marked = (marked & (torch.arange(n_blocks) <= own))[n // 2 :]
    stays = (marked[1:] & marked[:-1]).sum() / marked[1:].sum()
    together = marked.unflatten(0, (-1, TILE_ROWS)).any(1).sum(-1).float().mean()
    seen = (own[n // 2 :] + 1).float().mean()
    return f"{stays:.2f} stay from row to row, {TILE_ROWS} rows select {together:.1f} of {seen:.1f} blocks"


def on_cpu(lengths: list[int], rounds: int) -> list[str]:
    lines = [f"CPU, float32, 1 thread, B1 H{HEADS} Hkv1 D{CHANNELS}: one group of heads; seconds of process time", ""]
    generator = torch.Generator().manual_seed(0)
    request = Request(entropy=True, distance=True, far=Far(256))
    for n in lengths:
        q, k, v = (torch.randn(1, h, n, CHANNELS, generator=generator) for h in (HEADS, 1, 1))
        for is_clustered in (True, False):
            selected = selected_blocks(n, is_clustered=is_clustered, generator=generator)
            mask = SelectedMask(CausalMask(n), selected, BLOCK)
            every = SoftmaxLayer(q, k, EveryKey(mask), CHANNELS**-0.5)
            alone = SoftmaxLayer(q, k, mask, CHANNELS**-0.5)
            found = {}

            def recorded(name: str, layer: SoftmaxLayer, found: dict = found, v: torch.Tensor = v) -> None:
                found[name] = blockwise_statistics(layer, v, request)

            best = cpu_seconds(
                {
                    "every key": lambda recorded=recorded, layer=every: recorded("every", layer),
                    "selected keys": lambda recorded=recorded, layer=alone: recorded("alone", layer),
                },
                rounds if n > 8192 else 2 * rounds,
            )
            times = ", ".join(f"{x} {s:.2f}" for x, s in best.items())
            ratio = best["every key"] / best["selected keys"]
            lines.append(
                f"- T {n}, {'clustered' if is_clustered else 'random'} ({described(selected, n)}): {times}, "
                f"{ratio:.2f} times as fast; outputs differ by {difference(found):.0e} at most"
            )
            print(lines[-1], flush=True)
    return lines


def difference(found: dict) -> float:
    """The largest difference between the two ways' outputs and entropies."""
    (out, every), (other_out, alone) = found["every"], found["alone"]
    return float(torch.maximum((out - other_out).abs().max(), (every.entropy - alone.entropy).abs().max()))


def on_gpu(lengths: list[int], rounds: int) -> list[str]:
    if not torch.cuda.is_available():
        return ["CUDA: not run"]
    lines = [f"CUDA, bfloat16, B1 H{HEADS} Hkv1 D{CHANNELS}: one group of heads; ms", ""]
    generator, request = torch.Generator().manual_seed(0), Request(entropy=True, distance=True, windows=(256,))
    for n in lengths:
        q, k, v = (torch.randn(1, h, n, CHANNELS, device="cuda", dtype=torch.bfloat16) for h in (HEADS, 1, 1))
        seen = intervals(n, n, device="cuda")
        ways: dict[str, Callable[[], object]] = {
            "every key, none hidden": lambda q=q, k=k, v=v, seen=seen: triton_profile(
                SoftmaxLayer(q, k, seen, CHANNELS**-0.5), v, request
            )
        }
        for is_clustered in (True, False):
            selected = selected_blocks(n, is_clustered=is_clustered, generator=generator).cuda()
            layer = SoftmaxLayer(q, k, SelectedMask(seen, selected, BLOCK), CHANNELS**-0.5)
            name = "clustered" if is_clustered else "random"
            ways[name] = lambda layer=layer, v=v: triton_profile(layer, v, request)
        times = device_milliseconds(ways, rounds, "cuda")
        lines.append(f"- T {n}: " + ", ".join(f"{x} {s:.3f}" for x, s in times.items()))
    return lines


def main() -> None:
    """Measure, print and, if asked, keep the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--gpu-tokens", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--rounds", type=int, default=2, help="twice as many up to 8,192 tokens")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        lines = [describe(), "", *on_cpu(options.tokens, options.rounds), "", *on_gpu(options.gpu_tokens, 20)]
    if options.write:
        keep(Path(__file__), "Cost of statistics of selected keys", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
