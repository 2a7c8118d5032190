"""Judge a plan at several lengths: the model itself, planned, and with every head windowed, on tasks that it can do.

Conversions are known to fail with length, where short benchmarks show nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

from torch import nn

from workbench.console import watched_bar
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel, open_model
from workbench.hooks.interventions.gates import converted, converted_heads
from workbench.planning.efforts import Effort, extent
from workbench.planning.far_tasks import SHORTEST_TEXT, FarTask, chosen_tasks, far_probe
from workbench.planning.question_scores import OnTokens, QuestionScores, mean_interval, n_passes, question_scores
from workbench.planning.task_abilities import TaskAbility, ability
from workbench.probes import Probe
from workbench.probes.far_rows import widest_window
from workbench.probes.token_ids import context
from workbench.store.conversions import Window
from workbench.store.length_verdict import Arm, LengthVerdict, VerdictCell
from workbench.store.plan_file import LossTolerance, Plan

# Nats per answer: every answer token keeps 95 % of its probability.
TOLERANCE = 0.05
# Texts of a task are as many as fit into these tokens, within the bounds.
_TOKENS = {"quick": 3072, "standard": 3072, "thorough": 16384}
_FEWEST, _MOST = 2, {"quick": 4, "standard": 4, "thorough": 16}
# Away from the seeds that plans are made with.
_SEED = 1000
# The longest text, in tokens, that a quick effort takes for a third length.
_QUICK = 2048
# The shortest text of bare tokens that holds a question and what is asked for.
_SHORTEST_TOKENS = 32


def verdict(  # noqa: PLR0913  # public keywords
    m: HookedModel | nn.Module,
    plan: Plan,
    lengths: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    *,
    tolerance: float | int | LossTolerance = TOLERANCE,
    effort: Effort = "standard",
    beyond_context: bool = False,
    progress: Callable[[str], None] | None = None,
) -> LengthVerdict:
    """Scores of the model, of the plan and of the all-windowed model on tasks at several lengths, and a sentence.

    A task that the model itself cannot do at a length, or for which it needs nothing far, does not count there; it is
    not tried at longer lengths where it cannot be done. The seeds are others than those of plans.

    Args:
        lengths: in tokens; default: three, doubling, from far beyond the window on, within the model's context; of a
            quick effort the third is left out where it is longer than 2,048.
        tasks: names of `far_tasks` ("needles", "variable tracking", "far text", "common words"), or probes as
            `probes.build` reads them without length, n_sequences and seed; default: all, for `quick` chains alone.
        tolerance: nats per answer that the plan may lose.
        effort: `quick` and `standard` take 2 to 4 texts of a task at each length, `thorough` 2 to 16.
        beyond_context: try lengths beyond the model's context, too.
        progress: called with a line that says what it costs, and with one for each length.

    Raises:
        WorkbenchError: if the plan is for another model, a length is too short or beyond the context, a task is
            unknown, or no task counts at any length.
    """
    m = open_model(m)
    plan.check(m.layers)
    work = verdict_work(
        m,
        Window(plan.window, plan.sink),
        lengths,
        tasks,
        tolerance=tolerance,
        effort=effort,
        beyond_context=beyond_context,
        seed=plan.seed,
    )
    announce = progress or (lambda _: None)
    announce(
        f"the verdict at {', '.join(f'{n:,}' for n in work.made)} tokens takes up to {work.n_passes:,} forward passes, "
        f"{work.n_tokens:,} tokens in all"
    )
    return work.of(plan, announce=announce)


def verdict_work(  # noqa: PLR0913  # what `verdict` takes, but for the plan
    m: HookedModel,
    window: Window,
    lengths: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    *,
    tolerance: float | int | LossTolerance = TOLERANCE,
    effort: Effort = "standard",
    beyond_context: bool = False,
    seed: int = 0,
) -> VerdictWork:
    """The questions of a verdict on plans with this window, before there is a plan.

    Raises:
        WorkbenchError: as `verdict`, but for what depends on answers.
    """
    extent(effort)  # refuses what is none
    nats = tolerance.nats if isinstance(tolerance, LossTolerance) else tolerance
    if isinstance(nats, bool) or not nats >= 0:
        raise WorkbenchError(f"a tolerance of {nats!r} nats was given; expected 0 or more")
    tried = (
        _default_lengths(m, window, effort) if lengths is None else _checked_lengths(m, window, lengths, beyond_context)
    )
    written = chosen_tasks(m, tasks, effort)
    seed += _SEED
    made = {n: _probes(m, window, written, n, n_texts=_n_texts(n, effort), seed=seed) for n in tried}
    return VerdictWork(m, window, seed, float(nats), made)


@dataclass(frozen=True, slots=True)
class VerdictWork:
    """The questions of a verdict by length, and what it takes to answer them."""

    m: HookedModel
    window: Window
    seed: int
    tolerance: float
    made: dict[int, _Made]

    @property
    def n_passes(self) -> int:
        """Forward passes of all arms, at most: tasks that the model cannot do are left out as they show."""
        return 3 * sum(n_passes(list(of_length.probes.values())) for of_length in self.made.values())

    @property
    def n_tokens(self) -> int:
        """Tokens of these passes."""
        return sum(self.tokens_by_length().values())

    @property
    def digest(self) -> str:
        """What identifies the questions."""
        probes = [p.digest for made in self.made.values() for p in made.probes.values()]
        return f"{self.tolerance} nats: {' '.join(probes)}"

    def tokens_by_length(self) -> dict[int, int]:
        """Tokens of all arms at each length."""
        return {n: 3 * sum(p.tokens.numel() for p in made.probes.values()) for n, made in self.made.items()}

    def of(self, plan: Plan, *, announce: Callable[[str], None], shown: bool = True) -> LengthVerdict:
        """The verdict on a plan. `shown`: whether a bar may be drawn.

        Raises:
            WorkbenchError: if no task counts at any length.
        """
        course = _Course(self.m, plan, self.window, self.seed)
        cells: list[VerdictCell] = []
        given_up: dict[str, str] = {}
        n_tokens = self.n_tokens
        with watched_bar("token", shown=shown) as show:
            done = 0

            def on_tokens(n: int) -> None:
                nonlocal done
                done += n
                show(done, n_tokens, "verdict")

            show(0, n_tokens, "verdict")
            for length, of_length in self.made.items():
                announce(f"{length:,} tokens")
                cells += course.cells(length, of_length, given_up, on_tokens=on_tokens)
        judged = LengthVerdict(self.tolerance, context(self.m) or 0, tuple(cells))
        if all(judged.state(length) == "nothing" for length in self.made):
            raise WorkbenchError(
                f"nothing can be said of the plan, since no task counts: {' '.join(judged.remarks)} Pass tasks that "
                "the model can do (`workbench score MODEL` says which), or other lengths"
            )
        return judged


@dataclass(frozen=True, slots=True)
class _Made:
    """The probes of one length by task, and why others could not be made."""

    probes: dict[str, Probe]
    measures: dict[str, FarTask]
    problems: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Course:
    """A model and a plan, which go through the tasks of each length."""

    m: HookedModel
    plan: Plan
    window: Window
    seed: int

    def cells(self, length: int, made: _Made, given_up: dict[str, str], *, on_tokens: OnTokens) -> list[VerdictCell]:
        """The cells of one length; tasks that the model cannot do are added to `given_up`."""
        names = [name for name in made.probes if name not in given_up]
        full = self._scores("full", made, names, on_tokens)
        windowed = self._scores("windowed", made, names, on_tokens)
        abilities = {
            part: ability(made.measures[name].measure, full[name, part], windowed[name, part], seed=self.seed)
            for name, part in full
        }
        planned_names = [n for n in names if any(abilities[part].verdict == "does" for name, part in full if name == n)]
        planned = self._scores("planned", made, planned_names, on_tokens)
        cells: list[VerdictCell] = []
        for name, part in full:
            by_arm: dict[Arm, QuestionScores] = {"full": full[name, part]}
            if (name, part) in planned:
                by_arm["planned"] = planned[name, part]
            by_arm["windowed"] = windowed[name, part]
            cells += [self._cell(part, length, arm, by_arm, abilities[part]) for arm in by_arm]
        for name in names:
            verdicts = {abilities[part].verdict for other, part in full if other == name}
            if verdicts <= {"partly", "cannot"}:
                given_up[name] = f"not tried, since the model cannot do it at {length:,} tokens"
        skipped = {name: given_up[name] for name in made.probes if name not in names} | made.problems
        return cells + [_not_tried(name, length, reason) for name, reason in skipped.items()]

    def _scores(
        self, arm: Arm, made: _Made, names: Sequence[str], on_tokens: OnTokens
    ) -> dict[tuple[str, str], QuestionScores]:
        """By task and part of it: the questions of several hops are a part for each number of hops."""
        with self._as(arm):
            scores = question_scores(self.m, [made.probes[name] for name in names], on_tokens=on_tokens)
        by_part: dict[tuple[str, str], QuestionScores] = {}
        for name, questions in zip(names, scores, strict=True):
            hops = sorted(set(questions.classes.tolist()))
            if made.probes[name].class_name != "hops":
                by_part[name, name] = questions
                continue
            for n in hops:
                by_part[name, f"{name}, {n} hop{'s' if n > 1 else ''}"] = questions.of_class(n)
        return by_part

    @contextmanager
    def _as(self, arm: Arm) -> Generator[None]:
        if arm == "full":
            yield
        elif arm == "planned":
            with self.m.apply(self.plan):
                yield
        else:
            with converted(self.m, converted_heads(self.m.layers, self.window), self.window):
                yield

    def _cell(
        self, task: str, length: int, arm: Arm, by_arm: dict[Arm, QuestionScores], of_task: TaskAbility
    ) -> VerdictCell:
        scores = by_arm[arm]
        lost = scores.nats - by_arm["full"].nats
        right_lo, right_hi = mean_interval(scores.right, scores.text, seed=self.seed)
        nats_lo, nats_hi = mean_interval(scores.nats, scores.text, seed=self.seed)
        lost_lo, lost_hi = mean_interval(lost, scores.text, seed=self.seed)
        return VerdictCell(
            task=task,
            length=length,
            arm=arm,
            right=float(scores.right.mean()),
            right_lo=right_lo,
            right_hi=right_hi,
            nats=float(scores.nats.mean()),
            nats_lo=nats_lo,
            nats_hi=nats_hi,
            lost=float(lost.mean()),
            lost_lo=lost_lo,
            lost_hi=lost_hi,
            n_questions=len(lost),
            n_texts=len(set(scores.text.tolist())),
            measure=of_task.measure,
            left_out=of_task.reason,
        )


def _probes(  # a model, its window, and what a probe is made of
    m: HookedModel, window: Window, tasks: Sequence[FarTask], length: int, *, n_texts: int, seed: int
) -> _Made:
    probes: dict[str, Probe] = {}
    problems: dict[str, str] = {}
    for task in tasks:
        try:
            probes[task.name] = far_probe(m, task, window, length=length, n_texts=n_texts, seed=seed)
        except WorkbenchError as error:
            problems[task.name] = str(error)
    return _Made(probes, {task.name: task for task in tasks}, problems)


def _not_tried(task: str, length: int, reason: str) -> VerdictCell:
    nan = float("nan")
    return VerdictCell(task, length, "full", *(nan,) * 9, n_questions=0, n_texts=0, left_out=reason)


def _n_texts(length: int, effort: Effort) -> int:
    return max(_FEWEST, min(_MOST[effort], _TOKENS[effort] // length))


def _default_lengths(m: HookedModel, window: Window, effort: Effort) -> list[int]:
    """Doubling from far beyond the window on: three, or two where a quick effort's third would take longest of all."""
    longest, seen = context(m), window.window + window.sink
    shortest = _SHORTEST_TOKENS if m.tokenizer is None else SHORTEST_TEXT
    first = 1 << (max(shortest, 2 * seen, 2 * widest_window(m.layers)) - 1).bit_length()
    doubling = [first, 2 * first] if effort == "quick" and 4 * first > _QUICK else [first, 2 * first, 4 * first]
    fitting = [n for n in doubling if longest is None or n <= longest]
    if not fitting and longest is not None and longest > seen:
        fitting = [longest]
    if not fitting:
        raise WorkbenchError(
            f"window {window.window} and sink {window.sink} leave nothing far in a context of {longest} tokens; "
            "pass a plan of a smaller window"
        )
    return fitting


def _checked_lengths(m: HookedModel, window: Window, lengths: Sequence[int], beyond_context: bool) -> list[int]:
    longest, seen = context(m), window.window + window.sink
    tried = sorted(set(lengths))
    if not tried:
        raise WorkbenchError("no length was given; expected some, such as [512, 1024, 2048]")
    for n in tried:
        if isinstance(n, bool) or not isinstance(n, Integral):
            raise WorkbenchError(f"a length of {n!r} was given; expected whole numbers of tokens")
    if tried[0] <= seen:
        raise WorkbenchError(
            f"a length of {tried[0]} tokens was given, and a windowed head sees {seen}; pass longer ones"
        )
    if longest is not None and tried[-1] > longest and not beyond_context:
        raise WorkbenchError(
            f"a length of {tried[-1]:,} tokens was given, and the model's context has {longest:,}; pass shorter ones, "
            "or beyond_context=True (--beyond-context) to try it all the same"
        )
    return [int(n) for n in tried]
