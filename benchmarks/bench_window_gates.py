"""Cost of ranking heads by window gates: time beside that of its passes, and memory at long context.

Time: a whole ranking of m nodes, ends included, over m × one forward and backward pass of the gated model, or of the
plain sdpa model, for models of one width with 8, 64 or 512 heads.
Memory: extra peak resident memory of one forward and backward pass at T tokens, each in a fresh process. The gated
model recomputes its layers in the backward pass, as it does at that length. The plain sdpa model has gradient
checkpointing and the gradient of its input alone.

    python benchmarks/bench_window_gates.py [--rounds 3] [--tokens 2048 8192] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from bench_record import Peak
from machine import cpu_seconds, describe, keep
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.hooks import open_model
from workbench.planning import Game
from workbench.planning.rankings.window_gates import gate_gradients, integrate
from workbench.probes import copy_needle

VOCABULARY, WIDTH, N_LAYERS, NODES, WINDOW, SINK = 512, 512, 4, 8, 64, 4
WAYS = ("plain", "gated")


def model_of(heads_per_layer: int, n_tokens: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=1408,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=heads_per_layer,
        num_key_value_heads=heads_per_layer,
        head_dim=WIDTH // heads_per_layer,
        max_position_embeddings=n_tokens,
    )
    return LlamaForCausalLM(config).eval()


def times(heads_per_layer: int, rounds: int, n_tokens: int = 256) -> str:
    """A row of the table of time."""
    model = model_of(heads_per_layer, n_tokens)
    probe = copy_needle(VOCABULARY, n_tokens // 2, length=n_tokens, n_sequences=2)
    game = Game(open_model(model), probe, WINDOW, sink=SINK)
    rows = torch.unique(probe.answer_rows[:, 1])

    def plain() -> None:
        x = model.get_input_embeddings()(probe.tokens).detach().requires_grad_()
        logits = model(inputs_embeds=x, use_cache=False, logits_to_keep=rows).logits
        torch.autograd.grad(logits.logsumexp(-1).sum(), x)

    ways = {
        "plain": plain,
        "pass": lambda: gate_gradients(game, game.batches[0], 0.5),
        "ranking": lambda: integrate(game, nodes=NODES),
    }
    seconds = cpu_seconds(ways, rounds)
    ratio, per_plain = seconds["ranking"] / NODES / seconds["pass"], seconds["ranking"] / NODES / seconds["plain"]
    return (
        f"| {N_LAYERS * heads_per_layer} | {seconds['plain']:.2f} | {seconds['pass']:.2f} | {seconds['ranking']:.2f} | "
        f"{ratio:.2f} | {per_plain:.1f} |"
    )


def peak(way: str, n_tokens: int) -> float:
    """Extra peak memory in MB of one forward and backward pass."""
    model = model_of(8, n_tokens)
    probe = copy_needle(VOCABULARY, n_tokens // 2, length=n_tokens, n_sequences=1)
    rows = torch.unique(probe.answer_rows[:, 1])
    for p in model.parameters():
        p.requires_grad_(False)
    game = Game(open_model(model), probe, WINDOW, sink=SINK)
    if way == "plain":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # or nothing is recomputed; Llama has no dropout
    with Peak() as memory:
        if way == "gated":
            gate_gradients(game, game.batches[0], 0.5)
        else:
            x = model.get_input_embeddings()(probe.tokens).detach().requires_grad_()
            logits = model(inputs_embeds=x, use_cache=False, logits_to_keep=rows).logits
            torch.autograd.grad(logits.logsumexp(-1).sum(), x)
    return memory.extra / 1e6


def peak_apart(way: str, n_tokens: int) -> float:
    command = [sys.executable, __file__, "--peak", way, "--tokens", str(n_tokens)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=environment, timeout=7200, check=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--peak", choices=WAYS)
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/window_gates.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(json.dumps(peak(args.peak, args.tokens[0])))
        return
    lines = [
        describe(),
        "",
        f"Llama of {N_LAYERS} layers, width {WIDTH}; window {WINDOW}, sink {SINK}, m = {NODES}; one thread, CPU "
        f"seconds, least of {args.rounds} interleaved rounds, on 2 × 256 tokens.",
        "",
        "| heads | plain pass | gated pass | ranking | ranking / (m × gated pass) | ranking / (m × plain pass) |",
        "|---|---|---|---|---|---|",
        *(times(heads, args.rounds) for heads in (2, 16, 128)),
        "",
        "Extra peak memory of one forward and backward pass, 32 heads, MB:",
        "",
        "| tokens | plain, layers recomputed | gated, layers recomputed |",
        "|---|---|---|",
    ]
    for n_tokens in args.tokens:
        plain, gated = (peak_apart(way, n_tokens) for way in WAYS)
        lines.append(f"| {n_tokens} | {plain:.0f} | {gated:.0f} |")
    print("\n".join(lines))
    if args.keep:
        keep(Path(__file__), "Cost of window gates", lines)


if __name__ == "__main__":
    main()
