"""Which ranking keeps the right heads? Three kinds of trained models, several seeds each; window all but the top k.

Heads are ranked on some sequences; the curve is of twice as many others: how much of the loss gap is back with the top
k heads. The area is its mean over k from none to all. A window of 8 of 64 tokens, no sink; models and questions are in
`ranking_models.py`. Random orders are means over 20 of each model (5 where there are 64 heads).

Every ranking's result is written to <out>/<model>-seed<n>.json as it is there, and the same command goes on.

    python benchmarks/bench_rankings.py --out runs/rankings [--models demo study large] [--seeds 3] [--keep]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, keep
from ranking_models import LENGTH, MODELS, WINDOW, Questions, model_of, questions

from workbench.hooks import HookedModel
from workbench.planning import METHODS, Game, Ranking, area_under, first_at
from workbench.planning.curves import keep_curve, order_of
from workbench.planning.methods import integrated
from workbench.planning.one_by_one import greedy
from workbench.planning.rankings import random_order, shuffled_in_layers

GATES, GREEDY = "window_gates", "greedy"
PRIORS = ("output_error", "far_mass", "retrieval", "induction", "duo_gates", "random", "random_in_layer")
WITHOUT_LABELS = f"{GATES}, no labels"
_CHEAP = ("first_order", *PRIORS[:4], "output_error_all")
_DEAR = ("leave_one_windowed", "restore_one", "duo_gates", "duo_gates_annealed")
_BY_CHANCE = ("random", "random_in_layer")
_GREEDY_PICKS = 16  # with more heads the rest come in the order of the last round
_MARGIN = 0.02

Found = dict[str, Any]


def ways(n_heads: int) -> dict[str, Callable[[Game], Ranking]]:
    """Every ranking by the name it has in the table, the cheap ones first; chance is many orders, not one."""
    return {
        GATES: integrated,
        f"{GATES}, m = 3": partial(integrated, nodes=3, quadrature="midpoint"),
        f"{GATES}, m = 3, gauss": partial(integrated, nodes=3, quadrature="gauss"),
        **{name: METHODS[name] for name in (*_CHEAP, *_BY_CHANCE, *_DEAR)},
        WITHOUT_LABELS: integrated,
        GREEDY: partial(greedy, picks=_GREEDY_PICKS) if n_heads > _GREEDY_PICKS else greedy,
    }


def judged(m: HookedModel, asked: Questions, path: Path) -> dict[str, Found]:
    """What every ranking keeps, going on from what the file has."""
    found: dict[str, Found] = json.loads(path.read_text()) if path.exists() else {}
    held_out = [Game(m, p, WINDOW) for p in dict.fromkeys((asked.held_out, *asked.kinds))]
    game = Game(m, asked.ranking, WINDOW)
    n = len(game.heads)
    for name, ranked in ways(n).items():
        if name in found:
            continue
        started = time.process_time()
        if name in _BY_CHANCE:
            gates = _kept_ranking(found[GATES], game)
            many = range(20 if n < 64 else 5)
            rankings = [random_order(game.heads, s) if name == "random" else shuffled_in_layers(gates, s) for s in many]
        else:
            of = Game(m, asked.ranking, WINDOW, objective="kl") if name == WITHOUT_LABELS else game
            rankings = [ranked(of)]
        seconds = time.process_time() - started
        found[name] = {"seconds": seconds, **_curves(rankings, held_out)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        print(f"  {path.stem} {name}: {found[name]['area']:.4f}, {seconds:.0f} s", file=sys.stderr)
    return found


def _curves(rankings: list[Ranking], held_out: list[Game]) -> Found:
    """Area on everything and on each kind, the curve on everything, and the order; means over the rankings."""
    together, *kinds = held_out
    n = len(together.heads)
    counts = range(n + 1) if n <= 16 else sorted({*range(9), *range(10, 25, 2), *range(28, n + 1, 6), n})
    points = [[_points(r, game, counts) for game in held_out] for r in rankings]
    of_all = [one[0] for one in points]
    enough = [first_at(p, 0.9) for p in of_all]
    return {
        "area": float(np.mean([area_under(p) for p in of_all])),
        "first_quarter": float(np.mean([area_under([x for x in p if x.n_kept <= n / 4]) for p in of_all])),
        "enough": float(np.mean([n if e is None else e for e in enough])),
        "kinds": {
            game.probe.name: float(np.mean([area_under(one[1 + i]) for one in points])) for i, game in enumerate(kinds)
        },
        "curve": {int(k): float(np.mean([p[i].recovered for p in of_all])) for i, k in enumerate(counts)},
        "gap": [together.outcome().nats, together.outcome(together.heads).nats, together.outcome().accuracy],
        "accuracy": {game.probe.name: game.outcome().accuracy for game in held_out},
        "scores": rankings[0].scores.tolist() if len(rankings) == 1 else None,
        "evidence": rankings[0].evidence,
    }


def _points(ranking: Ranking, game: Game, counts: Any) -> list[Any]:
    return keep_curve("", order_of(ranking, "head"), [game], counts=list(counts), context=LENGTH)


def _kept_ranking(found: Found, game: Game) -> Ranking:
    return Ranking(GATES, "nats", game.heads, np.array(found["scores"]))


def table(name: str, found: list[dict[str, Found]]) -> list[str]:
    """A model's rankings, best first, with the difference to window gates in each seed and what follows."""
    kinds = [*found[0][GATES]["kinds"]] if len(found[0][GATES]["kinds"]) > 1 else []
    lines = [f"## {name}", "", *(f"- seed {i}: {_gap(one)}" for i, one in enumerate(found)), ""]
    columns = ["ranking", "area ± sd", "area − window_gates, each seed", "first quarter of heads", "heads for 90 %"]
    lines += [f"| {' | '.join([*columns, *kinds])} |", "|" + "---|" * (len(columns) + len(kinds))]
    for way in sorted(found[0], key=lambda way: -np.mean([one[way]["area"] for one in found])):
        differences = ", ".join(f"{x:+.3f}" for x in _above(found, way))
        cells = [_spread(found, way, "area"), differences, _spread(found, way, "first_quarter")]
        cells.append(f"{np.mean([one[way]['enough'] for one in found]):.1f}")
        cells += [f"{np.mean([one[way]['kinds'][kind] for one in found]):.3f}" for kind in kinds]
        lines.append(f"| {' | '.join([f'`{way}`', *cells])} |")
    return [*lines, "", *_verdicts(found), ""]


def _gap(one: dict[str, Found]) -> str:
    full, windowed, _ = one[GATES]["gap"]
    right = ", ".join(f"{kind} {share:.2f}" for kind, share in one[GATES]["accuracy"].items())
    error = one[GATES]["evidence"]["completeness_error"]
    return f"loss {full:.3f} full, {windowed:.3f} windowed; right {right}; completeness error {error:.4f}"


def _above(found: list[dict[str, Found]], way: str) -> list[float]:
    return [one[way]["area"] - one[GATES]["area"] for one in found]


def _spread(found: list[dict[str, Found]], way: str, what: str) -> str:
    values = np.array([one[way][what] for one in found])
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def _verdicts(found: list[dict[str, Found]]) -> list[str]:
    """Is the area at least that of greedy − 0.02, and above each prior by more than a deviation over seeds?"""
    above_greedy = -np.array(_above(found, GREEDY))
    lines = [
        f"- window gates − greedy: {above_greedy.mean():+.4f} (each seed at least −{_MARGIN}: "
        f"{'yes' if (above_greedy >= -_MARGIN).all() else 'no'})."
    ]
    if len(found) > 1:
        below = {prior: -np.array(_above(found, prior)) for prior in PRIORS}
        beyond = [f"`{prior}`" for prior, d in below.items() if d.mean() > d.std(ddof=1)]
        within = [
            f"`{prior}` ({d.mean():+.4f} ± {d.std(ddof=1):.4f})"
            for prior, d in below.items()
            if d.mean() <= d.std(ddof=1)
        ]
        lines.append(f"- Below window gates by more than a deviation over seeds: {', '.join(beyond) or 'none'}.")
        lines.append(f"- Not: {', '.join(within) or 'none'}.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="trained models and a file of results for each")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--told", action="store_true", help="only tell what the files have")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/rankings.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [describe(), "", f"`{' '.join(['python benchmarks/bench_rankings.py', *sys.argv[1:]])}`", ""]
    for name in given.models:
        found: list[dict[str, Found]] = []
        for seed in range(given.seeds):
            path = given.out / f"{name}-seed{seed}.json"
            if not given.told:
                judged(model_of(name, seed, given.out / name), questions(name), path)
            if path.exists():
                found.append(json.loads(path.read_text()))
        shared = set.intersection(*(set(one) for one in found)) if found else set[str]()
        if {GATES, GREEDY, *PRIORS} <= shared:
            lines += table(name, [{way: one[way] for way in one if way in shared} for one in found])
    print("\n".join(lines))
    if given.keep:
        keep(Path(__file__), "Which ranking keeps the right heads", lines)


if __name__ == "__main__":
    main()
