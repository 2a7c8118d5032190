"""The default tasks of a plan: those of text that the model can do, and for which it needs the far context."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.console import watched_bar
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.hooks.interventions.gates import converted, converted_heads
from workbench.planning.efforts import EXTENTS
from workbench.planning.far_tasks import CHAINS, NEEDLES, TEXT_TASKS, FarTask, far_probe
from workbench.planning.question_scores import question_scores
from workbench.planning.task_abilities import ability
from workbench.probes import Probe, joined
from workbench.probes.far_rows import widest_window
from workbench.probes.token_ids import context
from workbench.store.conversions import Window

# What instruction, needles and questions take, and haystack to hide them in.
_SHORTEST = 512
# Up to here a text is four times what a windowed head sees; longer ones are twice that.
_FOUR_TIMES = 2048
# Held-out texts of a task: with fewer, points of the curve have no interval.
_FEWEST = 5
# The tasks whose far context is looked up, which heads are ranked on together.
_RANKED = (NEEDLES.name, CHAINS.name)


class NothingWritten(WorkbenchError):
    """No task of text can be written for this model, as with a tokenizer that lacks its words."""


@dataclass(frozen=True, slots=True)
class DefaultTasks:
    """The probe that heads are ranked on, those that are held out, and sentences on tasks that are left out."""

    ranked_on: Probe
    held_out: tuple[Probe, ...]
    left_out: tuple[str, ...]


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
    for task in tasks:
        try:
            probes[task.name] = far_probe(m, task, limits, length=length, n_texts=n_held_out, seed=seed + 1)
        except WorkbenchError as error:
            left_out.append(f"{task.name} is left out: {error}.")
    if not probes:
        raise NothingWritten(" ".join(left_out))
    if is_checked:
        by_name = {task.name: task for task in tasks}
        for name, reason in _reasons(m, limits, {by_name[name]: probe for name, probe in probes.items()}).items():
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
    return DefaultTasks(joined(ranked_on) if len(ranked) > 1 else ranked_on[0], tuple(probes.values()), tuple(left_out))


def far_length(m: HookedModel, limits: Window) -> int:
    """Tokens of a text whose answers mostly lie beyond the window and beyond a hybrid's own windows.

    Raises:
        WorkbenchError: if the model's context does not hold more than a windowed head sees.
    """
    longest, seen = context(m), limits.window + limits.sink
    far = 4 * seen if 4 * seen <= _FOUR_TIMES else max(_FOUR_TIMES, 2 * seen)
    length = max(_SHORTEST, far, 2 * widest_window(m.layers))
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


def _reasons(m: HookedModel, limits: Window, probes: dict[FarTask, Probe]) -> dict[str, str]:
    """Of each task that cannot judge a plan, why."""
    n_tokens = 2 * sum(p.tokens.numel() for p in probes.values())
    with watched_bar("tok") as show:
        done = 0

        def on_tokens(n: int) -> None:
            nonlocal done
            done += n
            show(done, n_tokens, "what the model can do")

        show(0, n_tokens, "what the model can do")
        full = question_scores(m, list(probes.values()), on_tokens=on_tokens)
        with converted(m, converted_heads(m.layers, limits), limits):
            windowed = question_scores(m, list(probes.values()), on_tokens=on_tokens)
    abilities = [ability(task.measure, x, y) for task, x, y in zip(probes, full, windowed, strict=True)]
    return {task.name: a.reason for task, a in zip(probes, abilities, strict=True) if a.reason}
