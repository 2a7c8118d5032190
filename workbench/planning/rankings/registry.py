"""Every way of ranking key/value heads by their need for the whole context, by name, under one signature.

Scores are in the units each method names, higher for heads to keep. Only `window_gates` sums to the loss of windowing
everything.
"""

from __future__ import annotations

from collections.abc import Callable

from workbench.heads import WorkbenchError
from workbench.planning.conversion_objective import Game
from workbench.planning.rankings.duo_gates import duo_gates, duo_gates_annealed
from workbench.planning.rankings.first_order import first_order, gradient_at_zero
from workbench.planning.rankings.one_by_one import ablation, greedy, leave_one_windowed, restore_one
from workbench.planning.rankings.output_error import output_error
from workbench.planning.rankings.priors import far_mass, prior
from workbench.planning.rankings.ranking import Ranking, random_order, shuffled_in_layers
from workbench.planning.rankings.window_gates import Quadrature, integrate

Method = Callable[[Game], Ranking]


def integrated(game: Game, *, nodes: int = 8, quadrature: Quadrature | None = None) -> Ranking:
    """Integrated window gates; see `window_gates`."""
    found = integrate(game, nodes=nodes, quadrature=quadrature)
    evidence = {"completeness_error": found.completeness_error, "full": found.full, "windowed": found.windowed}
    return Ranking("window_gates", "nats", found.heads, found.scores, found.per_sequence, evidence)


def random(game: Game) -> Ranking:
    """Any order."""
    return random_order(game.heads, game.seed)


def random_in_layer(game: Game) -> Ranking:
    """As many heads of each layer as `window_gates` keeps, but any of them."""
    return shuffled_in_layers(integrated(game), game.seed)


METHODS: dict[str, Method] = {
    "window_gates": integrated,
    "leave_one_windowed": leave_one_windowed,
    "restore_one": restore_one,
    "greedy": greedy,
    "duo_gates": duo_gates,
    "duo_gates_annealed": duo_gates_annealed,
    "first_order": first_order,
    "gradient_at_zero": gradient_at_zero,
    "output_error": output_error("answers"),
    "output_error_all": output_error("all"),
    "far_mass": far_mass,
    "mean_distance": prior("mean_distance"),
    "retrieval": prior("retrieval"),
    "induction": prior("induction"),
    "ablate_zero": ablation("zero"),
    "ablate_mean": ablation("mean"),
    "ablate_uniform": ablation("uniform"),
    "random": random,
    "random_in_layer": random_in_layer,
}


def rank(game: Game, method: str) -> Ranking:
    """The ranking of a model's heads by a method of that name.

    Raises:
        WorkbenchError: if there is none, or it is not available for this model or probe.
    """
    check_method(method)
    return METHODS[method](game)


def check_method(method: str) -> None:
    """Raises:
    WorkbenchError: if there is no such method.
    """
    if method not in METHODS:
        raise WorkbenchError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
