"""Which ranking keeps the right heads? Three kinds of trained models, several seeds each; window all but the top k.

Heads are ranked on some sequences; the curve is of twice as many others: how much of the loss gap is back with the top
k heads. The area is its mean over k from none to all. A window of 8 of 64 tokens, no sink; models and questions are in
`ranking_models.py`. Random orders are means over 20 of each model (5 where there are 64 heads).

What every held-out sequence lost is written to <out>/<model>-seed<n>.json ranking by ranking, and the same command goes
on; `ranking_areas.py` makes areas and paired differences of it, `ranking_tables.py` the tables.

    python benchmarks/bench_rankings.py --out runs/rankings [--models demo study large] [--seeds 3] [--keep]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from machine import describe
from ranking_areas import Found
from ranking_models import MODELS, WINDOW, Questions, model_of, questions
from ranking_tables import GATES, GREEDY, MODEL, PRIORS, section, write

from workbench.heads import KVHead
from workbench.hooks import HookedModel
from workbench.planning import METHODS, Game, Ranking
from workbench.planning.rankings.chance import random_order, shuffled_in_layers
from workbench.planning.rankings.one_by_one import greedy
from workbench.planning.rankings.window_gates import integrated

_WITHOUT_LABELS = f"{GATES}, no labels"
_CHEAP = ("first_order", *PRIORS[:4], "output_error_all")
_DEAR = ("leave_one_windowed", "restore_one", "duo_gates", "duo_gates_annealed")
_BY_CHANCE = ("random", "random_in_layer")
_GREEDY_PICKS = 12  # with more heads the rest come in the order of the last round
_TITLE = "Which ranking keeps the right heads"
_ABOUT = (
    "Made by `benchmarks/bench_rankings.py`: window 8 of 64 tokens, no sink. *Area*: the share of the loss gap that "
    "the top k heads bring back, its mean over k. *± sd*: over seeds. *[95 %]*: of the mean difference over seeds, "
    "when the held-out sequences, the same for both rankings, are drawn again."
)


def ways(n_heads: int) -> dict[str, Callable[[Game], Ranking]]:
    """Every ranking by the name it has in the table, the cheap ones first; chance is many orders, not one."""
    return {
        GATES: integrated,
        f"{GATES}, m = 3": partial(integrated, nodes=3, quadrature="midpoint"),
        f"{GATES}, m = 3, gauss": partial(integrated, nodes=3, quadrature="gauss"),
        **{name: METHODS[name] for name in (*_CHEAP, *_BY_CHANCE)},
        GREEDY: partial(greedy, picks=_GREEDY_PICKS) if n_heads > 16 else greedy,
        _WITHOUT_LABELS: integrated,
        **{name: METHODS[name] for name in _DEAR},
    }


def judged(m: HookedModel, asked: Questions, path: Path) -> dict[str, Found]:
    """What every ranking keeps, going on from what the file has."""
    found: dict[str, Found] = json.loads(path.read_text()) if path.exists() else {}
    game, nats_of = Game(m, asked.ranking, WINDOW), _remembered(Game(m, asked.held_out, WINDOW))
    if MODEL not in found:
        found[MODEL] = _model(m, asked)
    for name, ranked in ways(len(game.heads)).items():
        if name in found:
            continue
        started = time.process_time()
        rankings = _by_chance(name, found, game) if name in _BY_CHANCE else [ranked(_game(name, m, asked, game))]
        seconds = time.process_time() - started
        found[name] = {"seconds": seconds, **_losses(rankings, nats_of)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        print(f"  {path.stem} {name}: {seconds:.0f} s, then {time.process_time() - started:.0f}", file=sys.stderr)
    return found


def _game(name: str, m: HookedModel, asked: Questions, game: Game) -> Game:
    return Game(m, asked.ranking, WINDOW, objective="kl") if name == _WITHOUT_LABELS else game


def _by_chance(name: str, found: dict[str, Found], game: Game) -> list[Ranking]:
    seeds = range(20 if len(game.heads) < 64 else 5)
    if name == "random":
        return [random_order(game.heads, seed) for seed in seeds]
    gates = Ranking(GATES, "nats", game.heads, np.array(found[GATES]["scores"]))
    return [shuffled_in_layers(gates, seed) for seed in seeds]


def _model(m: HookedModel, asked: Questions) -> Found:
    """How many sequences of each kind there are, and how many of their answers are right, full and windowed."""
    games = {probe.name: Game(m, probe, WINDOW) for probe in asked.kinds}
    ends = {name: (game.outcome(), game.outcome(game.heads)) for name, game in games.items()}
    return {
        "sizes": {probe.name: len(probe.tokens) for probe in asked.kinds},
        "accuracy": {name: [full.accuracy, windowed.accuracy] for name, (full, windowed) in ends.items()},
    }


def _remembered(game: Game) -> Callable[[Sequence[KVHead]], Float[np.ndarray, " n_seq"]]:
    """Nats of every sequence with these heads full; rankings often begin with the same ones."""
    known: dict[frozenset[KVHead], np.ndarray] = {}

    def nats(kept: Sequence[KVHead]) -> Float[np.ndarray, " n_seq"]:
        key = frozenset(kept)
        if key not in known:
            known[key] = game.without(key)
        return known[key]

    return nats


def _losses(rankings: Sequence[Ranking], nats_of: Callable[[Sequence[KVHead]], Float[np.ndarray, " n_seq"]]) -> Found:
    """Nats of every held-out sequence with the first k heads full, and the scores; means over the rankings."""
    n = len(rankings[0].heads)
    counts = range(n + 1) if n <= 16 else (*range(9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, n)
    nats = {k: np.mean([nats_of(r.order[:k]) for r in rankings], 0).round(5).tolist() for k in counts}
    scores = rankings[0].scores.tolist() if len(rankings) == 1 else None
    return {"nats": nats, "scores": scores, "evidence": rankings[0].evidence}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="trained models and a file of results for each")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--told", action="store_true", help="only tell what the files have")
    parser.add_argument("--keep", action="store_true", help="put the sections into benchmarks/results/rankings.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sections: dict[str, list[str]] = {}
    for name in given.models:
        found: list[dict[str, Found]] = []
        for seed in range(given.seeds):
            path = given.out / f"{name}-seed{seed}.json"
            if not given.told:
                judged(model_of(name, seed, given.out / name), questions(name), path)
            if path.exists():
                found.append(json.loads(path.read_text()))
        shared = set.intersection(*(set(one) for one in found)) if found else set[str]()
        if {GATES, GREEDY} <= shared:
            command = f"python benchmarks/bench_rankings.py --out runs/rankings --models {name} --seeds {len(found)}"
            sections[name] = section(name, found, f"{describe()}; `{command}`")
    print("\n".join(line for lines in sections.values() for line in lines))
    if given.keep:
        write(Path(__file__).parent / "results" / "rankings.md", _TITLE, _ABOUT, sections)


if __name__ == "__main__":
    main()
