"""Needles in a haystack: a passkey and RULER's needle at chosen depths, and RULER's eight needle tasks.

Reference:
    Hsieh et al. 2024, RULER, the `niah` tasks of its synthetic.yaml; Mohtashami & Jaggi 2023, the passkey.
    Here the answer is given (teacher-forced), several values in the order in which the text has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from workbench.heads import WorkbenchError
from workbench.probes.draft import Draft, assemble
from workbench.probes.filler_text import plant
from workbench.probes.known_answers import Probe
from workbench.probes.registry import PROBES, probe
from workbench.probes.text_modes import (
    HaystackKind,
    Kind,
    TaskMaker,
    TextMode,
    passkey_sentences,
    sentences,
    speller_of,
    token_needles,
    token_passkey,
)
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_sizes, tokens_left, vocabulary

# RULER plants at one of 40 depths, Wu et al. at one of 10: percent of the haystack before the needle.
DEPTHS = tuple(np.linspace(0, 100, 40).round().astype(int).tolist())
TEN_DEPTHS = tuple(np.linspace(0, 100, 10).round().astype(int).tolist())


@dataclass(frozen=True, slots=True)
class Niah:
    """A RULER needle task: its kinds of haystack, keys and values, and how many of them.

    `n_values` of each key; the question is about `n_queries` of the keys.

    Raises:
        WorkbenchError: for an unknown haystack or kind, more queries than keys, or more needles than there are depths.
    """

    haystack: HaystackKind = "documents"
    keys: Kind = "words"
    values: Kind = "numbers"
    n_keys: int = 1
    n_values: int = 1
    n_queries: int = 1

    def __post_init__(self) -> None:
        for field, value, known in (
            ("haystack", self.haystack, get_args(HaystackKind)),
            ("keys", self.keys, get_args(Kind)),
            ("values", self.values, get_args(Kind)),
        ):
            if value not in known:
                raise WorkbenchError(f"{field} is {value!r}; expected one of {', '.join(known)}")
        if not 1 <= self.n_queries <= self.n_keys or not 1 <= self.n_keys * self.n_values <= len(DEPTHS):
            raise WorkbenchError(
                f"{self.n_queries} of {self.n_keys} keys with {self.n_values} values each: expected no more queries "
                f"than keys, and at most {len(DEPTHS)} needles"
            )


RULER_NEEDLES: dict[str, Niah] = {
    "niah_single_1": Niah(haystack="noise"),
    "niah_single_2": Niah(),
    "niah_single_3": Niah(values="uuids"),
    "niah_multikey_1": Niah(n_keys=4),
    "niah_multikey_2": Niah(haystack="needles"),
    "niah_multikey_3": Niah(haystack="needles", keys="uuids", values="uuids"),
    "niah_multivalue": Niah(n_values=4),
    "niah_multiquery": Niah(n_keys=4, n_queries=4),
}


@probe("passkey")
def passkey(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 1024,
    depth: int | Sequence[int] = TEN_DEPTHS,
    n_sequences: int = 2,
    seed: int = 0,
    form: TextMode = "auto",
    n_answer: int = 5,
    name: str = "passkey",
) -> Probe:
    """A pass key of five digits in sentences of noise at chosen depths, written twice where it is hidden.

    Without a tokenizer: filler, a key token, `n_answer` value tokens, filler, the key again; the needle has the pass
    key once. Answers, classes and arguments as in `needle`. Target cells: all occurrences of the pass key in the
    needle.
    """
    check_sizes(source, length=length, n_answer=n_answer)
    depths = _checked_depths(source, depth, length=length, n_sequences=n_sequences)
    speller, words = speller_of(source, form), vocabulary(source)
    make = token_passkey(words, n_answer) if speller is None else passkey_sentences(speller)
    drafts = _at_depths(make, depths, n_sequences, length=length, bos=words.bos, seed=seed)
    return assemble(name, drafts, class_name="depth")


@probe("needle")
def needle(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 1024,
    depth: int | Sequence[int] = TEN_DEPTHS,
    n_sequences: int = 2,
    seed: int = 0,
    form: TextMode = "auto",
    path: str | Path | None = None,
    name: str = "needle",
) -> Probe:
    """One needle of RULER's in natural text at chosen depths: a row of the length × depth grid.

    Answers, cells, classes and arguments as in `niah`; `n_sequences` for each depth, which is in percent. For the whole
    grid make one probe per length, each with a name of its own.
    """
    depths = _checked_depths(source, depth, length=length, n_sequences=n_sequences)
    make, bos = _needle_maker(source, Niah(), form, path), vocabulary(source).bos
    drafts = _at_depths(make, depths, n_sequences, length=length, bos=bos, seed=seed)
    return assemble(name, drafts, class_name="depth")


def niah(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    task: Niah | str,
    *,
    length: int = 1024,
    n_sequences: int = 20,
    seed: int = 0,
    form: TextMode = "auto",
    path: str | Path | None = None,
    name: str = "",
) -> Probe:
    """One of RULER's needle tasks, by name or as a `Niah` of one's own; each needle at one of RULER's 40 depths.

    Answers: the values of the keys in the question. Target cells: the same value where it was hidden. Classes: depth of
    the needle, percent. Sequences have exactly `length` tokens.

    Args:
        form: "text" with the model's tokenizer, "tokens" without; "auto": text if there is a tokenizer.
        path: natural text to hide in; default: the documentation that Python carries.
        name: default: the task's.

    Raises:
        WorkbenchError: if the length exceeds the model's context or does not hold needles and question, the vocabulary
            is too small, or the tokenizer merges a value with its neighbours.
    """
    if isinstance(task, str):
        if task not in RULER_NEEDLES:
            raise WorkbenchError(f"unknown needle task {task!r}; expected one of {', '.join(RULER_NEEDLES)}")
        name, task = name or task, RULER_NEEDLES[task]
    check_sizes(source, length=length, n_sequences=n_sequences)
    make, bos = _needle_maker(source, task, form, path), vocabulary(source).bos
    drafts = []
    for i in range(n_sequences):
        rng = np.random.default_rng([seed, i])
        depths = rng.permutation(DEPTHS)[: task.n_keys * task.n_values].tolist()
        drafts.append(_sequence(make, task, depths, length=length, bos=bos, rng=rng))
    return assemble(name or "niah", drafts, class_name="depth")


for _task in RULER_NEEDLES:
    PROBES.add(_task, partial(niah, task=_task), function=niah)


def _needle_maker(
    source: HasVocabulary | Vocabulary | int, task: Niah, text_mode: TextMode, path: str | Path | None
) -> TaskMaker:
    speller = speller_of(source, text_mode)
    if speller is None:
        return token_needles(vocabulary(source), task.keys, task.values, task.haystack)
    return sentences(speller, task.keys, task.values, task.haystack, path=path)


def _checked_depths(
    source: HasVocabulary | Vocabulary | int, depth: int | Sequence[int], *, length: int, n_sequences: int
) -> list[int]:
    check_sizes(source, length=length, n_sequences=n_sequences)
    depths = [depth] if isinstance(depth, int) else list(depth)
    if not depths or not all(0 <= d <= 100 for d in depths):
        raise WorkbenchError(f"depth is {depth}; expected percentages from 0 to 100")
    return depths


def _at_depths(
    make: TaskMaker, depths: Sequence[int], n_sequences: int, *, length: int, bos: int | None, seed: int
) -> list[Draft]:
    """`n_sequences` sequences with one needle at each depth."""
    return [
        _sequence(make, Niah(), [d], length=length, bos=bos, rng=np.random.default_rng([seed, d, i]))
        for d in depths
        for i in range(n_sequences)
    ]


def _sequence(
    make: TaskMaker, sizes: Niah, depths: Sequence[int], *, length: int, bos: int | None, rng: np.random.Generator
) -> Draft:
    """Head, haystack with needle i at depths[i], question and answers: `length` tokens."""
    task = make(sizes.n_keys, sizes.n_values, rng)
    keys = rng.permutation(sizes.n_keys)[: sizes.n_queries]
    needles_by_key = [range(key * sizes.n_values, (key + 1) * sizes.n_values) for key in keys]
    answered = [i for needles in needles_by_key for i in sorted(needles, key=lambda i: depths[i])]
    questions = task.question(answered)
    draft = Draft(bos)
    draft.add(task.head)
    n_after = sum(map(len, questions)) + sum(len(task.needles[i].answer) for i in answered)
    n_written = draft.n_tokens + n_after + sum(len(needle.tokens) for needle in task.needles)
    hay = task.haystack(tokens_left(length, n_written, "needle, question and answer"), rng)
    starts = plant(draft, hay, [needle.tokens for needle in task.needles], [hay.near(depth) for depth in depths])
    for i, question in zip(answered, questions, strict=True):
        draft.add(question)
        needle = task.needles[i]
        draft.answer(needle.answer, [starts[i] + offset for offset in needle.offsets], depths[i])
    return draft
