"""Rankings of key/value heads: their type, the decorator that registers one, and every registered one by name.

A ranking is a function from a `Game` to a `Ranking`. Its scores are in the units it names, higher for heads to keep.
Only those of `window_gates` sum to the loss of converting every head. Built-in rankings register in
`builtin_rankings`; another package names the module of its own in the entry point group `workbench.rankings`:

    [project.entry-points."workbench.rankings"]
    my_package = "my_package.rankings"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from workbench.console import watched_bar
from workbench.extensions import Registry
from workbench.heads import KVHead
from workbench.planning.conversion_objective import Game
from workbench.planning.model_passes import Passes, counting
from workbench.planning.rankings.adaptive_nodes import AS_NEEDED


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores of every key/value head by one method, higher for heads to keep, in the units the method names.

    `per_sequence`: the scores on each sequence that has an answer, where the method has them. `evidence`: numbers that
    measure how reliable the scores are. `margin`: what each score may be off by beside its sequences, in its units;
    intervals are wider by as much on both sides.
    """

    method: str
    units: str
    heads: tuple[KVHead, ...]
    scores: Float[np.ndarray, " n_kv"]
    per_sequence: Float[np.ndarray, "n_seq n_kv"] | None = None
    evidence: dict[str, float] = field(default_factory=dict)
    margin: Float[np.ndarray, " n_kv"] | None = None

    def __repr__(self) -> str:
        first = ", ".join(
            f"{head} {score:.3g}" for head, score in zip(self.order[:3], -np.sort(-self.scores)[:3], strict=True)
        )
        return f"Ranking({self.method}, {len(self.heads)} heads in {self.units}: {first}, …; .order, .scores)"

    @property
    def order(self) -> list[KVHead]:
        """The heads, those to keep first; equal scores in order of layer and head."""
        return [self.heads[i] for i in np.argsort(-self.scores, kind="stable")]


# Steps of the rankings that train, each with one batch: of gates, and of the weights of `restore_one_aligned`.
GATE_STEPS, ALIGNMENT_STEPS = 200, 20
Method = Callable[[Game], Ranking]

RANKINGS: Registry[Method] = Registry("workbench.rankings", noun="method", builtin="workbench.planning.rankings")


def ranking(name: str) -> Callable[[Method], Method]:
    """Register the decorated function as the ranking `name`, for `wb.plan(method=name)` and `workbench plan --method`.

    Raises:
        WorkbenchError: for a function without a docstring, or a name that another function holds.
    """

    def register(method: Method) -> Method:
        RANKINGS.add(name, method, function=method)
        return method

    return register


class _Methods(MutableMapping[str, Method]):
    """Every registered ranking by name; an assignment replaces one without registering it."""

    def __init__(self) -> None:
        self._replaced: dict[str, Method] = {}

    def _all(self) -> dict[str, Method]:
        return {**RANKINGS.all(), **self._replaced}

    def __getitem__(self, name: str) -> Method:
        return self._all()[name]

    def __setitem__(self, name: str, method: Method) -> None:
        self._replaced[name] = method

    def __delitem__(self, name: str) -> None:
        del self._replaced[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


METHODS = _Methods()


def rank(game: Game, method: str, *, progress: bool = True) -> Ranking:
    """The ranking of a model's heads by the method of that name.

    `progress`: a bar on a terminal and in a notebook, in forward passes of the model, at most so many.

    Raises:
        WorkbenchError: for an unknown method, or one that is not available for this model or probe.
    """
    check_method(method)
    total = passes_of(game, method)[0]
    with watched_bar("pass", shown=progress) as show:

        def show_passes(passes: Passes) -> None:
            show(passes.forwards, max(total, passes.forwards) if total else 0, method)

        show(0, total, method)
        with counting(game.m.model, show_passes) as passes:
            ranked = METHODS[method](game)
        show(passes.forwards, passes.forwards, method)
        return ranked


def passes_of(game: Game, method: str) -> tuple[int, int]:
    """How many forward and backward passes of one batch a built-in method takes; 0 where that is not known.

    They are those that docs/planning.md lists.
    """
    n, n_batches = len(game.heads), len(game.batches)
    one_by_one = (
        *("leave_one_windowed", "restore_one"),
        *("ablate_zero", "ablate_mean", "ablate_uniform", "ablate_accuracy"),
    )
    of_patterns = ("output_error", "output_error_all", "far_mass", "mean_distance", "retrieval", "induction")
    nodes = AS_NEEDED.most
    passes = {
        **dict.fromkeys(one_by_one, (n + 1, 0)),
        **dict.fromkeys(of_patterns, (1, 0)),
        "greedy": (n * (n + 1) // 2, 0),
        "first_order": (1, 1),
        "gradient_at_zero": (1, 1),
        "window_gates": (nodes, nodes),
        "random_in_layer": (nodes, nodes),
    }
    if method in ("duo_gates", "duo_gates_annealed", "joint_gates"):
        return GATE_STEPS, GATE_STEPS
    if method == "restore_one_aligned":
        return (n + 3) * n_batches + ALIGNMENT_STEPS, ALIGNMENT_STEPS
    forwards, backwards = passes.get(method, (0, 0))
    return forwards * n_batches, backwards * n_batches


def check_method(method: str) -> None:
    """Raises:
    WorkbenchError: for an unknown method, listing the known ones.
    """
    if method not in METHODS:
        RANKINGS.find(method)
