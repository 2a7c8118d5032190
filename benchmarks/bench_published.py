"""Measure a published model: patterns of all heads beside TransformerLens, and generation under a plan.

CPU seconds of one thread, the least of interleaved rounds. The plan is by hand: every tenth key/value head is full.

    python benchmarks/bench_published.py [--model smollm2] [--tokens 101] [--prompt 4096] [--rounds 3] [--write]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from machine import cpu_seconds, describe, keep

import workbench as wb
from workbench.hooks import cache_bytes
from workbench.store.cache_sizes import bytes_under
from workbench.store.conversions import Window, softmax_heads

WINDOW, SINK, EVERY = 128, 4, 10


def patterns_table(m: wb.HookedModel, n_tokens: int, rounds: int) -> list[str]:
    """All heads' patterns of one sequence, by both, and how far they are apart."""
    tokens = wb.probes.repeats(m, n=(n_tokens - 1) // 2, n_sequences=1).tokens
    bridge: Any = m.bridge
    names = {info.hook_name for info in m.layers}

    def theirs() -> Any:
        with torch.no_grad():
            return bridge.run_with_cache(tokens, names_filter=lambda name: name in names)[1]

    cached, patterns = theirs(), m.patterns(tokens[0])
    apart = max(float((cached[info.hook_name][0] - patterns[info.index]).abs().max()) for info in m.layers)
    seconds = cpu_seconds({"workbench": lambda: m.patterns(tokens[0]), "TransformerLens": theirs}, rounds)
    ratio = seconds["workbench"] / seconds["TransformerLens"]
    n_heads = sum(info.n_heads for info in m.layers)
    return [
        f"## Patterns of all {n_heads} heads, {tokens.shape[1]} tokens",
        "",
        "| | CPU s |",
        "|---|---|",
        *(f"| {name} | {value:.2f} |" for name, value in seconds.items()),
        "",
        f"{ratio:.2f} times TransformerLens' time; the largest difference of a probability is {apart:.0e}.",
    ]


def generation_table(m: wb.HookedModel, n_tokens: int, rounds: int, *, n_new: int = 4) -> list[str]:
    """Greedy generation of the model itself and under the plan: time, cache, and the tokens without a cache."""
    heads = softmax_heads(m.layers)
    windowed = [head for i, head in enumerate(heads) if i % EVERY]
    prompt = wb.probes.repeated_ngrams(m, length=n_tokens, n_sequences=1).tokens
    settings: dict[str, Any] = {"attention_mask": torch.ones_like(prompt), "do_sample": False}

    def generate(new: int, *, is_planned: bool, **more: Any) -> Any:
        model: Any = m.model
        with m.restrict(windowed, WINDOW, SINK) if is_planned else nullcontext():
            return model.generate(prompt, max_new_tokens=new, return_dict_in_generate=True, **settings, **more)

    itself, planned = (generate(16, is_planned=is_planned) for is_planned in (False, True))
    without_cache = generate(n_new, is_planned=True, use_cache=False).sequences[0, n_tokens:]
    is_equal = torch.equal(planned.sequences[0, n_tokens : n_tokens + len(without_cache)], without_cache)
    ways: dict[str, Callable[[], Any]] = {
        "itself": lambda: generate(16, is_planned=False),
        "under the plan": lambda: generate(16, is_planned=True),
    }
    seconds = cpu_seconds(ways, rounds)
    caches = [cache_bytes(generated.past_key_values) for generated in (itself, planned)]
    n_kept = itself.past_key_values.get_seq_length()
    # Counted at 16 bits, and the cache is in the model's own dtype.
    counted = bytes_under(m.layers, dict.fromkeys(windowed, Window(WINDOW, SINK)), context=n_kept)
    counted *= m.model.dtype.itemsize / 2
    return [
        f"## Generation, {n_tokens:,} tokens and 16 more, {len(heads) - len(windowed)} of {len(heads)} heads full, "
        f"window {WINDOW}, sink {SINK}",
        "",
        "| | CPU s | cache, MB |",
        "|---|---|---|",
        *(
            f"| {name} | {value:.1f} | {n_bytes / 1e6:.1f} |"
            for (name, value), n_bytes in zip(seconds.items(), caches, strict=True)
        ),
        "",
        f"{seconds['under the plan'] / seconds['itself']:.2f} times the time; the cache is {caches[1] / counted:.3f} "
        f"times what the plan counts. The first {n_new} tokens are {'' if is_equal else 'NOT '}those of passes without "
        "a cache.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=101)
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["patterns", "generation"])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    m = wb.open_model(options.model)
    lines = [describe(), "", f"{m!r}", ""]
    if options.only != "generation":
        lines += [*patterns_table(m, options.tokens, options.rounds), ""]
        print("\n".join(lines), flush=True)
    if options.only != "patterns":
        lines += generation_table(m, options.prompt, options.rounds)
    print("\n".join(lines))
    if options.write:
        keep(Path(__file__), f"A published model: {m.name}", lines)


if __name__ == "__main__":
    main()
