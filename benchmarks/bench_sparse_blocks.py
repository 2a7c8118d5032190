"""Coverage and loss by number of blocks for all heads of a model: what sparse attention to selected blocks keeps.

For each rule and number of blocks: the share of the dense attention that lies in the selected blocks, head by head and
as quantiles over heads (`coverage.csv`), and the loss of the next token with every key/value head sparse at once, on
the same texts (`loss.csv`). The last rows of a text alone count for the loss, those with more blocks in their past than
the largest number, as for the coverage. Seconds are CPU time of this process.

    python benchmarks/bench_sparse_blocks.py --model smollm2 --text FILE --out FOLDER [--tokens 2048] [--texts 2]
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from machine import describe
from torch.nn.functional import cross_entropy

import workbench as wb
from workbench.hooks import HookedModel
from workbench.planning import block_coverage
from workbench.store.conversions import softmax_heads


def losses(m: HookedModel, tokens: torch.Tensor, first: int) -> float:
    """Nats per token from position `first` on."""
    with torch.no_grad():
        logits = m.model(tokens, use_cache=False).logits[:, first:-1].float()
    return float(cross_entropy(logits.flatten(0, 1), tokens[:, first + 1 :].flatten()))


def main() -> None:
    """Measure, print and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--sink-blocks", type=int, default=1)
    parser.add_argument("--numbers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--rules", nargs="+", default=["oracle", "mean", "minmax"])
    args = parser.parse_args()
    started = time.process_time()
    m = wb.open_model(args.model)
    text = wb.probes.text_file(m, args.text, length=args.tokens, n_sequences=args.texts)
    numbers, heads = tuple(args.numbers), softmax_heads([i for i in m.layers if i.kind == "full"])
    tables = [
        block_coverage(m, row[None], numbers, block=args.block, sink_blocks=args.sink_blocks, rules=args.rules)
        for row in text.tokens
    ]
    coverage = pd.concat(tables).groupby(["layer", "kv_head", "rule", "n_blocks"], as_index=False)
    coverage = coverage.agg(coverage=("coverage", "mean"), n_rows=("n_rows", "sum"))
    covered_s = time.process_time() - started
    rows = []
    settings = [None, *((rule, number) for rule in args.rules for number in numbers)]
    for setting in settings:
        begun = time.process_time()
        to = None if setting is None else wb.SparseAttention(args.block, setting[1], args.sink_blocks, setting[0])
        with nullcontext() if to is None else m.sparsify(dict.fromkeys(heads, to)):
            nats = [losses(m, row[None], max(numbers) * args.block) for row in text.tokens]
        rule, number = ("dense", 0) if setting is None else setting
        rows.append((rule, number, sum(nats) / len(nats), time.process_time() - begun))
        print(*rows[-1], flush=True)
    loss = pd.DataFrame(rows, columns=["rule", "n_blocks", "nats", "cpu_seconds"])
    loss["lost_nats"] = loss.nats - loss.nats.iloc[0]
    args.out.mkdir(parents=True, exist_ok=True)
    coverage.to_csv(args.out / "coverage.csv", index=False)
    loss.to_csv(args.out / "loss.csv", index=False)
    quantiles = coverage.groupby(["rule", "n_blocks"]).coverage.describe(percentiles=[0.05, 0.5, 0.95])
    print(
        describe(), f"{len(heads)} heads, {args.texts} texts of {args.tokens} tokens, blocks of {args.block}", sep="\n"
    )
    print(quantiles.to_string(), loss.to_string(index=False), sep="\n")
    print(f"coverage {covered_s:.0f} s, in all {time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
