"""Make a plan from a ranking and a budget, and measure it on probes that the ranking has not seen."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import nn

from workbench.console import duration, is_watched, warn, watched_bar
from workbench.detectors.bootstrap import bootstrap
from workbench.heads import KVHead, WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.planning.budgets import check_budget, lost_nats, numbers_tried
from workbench.planning.conversion_objective import Game
from workbench.planning.efforts import Effort, extent
from workbench.planning.evaluation_tasks import (
    CompleteEvaluation,
    Evaluation,
    check_evaluation,
    check_numbers,
    completed,
)
from workbench.planning.head_choices import (
    Choices,
    HeadChoices,
    check_choices,
    choose,
    has_linear,
    sparse_form,
    unexplained,
    with_forms,
)
from workbench.planning.keep_curves import adaptive_counts, enough_at, keep_curve, no_gap, order_of
from workbench.planning.model_passes import Passes, counting
from workbench.planning.plan_rankings import baseline_curve, ranked
from workbench.planning.plan_work import VERDICT, PlanCost, PlanWork, measured
from workbench.planning.rankings.registry import Ranking, check_method
from workbench.planning.sparse_choice import check_readable, sparse_forms
from workbench.planning.task_abilities import unable
from workbench.planning.verdict_over_length import TOLERANCE, VerdictWork, verdict_work
from workbench.probes.token_ids import context
from workbench.store.conversions import Window
from workbench.store.finished_pieces import Pieces, kept_pieces, pieces_beside
from workbench.store.length_verdict import LengthVerdict
from workbench.store.plan_file import Budget, LossTolerance, Plan, RankedHead, Unit

Progress = Callable[[str], None]
# A plan that takes longer says so beforehand, also where nobody watches.
_LONG_S = 60


def plan(  # noqa: PLR0913  # public arguments, positional in use
    m: HookedModel | nn.Module,
    window: int,
    sink: int = 0,
    keep: Budget = 0.25,
    method: str = "window_gates",
    *,
    unit: Unit = "head",
    evaluation: Evaluation | CompleteEvaluation | None = None,
    effort: Effort = "standard",
    baselines: Sequence[str] | None = None,
    choices: Choices = ("window",),
    verdict: Sequence[int] | bool = True,
    out: str | Path | None = None,
    progress: Progress | bool | None = True,
) -> Plan:
    """Rank the key/value heads of a model, keep as many as the budget allows, and measure the result.

    Heads that see no further than the window by themselves are no candidates and take no part of the budget. The plan's
    `evidence` is the method's own, with the loss that remains (`lost_nats`) and the share that is recovered
    (`recovered`) on the held-out probe where the kept heads do worst, and the fewest heads of the curve from which on
    95 % are recovered on every held-out probe (`enough`). Its `remarks` say what is in doubt.

    Args:
        window, sink: what a windowed head still sees, in tokens.
        keep: a share of the heads of softmax layers (of the layers, for unit="layer"); or `KVBytes`, `LossTolerance`.
        method: one of `workbench.planning.METHODS`, or a name registered with `workbench.planning.ranking`.
        unit: keep heads, or whole layers by the sum of their heads' scores.
        evaluation: default tasks beyond the window that the model can do, as many as the effort pays for; what an
            `Evaluation` leaves out is completed.
        effort: `quick`, `standard` or `thorough`: sequences, passes of the ranking, points of the curve, baselines.
        baselines: methods to compare with, such as `random`. Default: the evaluation's, or else the effort's.
        choices: what heads that are not kept may get. ("window", "linear", "sparse"), or two of them: each the
            cheapest that is safe for it, see `workbench.planning.head_choices`. A `LinearFit` in place of "linear" has
            the forms to choose, and a `SparseAttention` in place of "sparse" its form, which by default reads as many
            keys as the window has, selected by oracle.
        verdict: judge the plan at these lengths, see `workbench.verdict`; True: at three, if the model has a tokenizer.
        out: write the plan here. Finished pieces are kept beside the file until then, so that the same call goes on
            where it was interrupted, with the same plan in the end.
        progress: a bar with the time to go on a terminal and in a notebook, and what it costs on stderr before it
            begins; or a function that is called with a line of text for each step; False: neither.

    Raises:
        WorkbenchError: for an unknown method, unit or effort, a window that is impossible or leaves nothing far in a
            probe, a budget that is out of range or keeps no layer, a held-out probe with the tokens of the ranking's
            probe, a model that can do none of the default tasks, choices that no head can have, sparse attention that
            reads a whole probe, or a file that cannot be written.
        RunLocked: if another process makes the same file.
    """
    work = prepared(
        m,
        window,
        sink,
        keep,
        method,
        unit=unit,
        evaluation=evaluation,
        effort=effort,
        baselines=baselines,
        choices=choices,
        verdict=verdict,
    )
    announce = progress if callable(progress) else (lambda _: None)
    with _pieces(work, out, announce) as work:
        cost = measured(work) if progress else work.cost()
        _announce_cost(work, cost, progress)
        with _watched(work, cost, announce, shown=bool(progress)) as begin:
            made = _made(work, announce, begin)
        if out is not None:
            made.save(out)
    return made


def plan_cost(  # noqa: PLR0913  # the arguments of `plan`
    m: HookedModel | nn.Module,
    window: int,
    sink: int = 0,
    keep: Budget = 0.25,
    method: str = "window_gates",
    *,
    unit: Unit = "head",
    evaluation: Evaluation | CompleteEvaluation | None = None,
    effort: Effort = "standard",
    baselines: Sequence[str] | None = None,
    choices: Choices = ("window",),
    verdict: Sequence[int] | bool = True,
    out: str | Path | None = None,
) -> PlanCost:
    """What `plan` with the same arguments costs, from one batch that is run and timed; nothing is written.

    Raises:
        WorkbenchError: as `plan`.
    """
    work = prepared(
        m,
        window,
        sink,
        keep,
        method,
        unit=unit,
        evaluation=evaluation,
        effort=effort,
        baselines=baselines,
        choices=choices,
        verdict=verdict,
    )
    if out is not None:
        work = _with_pieces(work, kept_pieces(Path(out), work.settings()))
    return measured(work)


def prepared(  # noqa: PLR0913  # the arguments of `plan`
    m: HookedModel | nn.Module,
    window: int,
    sink: int,
    keep: Budget,
    method: str,
    *,
    unit: Unit,
    evaluation: Evaluation | CompleteEvaluation | None,
    effort: Effort,
    baselines: Sequence[str] | None,
    choices: Choices,
    verdict: Sequence[int] | bool,
) -> PlanWork:
    """The settings of a plan, checked.

    Raises:
        WorkbenchError: as `plan`.
    """
    m = open_model(m)
    check_numbers(window, sink)
    check_budget(keep)
    check_method(method)
    check_choices(choices)
    if unit not in get_args(Unit):
        raise WorkbenchError(f"unit is {unit!r}; expected 'head' or 'layer'")
    paid = extent(effort)
    evaluation = completed(m, evaluation or Evaluation(), window, sink, n_sequences=paid.n_sequences)
    compared = paid.baselines if evaluation.baselines is None else evaluation.baselines
    compared = compared if baselines is None else tuple(baselines)
    for baseline in compared:
        check_method(baseline)
    check_evaluation(evaluation, window + sink)
    game = Game(m, evaluation.probe, window, sink=sink, objective=evaluation.objective, seed=evaluation.seed)
    choices = with_forms(choices, Window(window, sink))
    sparse = sparse_form(choices)
    if sparse is not None:
        sparse_forms(game, sparse)  # refuses a model without a head that can have it
        check_readable(sparse, (evaluation.probe, *evaluation.held_out), evaluation.context)
    held_out = tuple(
        Game(m, p, window, sink=sink, seed=evaluation.seed, ends=evaluation.ends.get(p.digest))
        for p in evaluation.held_out
    )
    return PlanWork(
        m=m,
        window=window,
        sink=sink,
        keep=keep,
        method=method,
        unit=unit,
        evaluation=evaluation,
        extent=paid,
        baselines=tuple(dict.fromkeys(name for name in compared if name != method)),
        game=game,
        held_out=held_out,
        choices=tuple(choices),
        verdict=_questions(m, Window(window, sink), verdict, keep, effort=effort, seed=evaluation.seed),
    )


def _questions(  # what a verdict needs
    m: HookedModel, window: Window, lengths: Sequence[int] | bool, keep: Budget, *, effort: Effort, seed: int
) -> VerdictWork | str | None:
    """The questions by length that the plan is judged on, or why there are none; None where none are to be asked."""
    tolerance = keep if isinstance(keep, LossTolerance) else TOLERANCE
    if not isinstance(lengths, bool):
        return verdict_work(m, window, lengths, tolerance=tolerance, effort=effort, seed=seed)
    if not lengths or m.tokenizer is None:
        return None
    try:
        return verdict_work(m, window, tolerance=tolerance, effort=effort, seed=seed)
    except WorkbenchError as error:
        return f"no verdict over the length: {error}"


def _judged(work: PlanWork, plan: Plan, begin: Callable[[str, str], None]) -> Plan:
    """The plan with its verdict over the length, or with a remark that says why there is none."""
    if not isinstance(work.verdict, VerdictWork):
        return plan if work.verdict is None else replace(plan, remarks=(*plan.remarks, work.verdict))
    questions = work.verdict
    begin(VERDICT, f"what the plan loses at {', '.join(f'{n:,}' for n in questions.made)} tokens")

    def judge() -> dict[str, Any]:
        try:
            return {"verdict": questions.of(plan, announce=lambda _: None, shown=False).document()}
        except WorkbenchError as error:
            return {"remark": f"no verdict over the length: {error}"}

    judged = work.game.pieces.get(VERDICT, judge)
    if "remark" in judged:
        return replace(plan, remarks=(*plan.remarks, judged["remark"]))
    return replace(plan, verdict=LengthVerdict.read(judged["verdict"]))


def _chosen(work: PlanWork, begin: Callable[[str, str], None]) -> tuple[PlanWork, HeadChoices | None]:
    """The work towards each head's own conversion, where there is more than a window to choose."""
    if len(work.choices) == 1:
        return work, None
    is_offered = {"linear": has_linear(work.choices), "sparse": sparse_form(work.choices) is not None}
    begin(
        "choices", f"a window or {' or '.join(name for name in is_offered if is_offered[name])} attention for each head"
    )
    chosen = choose(work.game, work.choices, work.keep, nodes=work.paid_nodes(), context=work.evaluation.context)
    return (work.towards(chosen.conversions) if chosen.beside_windows else work), chosen


def _made(work: PlanWork, announce: Progress, begin: Callable[[str, str], None]) -> Plan:
    """The plan; `begin` is called with the part of the cost that comes next, and with what it is."""
    work, chosen = _chosen(work, begin)
    evaluation, game, held_out = work.evaluation, work.game, work.held_out
    begin("ranking", f"ranking {len(game.heads)} heads by {work.method}")
    ranking = ranked(work, work.method)
    order = order_of(ranking, work.unit)
    begin("curve", f"what {work.method} keeps on held-out probes")
    tried = numbers_tried(work.keep, order, held_out, context=evaluation.context)
    n_kept = tried[-1]
    if work.unit == "layer" and n_kept == 0:
        raise WorkbenchError(f"a budget of {work.keep} keeps none of {len(order)} layers; pass a larger one")
    if n_kept in (0, len(order)):
        announce(f"the budget keeps {'all' if n_kept else 'none'} of {len(order)} {work.unit}s: nothing is chosen")
    is_tolerance = isinstance(work.keep, LossTolerance)
    counts = adaptive_counts(order, held_out, at_most=work.n_points, measured=tried, bisected=not is_tolerance)
    curve = keep_curve(work.method, order, held_out, counts=counts, context=evaluation.context)
    for baseline in work.baselines:
        begin(baseline, f"what {baseline} keeps")
        curve += baseline_curve(work, baseline, ranking, counts=work.baseline_counts(counts, n_kept))
    keep_heads = tuple(sorted(order.first(n_kept)))
    recovered = [p.recovered for p in curve if p.method == work.method and p.n_kept == len(keep_heads)]
    worst = {
        "lost_nats": lost_nats(order, n_kept, held_out),
        "recovered": min((share for share in recovered if not isnan(share)), default=nan),
        "enough": enough_at([p for p in curve if p.method == work.method]),
    }
    is_mixed = chosen is not None and bool(chosen.beside_windows)
    remarks = unexplained("each head's own conversion" if is_mixed else "a window", ranking.evidence)
    remarks += [remark for game in held_out for remark in (*no_gap(game), *unable(game))]
    if chosen is not None:
        remarks = list(dict.fromkeys([*chosen.remarks, *remarks]))
    made = Plan(
        model=work.m.name,
        layers=work.m.layers,
        window=work.window,
        sink=work.sink,
        unit=work.unit,
        method=work.method,
        units=ranking.units,
        probe=evaluation.probe.name,
        probe_digest=evaluation.probe.digest,
        seed=evaluation.seed,
        context=evaluation.context,
        keep=keep_heads,
        ranking=_ranked_heads(ranking, order.first(len(order)), seed=evaluation.seed),
        curve=tuple(curve),
        evidence={**({} if chosen is None else chosen.evidence), **ranking.evidence, **worst},
        conversions={} if chosen is None else chosen.beside_windows,
        costs=() if chosen is None else chosen.costs,
        remarks=(*evaluation.left_out, *remarks, *_beyond(work)),
    )
    return _judged(work, made, begin)


def _beyond(work: PlanWork) -> list[str]:
    """A remark where sizes of caches are counted at a length that the model was not made for."""
    longest, counted = context(work.m), work.evaluation.context
    if longest is None or counted <= longest:
        return []
    return [f"Caches are counted at {counted:,} tokens, and the model's context has {longest:,}."]


def _announce_cost(work: PlanWork, cost: PlanCost, progress: Progress | bool | None) -> None:
    """To the function that was passed; else on stderr where a person waits for it, or where it is long."""
    n_sequences, n_tokens = work.evaluation.probe.tokens.shape
    line = f"{len(work.game.heads)} heads, ranked on {n_sequences} × {n_tokens} tokens: {cost}"
    if callable(progress):
        progress(line)
    elif progress and (is_watched() or cost.seconds >= _LONG_S):
        warn(line)


@contextmanager
def _pieces(work: PlanWork, out: str | Path | None, announce: Progress) -> Generator[PlanWork]:
    """The work with the pieces that are kept beside its file, where it has one that can be replaced."""
    path = None if out is None else Path(out)
    if path is None or (path.exists() and not path.is_file()):
        yield work
        return
    with pieces_beside(path, work.settings(), announce=announce) as pieces:
        yield _with_pieces(work, pieces)


def _with_pieces(work: PlanWork, pieces: Pieces) -> PlanWork:
    for game in (work.game, *work.held_out):
        game.pieces = pieces
    return work


@contextmanager
def _watched(
    work: PlanWork, cost: PlanCost, announce: Progress, *, shown: bool
) -> Generator[Callable[[str, str], None]]:
    """A bar over the tokens of all passes; the yielded function is called with the part that begins and what it is."""
    to_come = list(cost.parts)
    total, doing = cost.tokens, ""

    with watched_bar("tok", shown=shown) as show:

        def show_passes(passes: Passes) -> None:
            show(passes.tokens, max(total, passes.tokens), doing)

        with counting(work.m.model, show_passes) as passes:

            def begin(name: str, what: str) -> None:
                nonlocal total, to_come, doing
                # Parts that took less than they might have shorten the bar.
                rest = PlanCost(tuple(to_come))
                total, doing = passes.tokens + rest.tokens, name
                announce(f"{what}: {duration(rest.likely_seconds)} to go")
                to_come = [part for part in to_come if part.name.split(":")[0] != name]
                show_passes(passes)

            yield begin


def _ranked_heads(ranking: Ranking, order: Sequence[KVHead], *, seed: int) -> tuple[RankedHead, ...]:
    low = high = np.full(len(ranking.heads), np.nan)
    if ranking.per_sequence is not None:
        counted = np.ones(ranking.per_sequence.shape, dtype=bool)
        low, high = bootstrap(ranking.per_sequence, counted, seed=seed)
    if ranking.margin is not None:
        low, high = low - ranking.margin, high + ranking.margin
    index = {head: i for i, head in enumerate(ranking.heads)}
    return tuple(
        RankedHead(*head, float(ranking.scores[index[head]]), float(low[index[head]]), float(high[index[head]]))
        for head in order
    )
