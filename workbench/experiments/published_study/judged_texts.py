"""The probes of a study: the texts that heads are ranked on, the tasks that arms are judged on, and plain text.

Every seed has texts of its own, and no text that heads are ranked on is judged on. On plain text some rows are judged,
evenly spread over the length, and those where a rare n-gram of the text stands again, with the distance to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int

from workbench.experiments.published_study.published_settings import PublishedStudy
from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.planning.far_tasks import CHAINS, NEEDLES, SHORTEST_TEXT, FarTask, chosen_tasks, far_probe
from workbench.probes import Probe, build, joined, make_probe
from workbench.probes.far_rows import widest_window
from workbench.probes.token_ids import context
from workbench.store.conversions import Window

# Away from the seeds of plans and verdicts, and from each other.
_RANKED, _JUDGED = 20_000, 30_000
_SHORTEST_TOKENS = 32
# Rows of a text that are judged, and at most so many where an n-gram stands again.
_ROWS, _AGAIN = 64, 64
_TIMES = 4
TEXT = "text"


@dataclass(frozen=True, slots=True)
class JudgedText:
    """Plain text: a probe whose answers are the judged rows, and of each the tokens back to its n-gram, 0 for none."""

    probe: Probe
    distance: Int[np.ndarray, " n_rows"]


def lengths_of_study(study: PublishedStudy, m: HookedModel, window: int) -> tuple[int, ...]:
    """The lengths of texts to judge on, in tokens, doubling from far beyond the window on; the first for every arm.

    Raises:
        WorkbenchError: if a length is no longer than what a windowed head sees, or beyond the model's context, or the
            context holds nothing far.
    """
    longest, seen = context(m), window + study.sink
    if study.lengths:
        for n in study.lengths:
            if n <= seen or (longest is not None and n > longest):
                raise WorkbenchError(
                    f"a length of {n:,} tokens was given; expected more than the {seen:,} that a windowed head sees"
                    + ("" if longest is None else f", and at most the model's context of {longest:,}")
                )
        return tuple(sorted(set(study.lengths)))
    shortest = _SHORTEST_TOKENS if m.tokenizer is None else SHORTEST_TEXT
    first = 1 << (max(shortest, 2 * window, 2 * _own_window(m, window)) - 1).bit_length()
    last = max(study.longest, _TIMES * window)
    lengths = [n for n in (first << i for i in range(32)) if n <= max(first, last)]
    fitting = [n for n in lengths if longest is None or n <= longest]
    if not fitting and longest is not None and longest > seen:
        fitting = [longest]
    if not fitting:
        raise WorkbenchError(
            f"window {window} and sink {study.sink} leave nothing far in a context of {longest} tokens; pass a smaller "
            "window"
        )
    return tuple(fitting)


def judged_tasks(study: PublishedStudy, m: HookedModel) -> list[FarTask]:
    """The tasks that arms are judged on, beside plain text."""
    tasks = chosen_tasks(m, study.tasks or None, "standard")
    # Far n-grams of text are judged with the text.
    return [task for task in tasks if task.measure != "nats"]


def ranked_tasks(tasks: list[FarTask], names: set[str]) -> list[FarTask]:
    """The tasks that heads are ranked on, of those named: what is looked up from afar, else the first."""
    able = [task for task in tasks if task.name in names]
    return [task for task in able if task.name in (NEEDLES.name, CHAINS.name)] or able[:1]


def ranked_probe(study: PublishedStudy, m: HookedModel, window: int, tasks: list[FarTask], *, seed: int) -> Probe:
    """The texts that the heads of a seed are ranked on, some of each task.

    Raises:
        WorkbenchError: if no task can be made.
    """
    length, n_each = lengths_of_study(study, m, window)[0], -(-study.n_ranked // max(1, len(tasks)))
    probes = [
        far_probe(m, task, Window(window, study.sink), length=length, n_texts=n_each, seed=_RANKED + seed)
        for task in tasks
    ]
    return joined(probes) if len(probes) > 1 else probes[0]


def task_probes(
    study: PublishedStudy, m: HookedModel, window: int, *, length: int, seed: int
) -> tuple[dict[str, Probe], dict[str, str]]:
    """The probes of a length and a seed by task, and why others cannot be made."""
    probes: dict[str, Probe] = {}
    problems: dict[str, str] = {}
    for task in judged_tasks(study, m):
        try:
            probes[task.name] = far_probe(
                m, task, Window(window, study.sink), length=length, n_texts=study.n_texts, seed=_JUDGED + seed
            )
        except WorkbenchError as error:
            problems[task.name] = str(error)
    return probes, problems


def judged_text(study: PublishedStudy, m: HookedModel, path: str, *, length: int, seed: int) -> JudgedText:
    """Windows of the held-out text, and the rows of them that are judged.

    Raises:
        WorkbenchError: if the text is too short.
    """
    settings = {"path": path, "length": length, "n_sequences": study.n_texts, "seed": _JUDGED + seed}
    return _judged_text(m, "text", tuple(settings.items()))


@lru_cache(maxsize=8)
def _judged_text(m: HookedModel, name: str, settings: tuple[tuple[str, str | int], ...]) -> JudgedText:
    arguments = ",".join(f'{key}="{value}"' if key == "path" else f"{key}={value}" for key, value in settings)
    plain = build(m, f"{name}:{arguments}")
    n_texts, length = plain.tokens.shape
    distance = _distances(m, plain, arguments)
    spread = np.zeros(length, dtype=bool)
    spread[np.unique(np.linspace(0, length - 2, min(_ROWS, length - 1)).round().astype(int))] = True
    rows: list[tuple[int, int, int]] = []
    for i in range(n_texts):
        again = np.flatnonzero(distance[i])
        if len(again) > _AGAIN:
            again = again[np.unique(np.linspace(0, len(again) - 1, _AGAIN).round().astype(int))]
        chosen = np.union1d(np.flatnonzero(spread), again)
        rows += [(i, int(row), int(distance[i, row])) for row in chosen]
    table = np.array(rows)
    probe = make_probe(
        TEXT,
        plain.tokens,
        answer_rows=torch.from_numpy(table[:, :2].copy()),
        classes=torch.from_numpy(table[:, 1].copy()),
        class_name="position",
    )
    return JudgedText(probe, table[:, 2])


def _distances(m: HookedModel, plain: Probe, arguments: str) -> Int[np.ndarray, "n_texts length"]:
    """Of each row that completes a rare n-gram which stood before, the tokens back to it, as a power of two; else 0."""
    distance = np.zeros(plain.tokens.shape, dtype=np.int64)
    try:
        repeated = build(m, f"repeated_ngrams:{arguments}")
    except WorkbenchError:  # nothing repeats in these windows
        return distance
    assert torch.equal(repeated.tokens, plain.tokens)
    assert repeated.answer_rows is not None
    assert repeated.classes is not None
    sequence, row = repeated.answer_rows.numpy().T
    np.maximum.at(distance, (sequence, row), repeated.classes.numpy())
    return distance


def _own_window(m: HookedModel, window: int) -> int:
    """The widest window that a layer of a hybrid has of its own, 0 where that is no wider than the study's."""
    widest = widest_window(m.layers)
    return widest if widest > window else 0
