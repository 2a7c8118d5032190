"""Which ranking keeps the right heads? Train small models that recall and copy; window all heads but the top k.

Three layers of six heads, 96 tokens: six key-value pairs asked for at the end, nine words said again 11 to 15 tokens
later, filler between. A window of 8 and a sink of 1 cut both off. Heads are ranked on 16 sequences; the curve is of 64
others: the share of the loss gap that is back with the top k heads, its mean over k from 0 to 18 (the area). Every
number is the mean over models of different seeds, with the standard deviation over them.

    python benchmarks/bench_rankings.py [--seeds 3] [--steps 1200] [--models FOLDER] [--keep]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe, keep
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.hooks import open_model
from workbench.planning import METHODS, Game, area_under, first_at, rank
from workbench.planning.curves import keep_curve, order_of
from workbench.planning.rankings import random_order, shuffled_in_layers
from workbench.pretrain import Language
from workbench.pretrain.muon import Muon
from workbench.probes import Probe, make_probe

LENGTH, N_PAIRS, SPAN, WINDOW, SINK = 96, 6, 9, 8, 1
N_KEYS = N_VALUES = 24
FIRST_KEY = 40
VOCABULARY = FIRST_KEY + N_KEYS + N_VALUES
RANDOM_ORDERS = 20


def sequences(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, and (sequence, row) of the answers: of recall, and of the copy once three words of it are said."""
    language = Language()
    tokens = language.backbone(n, LENGTH, rng)
    order = rng.random((n, N_KEYS)).argsort(1)[:, :N_PAIRS]
    keys, values = FIRST_KEY + order, FIRST_KEY + N_KEYS + rng.integers(N_VALUES, size=(n, N_PAIRS))
    tokens[:, 1 : 1 + 2 * N_PAIRS] = np.stack([keys, values], -1).reshape(n, -1)
    asked = rng.random((n, N_PAIRS)).argsort(1)
    rows = np.arange(n)[:, None]
    tokens[:, LENGTH - 2 * N_PAIRS :] = np.stack([keys[rows, asked], values[rows, asked]], -1).reshape(n, -1)
    back = rng.integers(11, 16, n)
    start = 1 + 2 * N_PAIRS + rng.integers(LENGTH - 4 * N_PAIRS - SPAN - 16, size=n)
    place = start[:, None] + np.arange(SPAN)
    tokens[rows, place + back[:, None]] = tokens[rows, place]
    recall = np.broadcast_to(LENGTH - 2 * N_PAIRS + 2 * np.arange(N_PAIRS), (n, N_PAIRS))
    return tokens, recall, (place + back[:, None])[:, 2:-1]


def probe(n: int, seed: int) -> Probe:
    tokens, *rows = sequences(n, np.random.default_rng([1, seed]))
    answers = [(i, int(row)) for part in rows for i in range(n) for row in part[i]]
    return make_probe(f"recall_and_copy_{seed}", torch.from_numpy(tokens), answer_rows=torch.tensor(answers))


def trained(seed: int, steps: int, folder: Path) -> LlamaForCausalLM:
    """The model of a seed, from the folder if it is there."""
    path = folder / f"seed{seed}-steps{steps}"
    if path.exists():
        return LlamaForCausalLM.from_pretrained(path)
    torch.manual_seed(seed)
    rng = np.random.default_rng([0, seed])
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # as the demo's models begin: what writes to the residual stream at zero
        for name, weight in model.named_parameters():
            if name.removesuffix(".weight").endswith(("o_proj", "down_proj", "lm_head")):
                weight.zero_()
            elif weight.ndim == 2:
                weight.normal_(std=1.0 if "embed" in name else weight.shape[-1] ** -0.5)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "layers" not in name]
    optimisers = [Muon(matrices, 1e-2), torch.optim.AdamW(others, 1e-2, betas=(0.9, 0.95), weight_decay=0.1)]
    rates = [1e-2, 1e-2]
    for step in range(steps):
        scale = min(1.0, (step + 1) / 20) * (0.1 + 0.45 * (1 + np.cos(np.pi * step / steps)))
        for optimiser, rate in zip(optimisers, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * scale
        # Half of it the demo's documents, which copy so much that induction heads form early.
        mixed = [sequences(16, rng)[0], Language().documents(16, LENGTH, rng)]
        tokens = torch.from_numpy(np.concatenate(mixed))
        loss = cross_entropy(model(input_ids=tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if step % 100 == 0:
            print(f"seed {seed} step {step} loss {loss:.3f}", file=sys.stderr)
    model.eval().save_pretrained(path)
    return model


def judged(model: LlamaForCausalLM, objective: str) -> tuple[dict[str, tuple[float, float, float]], str]:
    """By method: area, heads kept from which on 90 % is back (NaN: never), seconds of ranking; and what the gap is."""
    m = open_model(model)
    game = Game(m, probe(16, 0), WINDOW, sink=SINK, objective=objective)
    held_out = Game(m, probe(64, 1), WINDOW, sink=SINK)
    n = len(game.heads)

    def curve(ranking) -> tuple[float, float]:
        points = keep_curve("", order_of(ranking, "head"), [held_out], counts=range(n + 1), context=LENGTH)
        enough = first_at(points, 0.9)
        return area_under(points), float("nan") if enough is None else enough

    found: dict[str, tuple[float, float, float]] = {}
    for name in METHODS if objective == "loss" else ("window_gates", "leave_one_windowed", "restore_one"):
        started = time.perf_counter()
        ranking = rank(game, name)
        seconds = time.perf_counter() - started
        several = [ranking]
        if name == "random":
            several = [random_order(game.heads, seed) for seed in range(RANDOM_ORDERS)]
        if name == "random_in_layer":
            gates = rank(game, "window_gates")
            several = [shuffled_in_layers(gates, seed) for seed in range(RANDOM_ORDERS)]
        curves = [curve(r) for r in several]
        area, enough = (float(np.mean([c[i] for c in curves])) for i in (0, 1))
        found[name if objective == "loss" else f"{name}, kl"] = area, enough, seconds
        if ranking.evidence.get("completeness_error") is not None:
            print(
                f"{name} {objective} completeness error {ranking.evidence['completeness_error']:.2e}", file=sys.stderr
            )
    full, windowed = held_out.outcome(), held_out.outcome(game.heads)
    return (
        found,
        f"loss {full.nats:.3f} full, {windowed.nats:.3f} windowed; right {full.accuracy:.2f}, {windowed.accuracy:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--models", type=Path, help="where trained models are kept for another run")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/rankings.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.models or Path(tempfile.mkdtemp())
    by_seed, told = [], []
    for seed in range(given.seeds):
        model = trained(seed, given.steps, folder)
        by_loss, gap = judged(model, "loss")
        by_seed.append({**by_loss, **judged(model, "kl")[0]})
        told.append(f"- model {seed}: {gap}")
    lines = [
        "| ranking | area | sd | heads for 90 % | area − window_gates, of each model | seconds |",
        "|---|---|---|---|---|---|",
    ]
    best = sorted(by_seed[0], key=lambda name: -np.mean([found[name][0] for found in by_seed]))
    for name in best:
        area, enough, seconds = (np.array([found[name][i] for found in by_seed]) for i in range(3))
        behind = area - [found["window_gates"][0] for found in by_seed]
        differences = ", ".join(f"{x:+.3f}" for x in behind)
        sd = area.std(ddof=1) if len(area) > 1 else float("nan")
        lines.append(
            f"| `{name}` | {area.mean():.3f} | {sd:.3f} | {enough.mean():.1f} | {differences} | {seconds.mean():.1f} |"
        )
    about = [
        describe(),
        "",
        f"`python benchmarks/bench_rankings.py --seeds {given.seeds} --steps {given.steps}`",
        "",
        *told,
        "",
    ]
    print("\n".join([*about, *lines]))
    if given.keep:
        keep(Path(__file__), "Which ranking keeps the right heads", [*about, *lines])


if __name__ == "__main__":
    main()
