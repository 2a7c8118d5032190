"""Which ranking keeps the right heads? The demo's full-attention model from several seeds; window all but the top k.

Two layers of four heads, 64 tokens; needles copied over 24, 32 and 40 tokens, a window of 8 tokens and no sink.
Heads are ranked on 48 sequences; the curve is of 96 others: how much of the loss gap is back with the top k heads.
The area is its mean over k from 0 to 8. Every number is the mean over models, with the standard deviation over them;
random orders are means over 20 of each model.

    python benchmarks/bench_rankings.py [--seeds 3] [--windows 8 16] [--quick] [--models FOLDER] [--keep]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from machine import describe, keep

from workbench.hooks import HookedModel, open_model
from workbench.planning import METHODS, Game, Ranking, area_under, first_at, rank
from workbench.planning.curves import keep_curve, order_of
from workbench.planning.rankings import random_order, shuffled_in_layers
from workbench.pretrain import Language, pretrain_run, recipe
from workbench.probes import Probe, Vocabulary, copy_needle

LENGTH, DISTANCES = 64, (24, 32, 40)
RANDOM_ORDERS = 20
WITHOUT_LABELS = ("window_gates", "leave_one_windowed", "restore_one", "gradient_at_zero")


class Found(NamedTuple):
    """One ranking of one model: area, heads kept from which on 90 % is back, seconds that ranking took."""

    area: float
    enough: float
    seconds: float


def needles(n_sequences: int, seed: int) -> Probe:
    language = Language()
    words = Vocabulary(torch.tensor(language.words), bos=language.bos)
    filler = language.backbone(n_sequences * len(DISTANCES), LENGTH, np.random.default_rng([1, seed]))
    return copy_needle(
        words, DISTANCES, n_sequences=n_sequences, filler=torch.from_numpy(filler), seed=seed, name=f"needles_{seed}"
    )


def judged(m: HookedModel, window: int) -> tuple[dict[str, Found], str]:
    """What every ranking keeps, and what there is to keep."""
    held_out = Game(m, needles(32, 1), window)
    found: dict[str, Found] = {}
    for objective, names in (("loss", tuple(METHODS)), ("kl", WITHOUT_LABELS)):
        game = Game(m, needles(16, 0), window, objective=objective)
        for name in names:
            started = time.process_time()
            ranking = rank(game, name)
            seconds = time.process_time() - started
            curves = [area(r, held_out) for r in several(ranking, game)]
            mean_area, enough = (float(np.mean([c[i] for c in curves])) for i in (0, 1))
            found[name if objective == "loss" else f"{name}, kl"] = Found(mean_area, enough, seconds)
            print(f"  {name} {objective}: {mean_area:.4f}, {ranking.evidence}", file=sys.stderr)
    full, windowed = held_out.outcome(), held_out.outcome(held_out.heads)
    gap = f"loss {full.nats:.3f} full, {windowed.nats:.3f} windowed; right {full.accuracy:.2f}, {windowed.accuracy:.2f}"
    return found, gap


def several(ranking: Ranking, game: Game) -> list[Ranking]:
    """A ranking, or many where it is left to chance."""
    if ranking.method == "random":
        return [random_order(game.heads, seed) for seed in range(RANDOM_ORDERS)]
    if ranking.method == "random_in_layer":
        gates = rank(game, "window_gates")
        return [shuffled_in_layers(gates, seed) for seed in range(RANDOM_ORDERS)]
    return [ranking]


def area(ranking: Ranking, held_out: Game) -> tuple[float, float]:
    n = len(held_out.heads)
    points = keep_curve("", order_of(ranking, "head"), [held_out], counts=range(n + 1), context=LENGTH)
    enough = first_at(points, 0.9)
    return area_under(points), float("nan") if enough is None else enough


def table(models: list[HookedModel], window: int) -> list[str]:
    found: list[dict[str, Found]] = []
    lines = [f"Window {window}:", ""]
    for seed, m in enumerate(models):
        print(f"model {seed}, window {window}", file=sys.stderr)
        by_name, gap = judged(m, window)
        found.append(by_name)
        lines.append(f"- model {seed}: {gap}")
    lines += ["", "| ranking | area | sd | heads for 90 % | area − window_gates, of each model | CPU s |"]
    lines.append("|---|---|---|---|---|---|")
    for name in sorted(found[0], key=lambda name: -np.mean([one[name].area for one in found])):
        areas, enough, seconds = np.array([one[name] for one in found]).T
        differences = ", ".join(f"{one[name].area - one['window_gates'].area:+.4f}" for one in found)
        sd = areas.std(ddof=1) if len(areas) > 1 else float("nan")
        lines.append(
            f"| `{name}` | {areas.mean():.4f} | {sd:.4f} | {enough.mean():.1f} | {differences} | {seconds.mean():.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, nargs="+", default=[8])
    parser.add_argument("--quick", action="store_true", help="the quick demo's recipe")
    parser.add_argument("--models", type=Path, help="where trained models are kept for another run")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/rankings.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.models or Path(tempfile.mkdtemp())
    models = [
        open_model(pretrain_run(recipe("full", seed=seed, quick=given.quick), folder / f"full{seed}")[-1])
        for seed in range(given.seeds)
    ]
    command = " ".join(["python benchmarks/bench_rankings.py", *sys.argv[1:]])
    lines = [describe(), "", f"`{command}`"]
    for window in given.windows:
        lines += ["", *table(models, window)]
    print("\n".join(lines))
    if given.keep:
        keep(Path(__file__), "Which ranking keeps the right heads", lines)


if __name__ == "__main__":
    main()
