"""Make a plan from a ranking and a budget, and measure it on probes that the ranking has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import get_args

import numpy as np
import torch
from torch import nn

from workbench.detectors.bootstrap import bootstrap
from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.planning.answer_loss import Objective
from workbench.planning.budgets import check_budget, lost_nats, n_affordable
from workbench.planning.conversion_objective import Game
from workbench.planning.keep_curves import Order, keep_counts, keep_curve, order_of
from workbench.planning.rankings.chance import random_order, shuffled_in_layers
from workbench.planning.rankings.registry import Ranking, check_method, rank
from workbench.probes import Probe, build, copy_needle
from workbench.store.conversions import check_window
from workbench.store.plan_file import Budget, CurvePoint, Plan, RankedHead, Unit

# A random baseline is the mean over this many random orders.
_RANDOM_ORDERS = 5
_NEEDLE = 8

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The probes and baselines that a plan is made and judged with.

    `probe`: the one heads are ranked on; `held_out`: others, never seen by the ranking, on which the curve is measured.
    `baselines`: further methods with a curve; `random` and `random_in_layer` (as many heads of each layer as the plan
    would keep; none for a layer-wise plan) are means over five orders. `context`: the tokens that cache sizes are
    counted for.
    """

    probe: Probe
    held_out: tuple[Probe, ...]
    context: int
    objective: Objective = "loss"
    baselines: tuple[str, ...] = ("far_mass", "random", "random_in_layer")
    seed: int = 0


def default_evaluation(m: HookedModel, window: int, sink: int, *, seed: int = 0) -> Evaluation:
    """Needles copied from beyond the window, with other needles held out, at the model's longest context.

    Raises:
        WorkbenchError: if the window is impossible, or the model's context does not hold sinks, window and a needle.
    """
    _check_window(window, sink)
    longest = _longest(m)
    near = window + sink + _NEEDLE
    length = 4 * near if longest is None else min(longest, 4 * near)
    far = [d for d in (near, 2 * near, 3 * near) if d + _NEEDLE + 1 <= length]
    if not far:
        raise WorkbenchError(
            f"window {window} and sink {sink} leave nothing far in a context of {longest} tokens; pass a smaller window"
        )
    probes = [
        copy_needle(m, far, length=length, n_sequences=12, seed=seed + i, name=f"far_needle_{i}") for i in range(2)
    ]
    return Evaluation(probes[0], (probes[1],), context=longest or length, seed=seed)


def evaluation_on(
    m: HookedModel,
    window: int,
    sink: int,
    *,
    probe: str | None = None,
    held_out: Sequence[str] = (),
    seed: int = 0,
) -> Evaluation:
    """The evaluation on probes written as in `probes.build`; those of `default_evaluation` where none is written.

    Held-out probes with equal names are named by their text.

    Raises:
        WorkbenchError: if a text describes no probe or one that does not fit the model, or the default probes are
            needed and do not fit.
    """
    ranked_on = None if probe is None else build(m, probe)
    judged_on = [build(m, text) for text in held_out]
    if len({p.name for p in judged_on}) < len(judged_on):
        judged_on = [replace(p, name=text) for p, text in zip(judged_on, held_out, strict=True)]
    if ranked_on is not None and judged_on:
        context = _longest(m) or max(p.tokens.shape[1] for p in judged_on)
        return Evaluation(ranked_on, tuple(judged_on), context=context, seed=seed)
    standard = default_evaluation(m, window, sink, seed=seed)
    return replace(standard, probe=ranked_on or standard.probe, held_out=tuple(judged_on) or standard.held_out)


def plan(  # noqa: PLR0913  # public arguments, positional in use
    m: HookedModel | nn.Module,
    window: int,
    sink: int = 0,
    keep: Budget = 0.25,
    method: str = "window_gates",
    *,
    unit: Unit = "head",
    evaluation: Evaluation | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Rank the key/value heads of a model, keep as many as the budget allows, and measure the result.

    The plan's `evidence` is the method's own, with the loss that remains (`lost_nats`) and the share that is recovered
    (`recovered`) on the held-out probe where the kept heads do worst.

    Args:
        window, sink: what a windowed head still sees, in tokens.
        keep: a share of the heads of softmax layers (of the layers, for unit="layer"); or `KVBytes`, `LossTolerance`.
        method: one of `workbench.planning.METHODS`, or a name registered with `workbench.planning.ranking`.
        unit: keep heads, or whole layers by the sum of their heads' scores.
        evaluation: default needles copied from beyond the window.
        progress: called with a line for each step.

    Raises:
        WorkbenchError: for an unknown method or unit, a window that is impossible or leaves nothing far in a probe, a
            budget that is out of range or keeps no layer, or a held-out probe with the tokens of the ranking's probe.
    """
    m = open_model(m)
    _check_window(window, sink)
    check_budget(keep)
    check_method(method)
    if unit not in get_args(Unit):
        raise WorkbenchError(f"unit is {unit!r}; expected 'head' or 'layer'")
    evaluation = evaluation or default_evaluation(m, window, sink)
    _check_evaluation(evaluation, window + sink)
    announce = progress or (lambda _: None)
    game = Game(m, evaluation.probe, window, sink=sink, objective=evaluation.objective, seed=evaluation.seed)
    announce(f"ranking {len(game.heads)} heads by {method}")
    ranking = rank(game, method)
    order = order_of(ranking, unit)
    held_out = [Game(m, p, window, sink=sink, seed=evaluation.seed) for p in evaluation.held_out]
    announce(f"what {method} keeps on held-out probes")
    n_kept = n_affordable(keep, order, held_out, context=evaluation.context)
    if unit == "layer" and n_kept == 0:
        raise WorkbenchError(f"a budget of {keep} keeps none of {len(order)} layers; pass a larger one")
    judge = _Judge(unit, game, held_out, evaluation, counts=sorted({*keep_counts(len(order)), n_kept}))
    curve = judge.curve(method, order)
    for baseline in evaluation.baselines:
        announce(f"what {baseline} keeps")
        curve += judge.baseline(baseline, ranking)
    keep_heads = tuple(sorted(order.first(n_kept)))
    recovered = [p.recovered for p in curve if p.method == method and p.n_kept == len(keep_heads)]
    worst = {"lost_nats": lost_nats(order, n_kept, held_out), "recovered": min(recovered)}
    return Plan(
        model=m.name,
        layers=m.layers,
        window=window,
        sink=sink,
        unit=unit,
        method=method,
        units=ranking.units,
        probe=evaluation.probe.name,
        probe_digest=evaluation.probe.digest,
        seed=evaluation.seed,
        context=evaluation.context,
        keep=keep_heads,
        ranking=_ranked(ranking, order.first(len(order)), seed=evaluation.seed),
        curve=tuple(curve),
        evidence={**ranking.evidence, **worst},
    )


@dataclass(frozen=True, slots=True)
class _Judge:
    """Curves of rankings on held-out probes, all at the same counts of heads or layers."""

    unit: Unit
    game: Game
    held_out: Sequence[Game]
    evaluation: Evaluation
    counts: list[int]

    def curve(self, method: str, order: Order) -> list[CurvePoint]:
        return keep_curve(method, order, self.held_out, counts=self.counts, context=self.evaluation.context)

    def baseline(self, method: str, ranking: Ranking) -> list[CurvePoint]:
        """The curve of another method; of random orders, their mean."""
        seeds = range(self.evaluation.seed, self.evaluation.seed + _RANDOM_ORDERS)
        if method == "random":
            return self._mean(method, [random_order(self.game.heads, seed) for seed in seeds])
        if method == "random_in_layer":
            # The order of whole layers does not depend on how their heads are shuffled.
            shuffled = [shuffled_in_layers(ranking, seed) for seed in seeds if self.unit == "head"]
            return self._mean(method, shuffled)
        return self.curve(method, order_of(rank(self.game, method), self.unit))

    def _mean(self, method: str, rankings: Sequence[Ranking]) -> list[CurvePoint]:
        runs = [self.curve(method, order_of(ranking, self.unit)) for ranking in rankings]
        return [_mean_point(points) for points in zip(*runs, strict=True)]


def _mean_point(points: Sequence[CurvePoint]) -> CurvePoint:
    def over(name: str) -> float:
        return float(np.mean([getattr(point, name) for point in points]))

    names = ("nats", "recovered", "accuracy", "kv_saved")
    return replace(points[0], **{name: over(name) for name in names})


def _ranked(ranking: Ranking, order: Sequence[KVHead], *, seed: int) -> tuple[RankedHead, ...]:
    low = high = np.full(len(ranking.heads), np.nan)
    if ranking.per_sequence is not None:
        counted = np.ones(ranking.per_sequence.shape, dtype=bool)
        low, high = bootstrap(ranking.per_sequence, counted, seed=seed)
    index = {head: i for i, head in enumerate(ranking.heads)}
    return tuple(
        RankedHead(*head, float(ranking.scores[index[head]]), float(low[index[head]]), float(high[index[head]]))
        for head in order
    )


def _longest(m: HookedModel) -> int | None:
    """The model's longest context in tokens, where it has one."""
    return getattr(m.config.get_text_config(), "max_position_embeddings", None)


def _check_window(window: int, sink: int) -> None:
    for name, value in (("window", window), ("sink", sink)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise WorkbenchError(f"{name} is {value!r}; expected a whole number of tokens")
    check_window(window, sink)


def _check_evaluation(evaluation: Evaluation, n_seen: int) -> None:
    if evaluation.context < 1:
        raise WorkbenchError(f"context is {evaluation.context}; expected at least 1 token")
    for baseline in evaluation.baselines:
        check_method(baseline)
    if not evaluation.held_out:
        raise WorkbenchError("no held-out probe was given; expected at least one that the ranking does not see")
    names = [p.name for p in evaluation.held_out]
    if len(set(names)) < len(names):
        raise WorkbenchError(f"held-out probes are named {', '.join(names)}; give each its own name=")
    for probe in (evaluation.probe, *evaluation.held_out):
        if probe.tokens.shape[1] <= n_seen:
            raise WorkbenchError(
                f"probe {probe.name!r} has {probe.tokens.shape[1]} tokens and a windowed head sees {n_seen}, so that "
                "nothing is far; pass a longer probe or a smaller window"
            )
    for probe in evaluation.held_out:
        if torch.equal(probe.tokens, evaluation.probe.tokens):
            raise WorkbenchError(
                f"held-out probe {probe.name!r} is the one that heads are ranked on; pass another, such as one of "
                "another seed="
            )
