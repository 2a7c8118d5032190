"""Compare rankings by keep-top-k curves: trained and published models, several seeds each, all but the top k windowed.

Heads are ranked on some sequences. The curve, on twice as many others, is the share of the loss gap that the top k
heads recover; the area is its mean over k from none to all. The window is 8 of 64 tokens without sinks, on published
models 128 of 768 or 1,024 with a sink of 4; models and questions are in `ranking_models.py`. Random orders are means
over 20 orders of each model (5 with 64 heads, 3 of a published one).

The loss of every held-out sequence is written to <out>/<model>-seed<n>.json after each ranking, and the same command
continues from there. `ranking_areas.py` computes areas and paired differences, `ranking_tables.py` the tables.

    python benchmarks/bench_rankings.py --out runs/rankings [--models demo smollm2 ...] [--seeds 3] [--keep]
        [--rankings window_gates induction ...]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from machine import describe
from ranking_areas import Record
from ranking_models import MODELS, PUBLISHED, TRAINED, Questions, counts_of, model_of, questions, window_of
from ranking_tables import GATES, GREEDY, MODEL, PRIORS, section, write

from workbench.heads import KVHead
from workbench.hooks import HookedModel
from workbench.planning import METHODS, Game, Ranking
from workbench.planning.answer_loss import Objective
from workbench.planning.rankings.chance import random_order, shuffled_in_layers
from workbench.planning.rankings.one_by_one import greedy
from workbench.planning.rankings.window_gates import integrated
from workbench.probes import Probe

_WITHOUT_LABELS = f"{GATES}, no labels"
_CHEAP = ("first_order", *PRIORS[:4], "output_error_all")
_EXPENSIVE = (
    "leave_one_windowed",
    "restore_one",
    "ablate_accuracy",
    "restore_one_aligned",
    "joint_gates",
    "duo_gates",
    "duo_gates_annealed",
)
_BY_CHANCE = ("random", "random_in_layer")
_GREEDY_PICKS = 12  # with more heads the rest come in the order of the last round
_TITLE = "Which ranking keeps the right heads"
_ABOUT = (
    "Made by `benchmarks/bench_rankings.py`: window 8 of 64 tokens, no sink; published models 128 (or as named) of 768 "
    "or 1,024, sink 4. *Area*: the share of the loss gap that "
    "the top k heads bring back, its mean over k. *± sd*: over seeds. *[95 %]*: of the mean difference over seeds, "
    "when the held-out sequences, the same for both rankings, are drawn again."
)


def rankings_of(model: str, n_heads: int) -> dict[str, Callable[[Game], Ranking]]:
    """Every ranking by its name in the table, the cheap ones first; a random one is several orders."""
    if model in PUBLISHED:  # greedy would take n (n + 1) / 2 passes
        return {name: METHODS[name] for name in (GATES, *_CHEAP, *_BY_CHANCE, *_EXPENSIVE)}
    return {
        GATES: integrated,
        f"{GATES}, m = 3": partial(integrated, nodes=3, quadrature="midpoint"),
        f"{GATES}, m = 3, gauss": partial(integrated, nodes=3, quadrature="gauss"),
        **{name: METHODS[name] for name in (*_CHEAP, *_BY_CHANCE)},
        GREEDY: partial(greedy, picks=_GREEDY_PICKS) if n_heads > 16 else greedy,
        _WITHOUT_LABELS: integrated,
        **{name: METHODS[name] for name in _EXPENSIVE},
    }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model by its name in the table, with its window, sinks and questions."""

    name: str
    m: HookedModel
    probes: Questions

    def game(self, probe: Probe, objective: Objective = "loss") -> Game:
        window, sink = window_of(self.name)
        return Game(self.m, probe, window, sink=sink, objective=objective)


def measure(compared: Comparison, path: Path, names: Sequence[str] | None) -> dict[str, Record]:
    """The losses under every ranking, or those named; those that the file has are not measured again."""
    records: dict[str, Record] = json.loads(path.read_text()) if path.exists() else {}
    game, nats_of = compared.game(compared.probes.ranking), _remembered(compared.game(compared.probes.held_out))
    counts = counts_of(compared.name, len(game.heads))
    if MODEL not in records:
        records[MODEL] = _model(compared)
    for name, ranked in rankings_of(compared.name, len(game.heads)).items():
        if name in records or (names and name not in names):
            continue
        started = time.process_time()
        rankings = _by_chance(name, records, game) if name in _BY_CHANCE else [ranked(_game(name, compared, game))]
        seconds = time.process_time() - started
        records[name] = {"seconds": seconds, **_losses(rankings, nats_of, counts)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records))
        print(f"  {path.stem} {name}: {seconds:.0f} s, then {time.process_time() - started:.0f}", file=sys.stderr)
    return records


def _game(name: str, compared: Comparison, game: Game) -> Game:
    return compared.game(compared.probes.ranking, "kl") if name == _WITHOUT_LABELS else game


def _by_chance(name: str, records: dict[str, Record], game: Game) -> list[Ranking]:
    seeds = range(20 if len(game.heads) < 18 else 5 if len(game.heads) == 64 else 3)
    if name == "random":
        return [random_order(game.heads, seed) for seed in seeds]
    gates = Ranking(GATES, "nats", game.heads, np.array(records[GATES]["scores"]))
    return [shuffled_in_layers(gates, seed) for seed in seeds]


def _model(compared: Comparison) -> Record:
    """How many sequences of each kind there are, and how many of their answers are right, full and windowed."""
    probes = compared.probes
    games = {probe.name: compared.game(probe) for probe in probes.kinds}
    ends = {name: (game.outcome(), game.outcome(game.heads)) for name, game in games.items()}
    return {
        "sizes": {probe.name: len(probe.tokens) for probe in probes.kinds},
        "accuracy": {name: [full.accuracy, windowed.accuracy] for name, (full, windowed) in ends.items()},
    }


def _remembered(game: Game) -> Callable[[Sequence[KVHead]], Float[np.ndarray, " n_seq"]]:
    """Nats of every sequence with these heads full; rankings often begin with the same ones."""
    known: dict[frozenset[KVHead], np.ndarray] = {}

    def nats(full: Sequence[KVHead]) -> Float[np.ndarray, " n_seq"]:
        key = frozenset(full)
        if key not in known:
            known[key] = game.without(key)
        return known[key]

    return nats


def _losses(
    rankings: Sequence[Ranking],
    nats_of: Callable[[Sequence[KVHead]], Float[np.ndarray, " n_seq"]],
    counts: Sequence[int],
) -> Record:
    """Nats of every held-out sequence with the first k heads full, and the scores; means over the rankings."""
    nats = {k: np.mean([nats_of(r.order[:k]) for r in rankings], 0).round(5).tolist() for k in counts}
    scores = rankings[0].scores.tolist() if len(rankings) == 1 else None
    return {"nats": nats, "scores": scores, "evidence": rankings[0].evidence}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="trained models and a file of results for each")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=TRAINED)
    parser.add_argument("--rankings", nargs="+", help="measure these alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--told", action="store_true", help="measure nothing; print what the files have")
    parser.add_argument("--keep", action="store_true", help="put the sections into benchmarks/results/rankings.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sections: dict[str, list[str]] = {}
    for name in args.models:
        records: list[dict[str, Record]] = []
        for seed in range(args.seeds):
            path = args.out / f"{name}-seed{seed}.json"
            if not args.told:
                m = model_of(name, seed, args.out / name)
                measure(Comparison(name, m, questions(name, m, seed)), path, args.rankings)
            if path.exists():
                records.append(json.loads(path.read_text()))
        shared = set.intersection(*(set(of_seed) for of_seed in records)) if records else set[str]()
        if GATES in shared:
            command = f"python benchmarks/bench_rankings.py --out runs/rankings --models {name} --seeds {len(records)}"
            sections[name] = section(name, records, f"{describe()}; `{command}`")
    print("\n".join(line for lines in sections.values() for line in lines))
    if args.keep:
        write(Path(__file__).parent / "results" / "rankings.md", _TITLE, _ABOUT, sections)


if __name__ == "__main__":
    main()
