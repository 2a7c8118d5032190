"""The answers of an arm: every question of every task that counts, and the loss on rows of plain text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from workbench.experiments.published_study.judged_texts import judged_tasks, judged_text, task_probes
from workbench.experiments.published_study.published_settings import PublishedStudy
from workbench.experiments.published_study.study_arms import end_arms
from workbench.experiments.published_study.study_pieces import StudyFiles, read_answers
from workbench.hooks import HookedModel
from workbench.planning.question_scores import QuestionScores, answered, by_question
from workbench.planning.task_abilities import TaskAbility, ability
from workbench.probes import Probe
from workbench.store.length_verdict import Measure

# More than a seed has texts of a task.
_TEXTS = 100_000


def task_of(part: str) -> str:
    """The task of a part: questions of several hops are a part for each number of hops."""
    return part.partition(", ")[0]


@lru_cache(maxsize=64)
def texts_of(
    m: HookedModel, study: PublishedStudy, window: int, length: int, seed: int
) -> tuple[dict[str, Probe], dict[str, str]]:
    """The tasks of a window, a length and a seed, made once in a process, and why others cannot be made."""
    return task_probes(study, m, window, length=length, seed=seed)


def answers_of_arm(
    m: HookedModel,
    study: PublishedStudy,
    held_out: Path | None,
    *,
    where: tuple[int, int, int],
    tasks: Collection[str] | None,
    made_for: HookedModel,
) -> tuple[dict[str, QuestionScores], dict[str, np.ndarray]]:
    """The questions by part of a task, and columns of the judged rows of text, under the interventions in force.

    Args:
        held_out: the text file; None for no text.
        where: window, length and seed.
        tasks: those that count; None: all.
        made_for: the model that the texts are made for, which may be another copy of it.
    """
    window, length, seed = where
    made, _ = texts_of(made_for, study, window, length, seed)
    probes = {name: p for name, p in made.items() if tasks is None or name in tasks}
    text = None if held_out is None else judged_text(study, made_for, str(held_out), length=length, seed=seed)
    every = [*probes.values(), *([] if text is None else [text.probe])]
    rows = answered(m, every) if every else []
    by_part: dict[str, QuestionScores] = {}
    for (name, probe), of_probe in zip(probes.items(), rows, strict=False):
        questions = by_question(probe, of_probe)
        if probe.class_name != "hops":
            by_part[name] = questions
            continue
        for n in sorted(set(questions.classes.tolist())):
            by_part[f"{name}, {n} hop{'s' if n > 1 else ''}"] = questions.of_class(n)
    if text is None:
        return by_part, {}
    assert text.probe.answer_rows is not None
    sequence, row = text.probe.answer_rows.numpy().T
    columns = {"nats": rows[-1].nats, "text": sequence, "position": row, "distance": text.distance}
    return by_part, columns


def n_tokens(m: HookedModel, study: PublishedStudy, held_out: Path | None, length: int) -> int:
    """Tokens of one arm's passes at a length and a seed, with every task."""
    n_probes = len(judged_tasks(study, m)) + (held_out is not None)
    return n_probes * study.n_texts * length


def abilities(
    study: PublishedStudy, files: StudyFiles, measures: Mapping[str, Measure], *, window: int, length: int
) -> dict[str, TaskAbility]:
    """What the model itself can do at a length, part by part, from the answers of both ends with all seeds together.

    `measures`: of each task, whether right answers or the loss say it.
    """
    all_arm, none_arm = end_arms(study, ())
    full, windowed = (
        pooled([read_answers(files.answers(window, seed, length, arm.key))[0] for seed in range(study.seeds)])
        for arm in (all_arm, none_arm)
    )
    return {part: ability(measures[task_of(part)], full[part], windowed[part]) for part in full if part in windowed}


def counted_tasks(by_part: Mapping[str, TaskAbility]) -> set[str]:
    """The tasks of which the model does a part, and needs the far context for it."""
    return {task_of(part) for part, tried in by_part.items() if tried.verdict == "does"}


def pooled(by_seed: Sequence[Mapping[str, QuestionScores]]) -> dict[str, QuestionScores]:
    """The questions of all seeds by part; texts of different seeds are different texts."""
    parts = dict.fromkeys(part for questions in by_seed for part in questions)
    return {
        part: QuestionScores(
            *(np.concatenate([getattr(q[part], name) for q in by_seed if part in q]) for name in ("right", "nats")),
            text=np.concatenate([q[part].text + _TEXTS * seed for seed, q in enumerate(by_seed) if part in q]),
            classes=np.concatenate([q[part].classes for q in by_seed if part in q]),
        )
        for part in parts
    }
