"""The probes that a plan is made and judged with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import torch

from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning.answer_loss import Objective
from workbench.planning.conversion_objective import Outcome
from workbench.planning.efforts import EXTENTS
from workbench.planning.tasks_it_can_do import NothingWritten, nothing_far, tasks_of_text
from workbench.probes import Probe, build, copy_needle
from workbench.probes.token_ids import context
from workbench.store.conversions import Window, check_window

_NEEDLE = 8
STANDARD = EXTENTS["standard"].n_sequences


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The probes and baselines that a plan is made and judged with; `plan` completes what is left out.

    `probe`: the one heads are ranked on; `held_out`: others, never seen by the ranking, on which the curve is measured.
    Left out, they are those of `default_evaluation`. `baselines`: further methods with a curve, None for those of the
    effort; `random` and `random_in_layer` (as many heads of each layer as the plan would keep; none for a layer-wise
    plan) are means over five orders. `context`: the tokens that cache sizes are counted for, None for the model's
    longest context. `left_out`: sentences on tasks that the model cannot do.
    """

    probe: Probe | None = None
    held_out: tuple[Probe, ...] = ()
    context: int | None = None
    objective: Objective = "loss"
    baselines: tuple[str, ...] | None = None
    seed: int = 0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CompleteEvaluation:
    """An `Evaluation` with nothing left open.

    `ends`: by the digest of a held-out probe, its outcome with no head and with every head windowed, where it was
    measured on the way.
    """

    probe: Probe
    held_out: tuple[Probe, ...]
    context: int
    objective: Objective
    baselines: tuple[str, ...] | None
    seed: int
    left_out: tuple[str, ...]
    ends: Mapping[str, tuple[Outcome, Outcome]] = field(default_factory=dict)


def default_evaluation(
    m: HookedModel, window: int, sink: int, *, seed: int = 0, n_sequences: int = STANDARD
) -> CompleteEvaluation:
    """Tasks of text beyond the window that the model can do; without a tokenizer, needles of random tokens.

    With a tokenizer: RULER's needles with four keys, chains of assignments, far n-grams of natural text, common words
    (fewer than 10 sequences pay for the first two). The model does each of them as it is and with every head windowed.
    A task that it cannot do, or for which it needs nothing far, is left out with a sentence in `left_out`. Heads are
    ranked on needles and chains, joined, where it does them, else on the first task that it does; held out are other
    seeds of those, and the other tasks.

    Args:
        n_sequences: of the ranking's probe; without a tokenizer, of each distance.

    Raises:
        WorkbenchError: if the window is impossible, the model's context does not hold sinks, window and a task, or the
            model can do none of the tasks.
    """
    return completed(m, Evaluation(seed=seed), window, sink, n_sequences=n_sequences)


def completed(
    m: HookedModel, evaluation: Evaluation | CompleteEvaluation, window: int, sink: int, *, n_sequences: int = STANDARD
) -> CompleteEvaluation:
    """An evaluation whose open fields are those of `default_evaluation`.

    With `objective="kl"`, which needs no right answers, tasks are taken whether or not the model can do them.

    Raises:
        WorkbenchError: as `default_evaluation`, where a probe is missing.
    """
    check_numbers(window, sink)
    probe, held_out, left_out = evaluation.probe, evaluation.held_out, evaluation.left_out
    ends: Mapping[str, tuple[Outcome, Outcome]] = {}  # an evaluation that was passed may be of another model or window
    if probe is None or not held_out:
        limits = Window(window, sink)
        if m.tokenizer is None:
            ranked_on, judged_on = _copied(m, limits, n_sequences, seed=evaluation.seed)
        else:
            is_checked = evaluation.objective == "loss"
            try:
                tasks = tasks_of_text(m, limits, n_sequences=n_sequences, seed=evaluation.seed, is_checked=is_checked)
                ranked_on, judged_on, left_out = tasks.ranked_on, tasks.held_out, (*left_out, *tasks.left_out)
                ends = tasks.ends
            except NothingWritten as error:
                ranked_on, judged_on = _copied(m, limits, n_sequences, seed=evaluation.seed)
                left_out = (*left_out, f"Needles of random tokens take the place of text: {error}")
        probe = ranked_on if probe is None else probe
        held_out = held_out or judged_on
    counted = evaluation.context
    if counted is None:
        counted = context(m) or max(p.tokens.shape[1] for p in (probe, *held_out))
    return CompleteEvaluation(
        probe=probe,
        held_out=held_out,
        context=counted,
        objective=evaluation.objective,
        baselines=evaluation.baselines,
        seed=evaluation.seed,
        left_out=left_out,
        ends=ends,
    )


def evaluation_on(  # noqa: PLR0913  (public keywords)
    m: HookedModel,
    window: int,
    sink: int,
    *,
    probe: str | None = None,
    held_out: Sequence[str] = (),
    seed: int = 0,
    n_sequences: int = STANDARD,
) -> CompleteEvaluation:
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
    chosen = Evaluation(ranked_on, tuple(judged_on), seed=seed)
    return completed(m, chosen, window, sink, n_sequences=n_sequences)


def check_numbers(window: int, sink: int) -> None:
    """Raises:
    WorkbenchError: if window or sink are no whole numbers, or no window.
    """
    for name, value in (("window", window), ("sink", sink)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise WorkbenchError(f"{name} is {value!r}; expected a whole number of tokens")
    check_window(window, sink)


def check_evaluation(evaluation: CompleteEvaluation, n_seen: int) -> None:
    """Raises:
    WorkbenchError: if it counts caches at no context, held-out probes share a name or are the one that heads are ranked
        on, or a probe has nothing beyond `n_seen` tokens.
    """
    if evaluation.context < 1:
        raise WorkbenchError(f"context is {evaluation.context}; expected at least 1 token")
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


def _copied(m: HookedModel, limits: Window, n_sequences: int, *, seed: int) -> tuple[Probe, tuple[Probe, ...]]:
    """Needles of random tokens copied from beyond the window, and other ones to hold out."""
    longest = context(m)
    near = limits.window + limits.sink + _NEEDLE
    length = 4 * near if longest is None else min(longest, 4 * near)
    far = [d for d in (near, 2 * near, 3 * near) if d + _NEEDLE + 1 <= length]
    if not far:
        raise nothing_far(limits, longest)
    ranked_on, judged_on = (
        copy_needle(m, far, length=length, n_sequences=n_sequences, seed=seed + i, name=f"far_needle_{i}")
        for i in range(2)
    )
    return ranked_on, (judged_on,)
