"""The answers of a study as tables: scores of every arm by task and length, with what it loses and what is back.

Questions of all seeds are pooled, and intervals are over texts. Losses are paired, question by question, with the model
itself; the share that is back is of what windowing every head loses, in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.detectors.bootstrap import percentile_interval, resampled_means
from workbench.emergence.thresholds import MIN_SEQUENCES
from workbench.experiments.published_study.arm_answers import pooled, task_of
from workbench.experiments.published_study.judged_texts import TEXT, judged_tasks, lengths_of_study
from workbench.experiments.published_study.study_arms import StudyArm, end_arms
from workbench.experiments.published_study.study_pieces import read_answers
from workbench.experiments.published_study.study_work import StudyCall, arms_of
from workbench.hooks import HookedModel
from workbench.planning.question_scores import QuestionScores, mean_interval
from workbench.planning.task_abilities import TaskAbility, ability
from workbench.store.length_verdict import Measure

FAR_NGRAMS, NEAR_NGRAMS = "n-grams from beyond the window", "n-grams from within the window"
Table = Any  # a pandas DataFrame, whose own types know little of what its methods return
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Answered:
    """An arm's questions of all seeds that are done, by part of a task, at a window, a length and after some steps."""

    window: int
    length: int
    steps: int
    arm: StudyArm
    by_seed: dict[int, dict[str, QuestionScores]]
    text: dict[int, dict[str, np.ndarray]]

    def part(self, name: str) -> QuestionScores | None:
        """The questions of a part with all seeds together."""
        return pooled([self.by_seed[seed] for seed in sorted(self.by_seed)]).get(name)


class StudyAnswers:
    """All answers of a study that are done."""

    def __init__(self, call: StudyCall, m: HookedModel):
        self.call, self.m = call, m
        self.study = call.study
        self.measures: dict[str, Measure] = {task.name: task.measure for task in judged_tasks(self.study, m)}
        self.every = [*_all_answers(call, m)]
        self._by_key = {(a.window, a.length, a.steps, a.arm.name, a.arm.n_kept): a for a in self.every}

    def of(self, window: int, length: int, name: str, n_kept: int, *, steps: int = 0) -> Answered | None:
        """The answers of an arm; None where they are not there."""
        return self._by_key.get((window, length, steps, name, n_kept))

    def ends(self, window: int, length: int) -> tuple[Answered, Answered] | None:
        """The model itself, and with every head windowed."""
        n_heads = len(self.call.heads(self.m, window))
        full, none = self.of(window, length, "all", n_heads), self.of(window, length, "none", 0)
        return None if full is None or none is None else (full, none)

    def ability(self, window: int, length: int, part: str) -> TaskAbility | None:
        """What the model itself can do of a part."""
        ends = self.ends(window, length)
        both = None if ends is None else (ends[0].part(part), ends[1].part(part))
        if both is None or both[0] is None or both[1] is None:
            return None
        return ability(self.measures.get(task_of(part), "nats"), both[0], both[1])

    def counted(self, window: int, length: int) -> list[str]:
        """The parts that count at a length: the model does them, and needs the far context for them."""
        ends = self.ends(window, length)
        parts = [] if ends is None else [*ends[0].by_seed[min(ends[0].by_seed)]]
        tried = {part: self.ability(window, length, part) for part in parts}
        return [part for part, able in tried.items() if able is not None and able.verdict == "does"]

    def recovered(self, arm: Answered, part: str) -> tuple[float, float, float]:
        """The share of the loss of windowing every head that is back, with its interval over texts; NaN without."""
        ends = self.ends(arm.window, arm.length)
        if ends is None:
            return _NAN, _NAN, _NAN
        own, full, none = _paired([arm, *ends], part)
        if own is None or full is None or none is None:
            return _NAN, _NAN, _NAN
        return share(none.nats - own.nats, none.nats - full.nats, own.text)

    def difference(self, one: Answered, other: Answered, part: str) -> tuple[float, float, float]:
        """How much more of that loss is back with one arm than with the other, paired, with its interval."""
        ends = self.ends(one.window, one.length)
        if ends is None:
            return _NAN, _NAN, _NAN
        a, b, full, none = _paired([one, other, *ends], part)
        if a is None or b is None or full is None or none is None:
            return _NAN, _NAN, _NAN
        return share(b.nats - a.nats, none.nats - full.nats, a.text)

    def table(self) -> pd.DataFrame:
        """A row per arm, part, window, length and number of steps; `left_out`: why a part does not count.

        Columns: window, length, steps, arm, n_kept, sink, to, part, right, right_lo, right_hi, nats, nats_lo, nats_hi,
        lost, lost_lo, lost_hi (nats per answer more than the model itself), recovered, recovered_lo, recovered_hi,
        recovered_sd (over seeds), n_questions, n_texts, n_seeds, left_out.
        """
        return pd.DataFrame([row for answers in self.every for row in self._rows(answers)], columns=pd.Index(COLUMNS))

    def _rows(self, answers: Answered) -> Iterator[dict[str, Any]]:
        ends = self.ends(answers.window, answers.length)
        arm = answers.arm
        for part in pooled([answers.by_seed[seed] for seed in sorted(answers.by_seed)]):
            own = answers.part(part)
            assert own is not None
            able = self.ability(answers.window, answers.length, part)
            is_counted = able is not None and able.verdict == "does"
            lost = (_NAN, _NAN, _NAN)
            if ends is not None:
                here, full = _paired([answers, ends[0]], part)
                if here is not None and full is not None:
                    lost = _mean(here.nats - full.nats, here.text)
            back = self.recovered(answers, part) if is_counted else (_NAN, _NAN, _NAN)
            of_seeds = [self.recovered(_of_seed(answers, seed), part)[0] for seed in answers.by_seed if is_counted]
            yield {
                "window": answers.window,
                "length": answers.length,
                "steps": answers.steps,
                "arm": arm.name,
                "n_kept": arm.n_kept,
                "sink": arm.sink,
                "to": arm.to,
                "part": part,
                **_named("right", _mean(own.right, own.text)),
                **_named("nats", _mean(own.nats, own.text)),
                **_named("lost", lost),
                **_named("recovered", back),
                "recovered_sd": float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else _NAN,
                "n_questions": len(own.nats),
                "n_texts": len(set(own.text.tolist())),
                "n_seeds": len(answers.by_seed),
                "left_out": "" if able is None else able.reason,
            }

    def by_distance(self) -> pd.DataFrame:
        """Nats lost on plain text against the model itself, by position, and by the distance to an earlier n-gram.

        Columns: window, length, steps, arm, n_kept, by (`position` or `distance`), tokens (a power of two, from which
        on), lost, lost_lo, lost_hi, nats, n.
        """
        rows: list[dict[str, Any]] = []
        for answers in self.every:
            ends = self.ends(answers.window, answers.length)
            seeds = [] if ends is None else [s for s in answers.text if s in ends[0].text and answers.text[s]]
            if ends is None or not seeds:
                continue
            own, full = ({n: _joined(a.text, seeds, n) for n in _TEXT_COLUMNS} for a in (answers, ends[0]))
            lost = own["nats"] - full["nats"]
            for by in ("position", "distance"):
                octaves = 1 << np.log2(np.maximum(own[by], 1)).astype(int)
                for octave in np.unique(octaves[own[by] > 0]):
                    chosen = (octaves == octave) & (own[by] > 0)
                    rows.append(
                        {
                            "window": answers.window,
                            "length": answers.length,
                            "steps": answers.steps,
                            "arm": answers.arm.name,
                            "n_kept": answers.arm.n_kept,
                            "by": by,
                            "tokens": int(octave),
                            **_named("lost", _mean(lost[chosen], own["text"][chosen])),
                            "nats": float(own["nats"][chosen].mean()),
                            "n": int(chosen.sum()),
                        }
                    )
        return pd.DataFrame(rows)


COLUMNS = (
    *("window", "length", "steps", "arm", "n_kept", "sink", "to", "part"),
    *(f"{name}{end}" for name in ("right", "nats", "lost", "recovered") for end in ("", "_lo", "_hi")),
    *("recovered_sd", "n_questions", "n_texts", "n_seeds", "left_out"),
)
_TEXT_COLUMNS = ("nats", "text", "position", "distance")
_TEXTS = 100_000


def areas(table: pd.DataFrame) -> pd.DataFrame:
    """The area under score and length of each arm and part: the mean over doublings of the length at which it counts.

    Columns: window, steps, arm, n_kept, part, right, nats, lost, recovered, shortest, longest.
    """
    counted: Table = table[table["left_out"] == ""]
    rows: list[dict[str, Any]] = []
    for key, group in counted.groupby(["window", "steps", "arm", "n_kept", "part"], sort=False):
        at = group.sort_values("length")
        if len(at) < 2:  # one length has no area
            continue
        doublings = np.log2(at.length.to_numpy(dtype=float))
        width = doublings[-1] - doublings[0]
        values = {n: float(np.trapezoid(at[n], doublings) / width) for n in ("right", "nats", "lost", "recovered")}
        names = dict(zip(("window", "steps", "arm", "n_kept", "part"), key, strict=True))
        rows.append({**names, **values, "shortest": int(at.length.iloc[0]), "longest": int(at.length.iloc[-1])})
    return pd.DataFrame(rows)


def share(back: Float[np.ndarray, " n"], gap: Float[np.ndarray, " n"], text: np.ndarray) -> tuple[float, float, float]:
    """The sum of one over the sum of the other, with the 95 % interval over texts; NaN where there is no gap.

    No interval from fewer than 5 texts, or where resamples lose their gap.
    """
    total = float(gap.sum())
    if total <= 0:
        return _NAN, _NAN, _NAN
    _, member = np.unique(text, return_inverse=True)
    sums = np.stack([np.bincount(member, weights=x) for x in (back, gap)], -1)
    if len(sums) < MIN_SEQUENCES:
        return float(back.sum()) / total, _NAN, _NAN
    means = resampled_means(sums, seed=0)
    if means[:, 1].min() <= 0:
        return float(back.sum()) / total, _NAN, _NAN
    low, high = percentile_interval(means[:, :1] / means[:, 1:])
    return float(back.sum()) / total, float(low[0]), float(high[0])


def _mean(values: np.ndarray, text: np.ndarray) -> tuple[float, float, float]:
    if np.isnan(values).any():
        return _NAN, _NAN, _NAN
    return (float(values.mean()), *mean_interval(values, text, seed=0))


def _named(name: str, interval: Sequence[float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), interval, strict=True))


def _of_seed(answers: Answered, seed: int) -> Answered:
    return Answered(answers.window, answers.length, answers.steps, answers.arm, {seed: answers.by_seed[seed]}, {})


def _paired(arms: Sequence[Answered], part: str) -> list[QuestionScores | None]:
    """The questions of several arms on the seeds that all of them have."""
    seeds = set.intersection(*({s for s, q in a.by_seed.items() if part in q} for a in arms))
    if not seeds:
        return [None] * len(arms)
    return [pooled([a.by_seed[seed] if seed in seeds else {} for seed in range(max(seeds) + 1)])[part] for a in arms]


def _joined(by_seed: Mapping[int, Mapping[str, np.ndarray]], seeds: Sequence[int], name: str) -> np.ndarray:
    columns = [by_seed[seed][name] + (_TEXTS * seed if name == "text" else 0) for seed in seeds]
    return np.concatenate(columns)


def _all_answers(call: StudyCall, m: HookedModel) -> Iterator[Answered]:
    """Every arm whose answers are there, in the order of the arms, windows, lengths and steps."""
    study, files = call.study, call.files
    for window in study.windows:
        by_seed = {seed: _arms(call, m, window, seed) for seed in range(study.seeds)}
        names = dict.fromkeys((arm.name, arm.n_kept) for arms in by_seed.values() for arm in arms)
        for length in lengths_of_study(study, m, window):
            for key in names:
                of_seeds = {s: arm for s, arms in by_seed.items() for arm in arms if (arm.name, arm.n_kept) == key}
                for steps in (0, *study.training.steps):
                    paths = {
                        seed: files.trained_answers(window, seed, arm.name, steps, length)
                        if steps
                        else files.answers(window, seed, length, arm.key)
                        for seed, arm in of_seeds.items()
                    }
                    read = {seed: _read(str(path), window) for seed, path in paths.items() if path.exists()}
                    if read and (not steps or _is_main(study.n_kept(study.main, len(call.heads(m, window))), key)):
                        arm = of_seeds[min(read)]
                        parts = {seed: parts for seed, (parts, _) in read.items()}
                        yield Answered(window, length, steps, arm, parts, {s: text for s, (_, text) in read.items()})


def _is_main(n_main: int, key: tuple[str, int]) -> bool:
    """Whether a name and a number of heads are those of an arm that is trained."""
    return key[0] in ("all", "none") or key[1] == n_main


def _arms(call: StudyCall, m: HookedModel, window: int, seed: int) -> list[StudyArm]:
    if call.files.rankings(window, seed).exists():
        return arms_of(call, m, window, seed)
    return [*end_arms(call.study, call.heads(m, window))]


@lru_cache(maxsize=4096)
def _read(path: str, window: int) -> tuple[dict[str, QuestionScores], dict[str, np.ndarray]]:
    """The parts of a file, with the rows of plain text as parts of their own."""
    parts, text = read_answers(Path(path))
    if text:
        n = len(text["nats"])
        every = QuestionScores(np.full(n, _NAN), text["nats"], text["text"], np.full(n, -1))
        is_again = text["distance"] > 0
        is_far = is_again & (text["distance"] >= window)
        for name, chosen in ((TEXT, ~is_again), (FAR_NGRAMS, is_far), (NEAR_NGRAMS, is_again & ~is_far)):
            if chosen.any():
                parts[name] = QuestionScores(*(getattr(every, c)[chosen] for c in ("right", "nats", "text", "classes")))
    return parts, text
