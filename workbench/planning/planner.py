"""From a ranking and a budget to a plan, with what it is worth on probes that the ranking has not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.detectors.scoring import bootstrap
from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning.curves import keep_counts, keep_curve
from workbench.planning.game import Game
from workbench.planning.objectives import Objective
from workbench.planning.rankings import Ranking, rank
from workbench.plans import Budget, CurvePoint, KVBytes, LossTolerance, Plan, RankedHead, Unit, kv_bytes
from workbench.probes import Probe, build, copy_needle

# Random orders that a random baseline is the mean of.
_RANDOM_ORDERS = 5
_NEEDLE = 8

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a plan is made and judged on.

    `probe`: the one heads are ranked on; `held_out`: others, never seen by the ranking, that the curve is of.
    `baselines`: further methods with a curve; `random` and `random_in_layer` (as many heads of each layer as the plan
    would keep) are means over five orders. `context`: the tokens that cache sizes are counted for.
    """

    probe: Probe
    held_out: tuple[Probe, ...]
    context: int
    objective: Objective = "loss"
    baselines: tuple[str, ...] = ("far_mass", "random", "random_in_layer")
    seed: int = 0


def default_evaluation(m: HookedModel, window: int, sink: int, *, seed: int = 0) -> Evaluation:
    """Needles copied from beyond the window, other ones held out, at the model's longest context.

    Raises:
        WorkbenchError: if the model's context is not longer than sinks, window and a needle.
    """
    longest = getattr(m.config.get_text_config(), "max_position_embeddings", None) or 1 << 20
    near = window + sink + _NEEDLE
    length = min(longest, 4 * near)
    far = [d for d in (near, 2 * near, 3 * near) if d + _NEEDLE + 1 <= length]
    if not far:
        raise WorkbenchError(
            f"window {window} and sink {sink} leave nothing far in a context of {longest} tokens; pass a smaller window"
        )
    probes = [
        copy_needle(m, far, length=length, n_sequences=12, seed=seed + i, name=f"far_needle_{i}") for i in range(2)
    ]
    return Evaluation(probes[0], (probes[1],), context=longest, seed=seed)


def evaluation_on(
    m: HookedModel,
    window: int,
    sink: int,
    *,
    probe: str | None = None,
    held_out: Sequence[str] | None = None,
    seed: int = 0,
) -> Evaluation:
    """The evaluation of probes written as in `probes.build`; the default one's where they are not given.

    Raises:
        WorkbenchError: if one of them is no probe, has no answers, or does not fit the model.
    """
    if probe is not None and held_out:
        chosen = tuple(build(m, written) for written in held_out)
        longest = getattr(m.config.get_text_config(), "max_position_embeddings", None)
        context = longest or max(p.tokens.shape[1] for p in chosen)
        return Evaluation(build(m, probe), chosen, context=context, seed=seed)
    standard = default_evaluation(m, window, sink, seed=seed)
    ranked_on = standard.probe if probe is None else build(m, probe)
    return replace(standard, probe=ranked_on, held_out=tuple(build(m, w) for w in held_out or ()) or standard.held_out)


def plan(
    m: HookedModel,
    window: int,
    sink: int = 0,
    keep: Budget = 0.25,
    method: str = "window_gates",
    *,
    unit: Unit = "head",
    evaluation: Evaluation | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Rank the key/value heads of a model, keep as many as the budget allows, and measure what that keeps.

    Args:
        window, sink: what a windowed head still sees, in tokens.
        keep: a share of the heads of softmax layers (of the layers, for unit="layer"); or `KVBytes`, `LossTolerance`.
        method: one of `workbench.planning.METHODS`.
        unit: keep heads, or whole layers by the sum of their heads' scores.
        evaluation: default needles copied from beyond the window.
        progress: told what is being done.

    Raises:
        WorkbenchError: for an unknown method, a window that is none, a budget outside of what there is, or a layer-wise
            budget that keeps no layer.
    """
    _check_budget(keep)
    chosen = evaluation or default_evaluation(m, window, sink)
    say = progress or (lambda _: None)
    game = Game(m, chosen.probe, window, sink=sink, objective=chosen.objective, seed=chosen.seed)
    if not game.heads:
        raise WorkbenchError(f"{m!r} has no softmax attention; there is no head to give a window to")
    say(f"ranking {len(game.heads)} heads by {method}")
    ranking = rank(game, method)
    order = _by_layer(ranking) if unit == "layer" else [[head] for head in ranking.order]
    held_out = [Game(m, p, window, sink=sink, seed=chosen.seed) for p in chosen.held_out]
    say(f"curve of {method}")
    curve = _curve(method, order, held_out, chosen.context)
    n_kept = _n_kept(keep, order, curve, game=game, context=chosen.context)
    if unit == "layer" and n_kept == 0:
        raise WorkbenchError(f"a budget of {keep} keeps none of {len(order)} layers; pass a larger one")
    for baseline in chosen.baselines if unit == "head" else ():
        say(f"curve of {baseline}")
        curve += _baseline(baseline, ranking, game, held_out, chosen)
    kept = tuple(sorted(head for group in order[:n_kept] for head in group))
    return Plan(
        model=m.name,
        layers=m.layers,
        window=window,
        sink=sink,
        unit=unit,
        method=method,
        units=ranking.units,
        probe=chosen.probe.name,
        probe_digest=chosen.probe.digest,
        seed=chosen.seed,
        context=chosen.context,
        keep=kept,
        ranking=_ranked(ranking, [head for group in order for head in group], seed=chosen.seed),
        curve=tuple(curve),
        evidence=ranking.evidence,
    )


def _by_layer(ranking: Ranking) -> list[list[KVHead]]:
    totals: dict[int, float] = {}
    for head, score in zip(ranking.heads, ranking.scores, strict=True):
        totals[head.layer] = totals.get(head.layer, 0.0) + float(score)
    order = sorted(totals, key=lambda layer: -totals[layer])
    return [[head for head in ranking.heads if head.layer == layer] for layer in order]


def _ranked(ranking: Ranking, order: Sequence[KVHead], *, seed: int) -> tuple[RankedHead, ...]:
    low = high = np.full(len(ranking.heads), np.nan)
    if ranking.per_sequence is not None:
        counted = np.ones(ranking.per_sequence.shape, dtype=bool)
        low, high = bootstrap(ranking.per_sequence, counted, seed=seed)
    place = {head: i for i, head in enumerate(ranking.heads)}
    return tuple(
        RankedHead(*head, float(ranking.scores[place[head]]), float(low[place[head]]), float(high[place[head]]))
        for head in order
    )


def _curve(method: str, order: list[list[KVHead]], held_out: Sequence[Game], context: int) -> list[CurvePoint]:
    def first(n: int) -> list[KVHead]:
        return [head for group in order[:n] for head in group]

    counts = keep_counts(len(order))
    points = keep_curve(method, first, held_out, counts=counts, context=context)
    return [replace(point, n_kept=len(first(point.n_kept))) for point in points]


def _baseline(
    method: str, ranking: Ranking, game: Game, held_out: Sequence[Game], chosen: Evaluation
) -> list[CurvePoint]:
    if method not in ("random", "random_in_layer"):
        order = [[head] for head in rank(game, method).order]
        return _curve(method, order, held_out, chosen.context)
    rng = np.random.default_rng(chosen.seed)
    runs: list[list[CurvePoint]] = []
    for _ in range(_RANDOM_ORDERS):
        shuffled = [game.heads[i] for i in rng.permutation(len(game.heads))]

        def some(n: int, shuffled: list[KVHead] = shuffled) -> list[KVHead]:
            return shuffled[:n] if method == "random" else _as_many(shuffled, ranking.order[:n])

        counts = keep_counts(len(game.heads))
        runs.append(keep_curve(method, some, held_out, counts=counts, context=chosen.context))
    return [_mean(points) for points in zip(*runs, strict=True)]


def _as_many(shuffled: Sequence[KVHead], kept: Collection[KVHead]) -> list[KVHead]:
    """Heads in random order, as many of each layer as are kept."""
    wanted = Counter(head.layer for head in kept)
    return [head for layer, n in wanted.items() for head in [h for h in shuffled if h.layer == layer][:n]]


def _mean(points: Sequence[CurvePoint]) -> CurvePoint:
    def over(name: str) -> float:
        return float(np.mean([getattr(point, name) for point in points]))

    names = ("nats", "recovered", "accuracy", "kv_saved")
    return replace(points[0], **{name: over(name) for name in names})


def _check_budget(keep: Budget) -> None:
    if isinstance(keep, KVBytes | LossTolerance):
        return
    if not 0 <= keep <= 1:
        raise WorkbenchError(
            f"keep is {keep}; expected a share from 0 to 1, workbench.KVBytes(n) or workbench.LossTolerance(nats)"
        )


def _n_kept(keep: Budget, order: list[list[KVHead]], curve: Sequence[CurvePoint], *, game: Game, context: int) -> int:
    """How many heads or layers of the order the budget allows."""

    def first(n: int) -> list[KVHead]:
        return [head for group in order[:n] for head in group]

    if isinstance(keep, KVBytes):
        limits = game.limits

        def size(n: int) -> int:
            return kv_bytes(game.m.layers, first(n), window=limits.window, sink=limits.sink, context=context)

        if size(0) > keep.n:
            raise WorkbenchError(f"{keep.n} bytes hold no plan: with every head windowed the cache takes {size(0)}")
        return max(n for n in range(len(order) + 1) if size(n) <= keep.n)
    if isinstance(keep, LossTolerance):
        worst = {p.n_kept: -np.inf for p in curve}
        full = {p.probe: p.nats for p in curve if p.n_kept == len(game.heads)}
        for p in curve:
            worst[p.n_kept] = max(worst[p.n_kept], p.nats - full[p.probe])
        fewest = min(n for n, loss in worst.items() if loss <= keep.nats)
        return next(n for n in range(len(order) + 1) if len(first(n)) >= fewest)
    return round(keep * len(order))
