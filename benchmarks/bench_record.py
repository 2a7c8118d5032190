"""Cost of recording every detector against the plain sdpa forward: extra peak memory and CPU time, one thread.

`sdpa`: the plain forward; `record`: every row of every head; `sampled`: exact statistics of 512 rows, output by sdpa.
Each measurement is a fresh process: peak resident memory over the loaded model, and process time of one forward pass.
Rounds are interleaved and the minimum is reported, so that a noisy machine moves both alike.

    python benchmarks/bench_record.py [--tokens 4096] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time

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


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The largest resident memory while the block runs, sampled every millisecond."""

    def __enter__(self) -> Peak:
        self.base = self.most = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.most = max(self.most, resident())

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        self.extra = self.most - self.base


def one(way: str, tokens: int) -> dict[str, float]:
    import torch

    from workbench import probes
    from workbench.detectors import Detector, find_detectors, measure
    from workbench.hooks import open_model
    from workbench.kernels import Far

    model = build(tokens)
    probe = probes.copy_needle(SETTING["vocabulary"], tokens // 2, length=tokens, n_sequences=1)
    kept = torch.unique(probe.answer_rows[:, 1])
    m = open_model(model)
    detectors = [d for d in find_detectors(None) if isinstance(d, Detector)]

    def sdpa() -> None:
        with torch.no_grad():
            model(input_ids=probe.tokens, use_cache=False, logits_to_keep=kept)

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=WAYS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.tokens)))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(given.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--one", way, "--tokens", str(given.tokens)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            got = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
            best[way] = {k: min(v, best.get(way, got)[k]) for k, v in got.items()}
    ratio = {way: got["cpu_s"] / best["sdpa"]["cpu_s"] for way, got in best.items()}
    if given.json:
        print(json.dumps({"tokens": given.tokens, **SETTING, "ways": best, "cpu_ratios": ratio}))
        return
    print(f"tokens {given.tokens}, " + ", ".join(f"{k} {v}" for k, v in SETTING.items()))
    print(f"{'':8}{'extra peak MB':>15}{'CPU s':>10}{'ratio':>8}")
    for way, got in best.items():
        print(f"{way:8}{got['extra_mb']:15.0f}{got['cpu_s']:10.2f}{got['cpu_s'] / best['sdpa']['cpu_s']:8.2f}")


if __name__ == "__main__":
    main()
