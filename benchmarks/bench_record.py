"""Cost of recording every detector against the plain sdpa forward: extra peak memory and CPU time, one thread.

`sdpa`: the plain forward; `record`: every row of every head; `sampled`: exact statistics of 512 rows, output by sdpa.
Each measurement is a fresh process: peak resident memory over the loaded model, and process time of one forward pass.
Rounds are interleaved and the minimum is reported, so that a noisy machine moves both alike.

    python benchmarks/bench_record.py [--tokens 4096 16384] [--rounds 3] [--json] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from machine import Peak, describe, keep

SETTING = {"n_layers": 8, "n_heads": 16, "n_kv_heads": 4, "d_model": 512, "d_ff": 1408, "vocabulary": 512}
SAMPLED_ROWS = 512
WAYS = ("sdpa", "record", "sampled")


def build(tokens: int):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SETTING["vocabulary"],
        hidden_size=SETTING["d_model"],
        intermediate_size=SETTING["d_ff"],
        num_hidden_layers=SETTING["n_layers"],
        num_attention_heads=SETTING["n_heads"],
        num_key_value_heads=SETTING["n_kv_heads"],
        max_position_embeddings=2 * tokens,
    )
    return LlamaForCausalLM(config).eval()


def measure_once(way: str, tokens: int) -> dict[str, float]:
    import torch

    from workbench import probes
    from workbench.detectors import Detector, find_detectors, measure
    from workbench.hooks import open_model
    from workbench.kernels import Far

    model = build(tokens)
    probe = probes.copy_needle(SETTING["vocabulary"], tokens // 2, length=tokens, n_sequences=1)
    answer_rows = torch.unique(probe.answer_rows[:, 1])
    m = open_model(model)
    detectors = [d for d in find_detectors(None) if isinstance(d, Detector)]

    def sdpa() -> None:
        with torch.no_grad():
            model(input_ids=probe.tokens, use_cache=False, logits_to_keep=answer_rows)

    def record() -> None:
        measure(m, probe, detectors, far=Far(256))

    def sampled() -> None:
        measure(m, probe, detectors, far=Far(256), rows=SAMPLED_ROWS)

    run = {"sdpa": sdpa, "record": record, "sampled": sampled}[way]
    with Peak() as peak:
        started = time.process_time()
        run()
        seconds = time.process_time() - started
    return {"extra_mb": peak.extra / 1e6, "cpu_s": seconds}


def measured(tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """The least of each number over interleaved rounds, each measurement in its own process."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--one", way, "--tokens", str(tokens)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            numbers = json.loads(
                subprocess.run(command, env=environment, timeout=7200, check=True, capture_output=True).stdout
            )
            best[way] = {k: min(v, best.get(way, numbers)[k]) for k, v in numbers.items()}
    return {way: {**numbers, "ratio": numbers["cpu_s"] / best["sdpa"]["cpu_s"]} for way, numbers in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    parser.add_argument("--one", choices=WAYS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_once(arguments.one, arguments.tokens[0])))
        return
    results = {tokens: measured(tokens, arguments.rounds) for tokens in arguments.tokens}
    if arguments.json:
        print(json.dumps([{"tokens": tokens, **SETTING, "ways": ways} for tokens, ways in results.items()]))
        return
    lines = [
        describe(),
        "",
        f"1 thread, float32; {arguments.rounds} interleaved rounds, least; "
        + ", ".join(f"{k} {v}" for k, v in SETTING.items()),
        "",
        "| tokens | way | extra peak MB | CPU s | ratio to sdpa |",
        "|---|---|---|---|---|",
    ]
    for tokens, ways in results.items():
        lines += [
            f"| {tokens} | {w} | {x['extra_mb']:.0f} | {x['cpu_s']:.2f} | {x['ratio']:.2f} |" for w, x in ways.items()
        ]
    if arguments.write:
        keep(Path(__file__), "Cost of recording every detector", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
