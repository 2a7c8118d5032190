"""The default tasks of a plan: those of text that the model can do, and for which it needs the far context."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from workbench.console import duration, is_watched, warn, watched_bar
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.hooks.interventions.gates import converted, converted_heads
from workbench.planning.conversion_objective import Outcome, outcome_of
from workbench.planning.efforts import EXTENTS
from workbench.planning.far_tasks import CHAINS, NEEDLES, SHORTEST_TEXT, TEXT_TASKS, FarTask, far_probe
from workbench.planning.question_scores import answered, by_question
from workbench.planning.task_abilities import ability
from workbench.probes import Probe, joined
from workbench.probes.far_rows import widest_window
from workbench.probes.token_ids import context
from workbench.store.conversions import Window

# A text is six times what a windowed head sees, as far as that is no longer than this; longer ones are twice that.
_TIMES = 6
_LONG = 2048
# Held-out texts of a task: with fewer, points of the curve have no interval.
_FEWEST = 5
# Where trying the tasks takes longer than this, it is said, also where nobody watches.
_LONG_S = 20
# The tasks whose far context is looked up, which heads are ranked on together.
_RANKED = (NEEDLES.name, CHAINS.name)


class NothingWritten(WorkbenchError):
    """No task of text can be written for this model, as with a tokenizer that lacks its words."""


@dataclass(frozen=True, slots=True)
class DefaultTasks:
    """The probe that heads are ranked on, those that are held out, and sentences on tasks that are left out.

    `ends`: by the digest of a held-out probe, its outcome with no head and with every head windowed, where measured.
    """

    ranked_on: Probe
    held_out: tuple[Probe, ...]
    left_out: tuple[str, ...]
    ends: Mapping[str, tuple[Outcome, Outcome]] = field(default_factory=dict)


def tasks_of_text(
    m: HookedModel, limits: Window, *, n_sequences: int, seed: int, is_checked: bool = True
) -> DefaultTasks:
    """The default tasks for a model with a tokenizer; the model does each twice, unless they are not checked.

    Raises:
        WorkbenchError: if the context holds nothing far, or the model can do none of the tasks.
        NothingWritten: if none of them can be written.
    """
    length = far_length(m, limits)
    tasks = TEXT_TASKS if n_sequences >= EXTENTS["standard"].n_sequences else TEXT_TASKS[:2]
    n_held_out = max(_FEWEST, n_sequences // 2)
    probes: dict[str, Probe] = {}
    left_out: list[str] = []
    ends: dict[str, tuple[Outcome, Outcome]] = {}
    for task in tasks:
        try:
            probes[task.name] = far_probe(m, task, limits, length=length, n_texts=n_held_out, seed=seed + 1)
        except WorkbenchError as error:
            left_out.append(f"{task.name} is left out: {error}.")
    if not probes:
        raise NothingWritten(" ".join(left_out))
    if is_checked:
        by_name = {task.name: task for task in tasks}
        reasons, ends = _tried(m, limits, {by_name[name]: probe for name, probe in probes.items()})
        for name, reason in reasons.items():
            left_out.append(f"{name} is left out: {reason}.")
            del probes[name]
    if not probes:
        raise WorkbenchError(
            f"no default task can judge a plan with window {limits.window} and sink {limits.sink}: "
            f"{' '.join(left_out)} Pass probes that the model can do (probe= and held_out= of Evaluation, --probe and "
            "--held-out; `workbench score MODEL` says what it can do), another window, or objective='kl', which needs "
            "no right answers"
        )
    ranked = [task for task in tasks if task.name in probes and task.name in _RANKED]
    ranked = ranked or [next(task for task in tasks if task.name in probes)]
    n_each = -(-n_sequences // len(ranked))
    ranked_on = [far_probe(m, task, limits, length=length, n_texts=n_each, seed=seed) for task in ranked]
    probe = joined(ranked_on) if len(ranked) > 1 else ranked_on[0]
    return DefaultTasks(probe, tuple(probes.values()), tuple(left_out), ends)


def far_length(m: HookedModel, limits: Window) -> int:
    """Tokens of a text whose answers mostly lie beyond the window and beyond a hybrid's own windows.

    Raises:
        WorkbenchError: if the model's context does not hold more than a windowed head sees.
    """
    longest, seen = context(m), limits.window + limits.sink
    far = _TIMES * seen if _TIMES * seen <= _LONG else max(_LONG, 2 * seen)
    length = max(SHORTEST_TEXT, far, 2 * widest_window(m.layers))
    length = length if longest is None else min(longest, length)
    if length <= seen:
        raise nothing_far(limits, longest)
    return length


def nothing_far(limits: Window, longest: int | None) -> WorkbenchError:
    """The error where the context holds nothing that a windowed head does not see."""
    return WorkbenchError(
        f"window {limits.window} and sink {limits.sink} leave nothing far in a context of {longest} tokens; pass a "
        "smaller window"
    )


def _tried(
    m: HookedModel, limits: Window, probes: dict[FarTask, Probe]
) -> tuple[dict[str, str], dict[str, tuple[Outcome, Outcome]]]:
    """Of each task that cannot judge a plan, why; and the outcomes of each probe as the model is and windowed."""
    n_tokens = 2 * sum(p.tokens.numel() for p in probes.values())
    with watched_bar("tok") as show:
        done, began = 0, time.monotonic()

        def on_tokens(n: int) -> None:
            nonlocal done
            seconds = (time.monotonic() - began) * n_tokens / n
            if not done and seconds > _LONG_S and not is_watched():
                warn(f"trying what the model can do, {n_tokens:,} tokens in {len(probes)} tasks: {duration(seconds)}")
            done += n
            show(done, n_tokens, "what the model can do")

        show(0, n_tokens, "what the model can do")
        full = answered(m, list(probes.values()), on_tokens=on_tokens)
        with converted(m, converted_heads(m.layers, limits), limits):
            windowed = answered(m, list(probes.values()), on_tokens=on_tokens)
    reasons: dict[str, str] = {}
    ends: dict[str, tuple[Outcome, Outcome]] = {}
    for (task, probe), *both in zip(probes.items(), full, windowed, strict=True):
        tried = ability(task.measure, *(by_question(probe, rows) for rows in both))
        if tried.reason:
            reasons[task.name] = tried.reason
        as_it_is, without = (outcome_of(probe, rows.right, rows.nats) for rows in both)
        ends[probe.digest] = as_it_is, without
    return reasons, ends
