"""The text that a study's models are trained on, and the probes that they are measured on.

Documents are in the synthetic language of the demo. The larger studies mix in two tasks that need the far context, in a
form that a small model learns. Both use words that no document holds, names and candidates of two classes; between them
stand words of documents as filler. The facts stand at the beginning, then a gap of filler, then the questions.

1. `chains` (hops): assignments of two tokens, a name and its value, which is a name assigned before. A question is a
   token for the number of assignments to follow, and a name; the answer is the name at the end.
2. `counts` (counting): candidates of both classes, mixed; one of each class is the most frequent. A question is the
   token of a class; the answer is its most frequent candidate.

A sequence has several questions, and none gives away another's answer: chains share no name, classes no candidate.
`drills` are chains to train on, with more questions and less filler; there a question may repeat another.

Without tasks every token of every document counts alike in training. With them, training begins on documents alone:
copying is learned from them, and following chains from copying. Then tasks take the place of some documents in each
batch. Of a task sequence only the answers count, together as much as a document: its other tokens are unpredictable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.experiments.conversion.settings import Conversion, Task
from workbench.heads import WorkbenchError
from workbench.pretrain.recipes import Recipe
from workbench.pretrain.synthetic_language import VOCABULARY, Language
from workbench.probes import Probe, Vocabulary, copy_needle, make_probe, repeats, token_sequences
from workbench.probes.known_answers import octave

N_TASK_WORDS = 24
_PROBE_SEED = 777
_REPEAT = 28
_HOPS, _CLASSES = (1, 2, 3, 4), (5, 6)  # the first token of a question: reserved tokens of the language
_NAMES = np.arange(VOCABULARY, VOCABULARY + 12)
_CANDIDATES = (_NAMES[-1] + 1 + np.arange(12)).reshape(2, 6)
_SHARES = ((0.5, 0.3, 0.2), (0.6, 0.2, 0.2))  # of a class's tokens that are each of its candidates
_MOST_CHAINS = 4
_ROUNDS = 2  # of a drill; in each every chain is asked for at every number of hops
_LINK = 3  # tokens of an assignment and of the filler behind it, which parts it from the next assignment
_QUESTION = 3

Ids = Int[np.ndarray, " n"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences to train on; `weight` is how much the prediction of each token counts."""

    tokens: Int[Tensor, "b t"]
    weight: Float[Tensor, "b t"]


@dataclass(frozen=True, slots=True)
class Probes:
    """The probes of a study. `ranking`: needles from beyond the window, other ones than in `needles`."""

    ranking: Probe
    needles: Probe
    documents: Probe
    repeats: Probe
    tasks: tuple[Probe, ...]


def batches(study: Conversion, recipe: Recipe, *, stream: int) -> Iterator[Batch]:
    """The batches of a run. Another `stream` of the same seed is other text; all but 0 have tasks from the start."""
    language = Language()
    for step in range(recipe.steps):
        rng = np.random.default_rng([1 + recipe.seed, stream, step])
        is_documents_only = stream == 0 and step < study.documents_first
        tasks = [] if is_documents_only else [p for task in study.tasks for p in _trained_on(task, study, rng)]
        n_documents = recipe.batch - sum(len(probe.tokens) for probe in tasks)
        documents = torch.from_numpy(language.documents(n_documents, recipe.length, rng))
        weights = [torch.ones(documents.shape), *(_answer_weights(probe) for probe in tasks)]
        yield Batch(torch.cat([documents, *(probe.tokens for probe in tasks)]), torch.cat(weights))


def probes(study: Conversion) -> Probes:
    """The probes of a study, the same for all its seeds."""
    language, words = Language(), _words()
    rng = np.random.default_rng(_PROBE_SEED)

    def needles(distances: tuple[int, ...], name: str, seed: int) -> Probe:
        n = study.n_sequences * len(distances)
        filler = torch.from_numpy(language.backbone(n, study.length, rng))
        return copy_needle(words, distances, n_sequences=study.n_sequences, filler=filler, seed=seed, name=name)

    n_repeat = min(_REPEAT, (study.length - 8) // 2)
    documents = torch.from_numpy(language.documents(2 * study.n_sequences, study.length, rng))
    return Probes(
        ranking=needles(study.far, "far_needle", _PROBE_SEED),
        needles=needles(study.distances, "needle", _PROBE_SEED + 1),
        documents=_by_octave(token_sequences(documents, name="documents")),
        repeats=repeats(words, n=n_repeat, n_sequences=study.n_sequences, seed=_PROBE_SEED),
        tasks=tuple(_task_probe(task, study, n_sequences=2 * study.n_sequences, rng=rng) for task in study.tasks),
    )


def chains(hops: Sequence[int], *, length: int, gap: int, n_sequences: int, rng: np.random.Generator) -> Probe:
    """Questions for the name that is `hops` assignments away from a given one, with every chain asked for once.

    Chains are as long as the most hops, up to four of them. Target cells: the answer where it is assigned. Classes:
    hops.

    Raises:
        WorkbenchError: if the length does not hold one chain, or there are too few names for it.
    """
    depth = max(hops)
    layout = _Chains(_n_chains(depth, _QUESTION, length=length, gap=gap), depth, length, gap)

    def questions() -> list[_Question]:
        order = rng.permutation(layout.n_chains).tolist()
        return [_question(chain, int(rng.choice(hops)), depth, rng) for chain in order]

    return _chain_probe("hops", [questions() for _ in range(n_sequences)], layout, rng)


def drills(hops: Sequence[int], *, length: int, n_sequences: int, rng: np.random.Generator) -> Probe:
    """As `chains` without a gap, with every chain asked for twice at every number of hops.

    Raises:
        WorkbenchError: as `chains`.
    """
    depth = max(hops)
    n_chains = _n_chains(depth, _ROUNDS * len(hops) * _QUESTION, length=length, gap=0)

    def questions() -> list[_Question]:
        every = [(chain, h) for chain in range(n_chains) for h in hops] * _ROUNDS
        return [_question(chain, h, depth, rng) for chain, h in (every[i] for i in rng.permutation(len(every)))]

    layout = _Chains(n_chains, depth, length, gap=0)
    return _chain_probe("drills", [questions() for _ in range(n_sequences)], layout, rng)


def counts(*, length: int, gap: int, n_sequences: int, rng: np.random.Generator) -> Probe:
    """Questions for the most frequent of three candidates of a class; half of the far context is candidates.

    Target cells: all positions of the answer. Classes: by how many occurrences the most frequent leads.

    Raises:
        WorkbenchError: if the length leaves too little to count in.
    """
    n_far = length - 1 - gap - 2 * len(_CLASSES)
    n_each = n_far // (2 * len(_CLASSES))
    if n_each < 4:
        raise WorkbenchError(f"length {length} leaves {max(n_far, 0)} tokens to count in; pass more")
    tokens = Language().backbone(n_sequences, length, rng)
    answers = _Answers()
    for i, sequence in enumerate(tokens):
        candidates = [rng.permutation(members)[:3] for members in _CANDIDATES]
        frequencies = [_frequencies(_SHARES[int(rng.integers(len(_SHARES)))], n_each) for _ in candidates]
        counted = np.concatenate([np.repeat(words, n) for words, n in zip(candidates, frequencies, strict=True)])
        positions = 1 + rng.permutation(n_far)[: len(counted)]
        sequence[positions] = counted
        for row, c in zip((length - 4, length - 2), rng.permutation(len(_CLASSES)), strict=True):
            answer = candidates[c][0]
            sequence[row : row + 2] = _CLASSES[c], answer
            keys = np.sort(positions[counted == answer])
            answers.add(i, row, keys.tolist(), label=int(frequencies[c][0] - frequencies[c][1]))
    return answers.probe("counting", "margin", tokens)


def _words() -> Vocabulary:
    language = Language()
    return Vocabulary(torch.tensor(language.words), bos=language.bos)


def _task_probe(task: Task, study: Conversion, *, n_sequences: int, rng: np.random.Generator) -> Probe:
    """A task whose gap is two windows: a question sees nothing of the facts."""
    gap = 2 * study.window
    if task == "hops":
        return chains(study.hops, length=study.length, gap=gap, n_sequences=n_sequences, rng=rng)
    return counts(length=study.length, gap=gap, n_sequences=n_sequences, rng=rng)


def _trained_on(task: Task, study: Conversion, rng: np.random.Generator) -> list[Probe]:
    probe = _task_probe(task, study, n_sequences=study.n_task, rng=rng)
    if task == "counting":
        return [probe]
    return [probe, drills(study.hops, length=study.length, n_sequences=study.n_task, rng=rng)]


def _answer_weights(probe: Probe) -> Float[Tensor, "b t"]:
    """Weights of the answers alone; those of a sequence sum to the number of its tokens."""
    assert probe.answer_rows is not None
    sequence, row = probe.answer_rows.unbind(-1)
    n_answers = torch.bincount(sequence, minlength=len(probe.tokens))
    weights = torch.zeros(probe.tokens.shape)
    weights[sequence, row + 1] = weights.shape[1] / n_answers[sequence].float()
    return weights


def _by_octave(documents: Probe) -> Probe:
    """Rows by the length of the context that they see, rounded down to a power of two."""
    assert documents.answer_rows is not None
    return replace(documents, classes=octave(documents.answer_rows[:, 1] + 1), class_name="context")


@dataclass(frozen=True, slots=True)
class _Answers:
    """The answers of a probe in the making: their rows, the cells of attention they need, and their classes."""

    rows: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    cells: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    labels: list[int] = field(default_factory=list[int])

    def add(self, sequence: int, row: int, keys: Sequence[int], *, label: int) -> None:
        self.rows.append((sequence, row))
        self.cells.extend((sequence, row, key) for key in keys)
        self.labels.append(label)

    def probe(self, name: str, class_name: str, tokens: Int[np.ndarray, "b t"]) -> Probe:
        return make_probe(
            name,
            torch.from_numpy(tokens),
            answer_rows=torch.tensor(self.rows),
            target_cells=torch.tensor(self.cells),
            classes=torch.tensor(self.labels),
            class_name=class_name,
            metric="accuracy",
        )


class _Question(NamedTuple):
    chain: int
    name: int  # index in the chain
    hops: int


class _Chains(NamedTuple):
    """The layout of a sequence of chains: their number and length in hops, and tokens in all and of the gap."""

    n_chains: int
    depth: int
    length: int
    gap: int


def _n_chains(depth: int, n_question_tokens: int, *, length: int, gap: int) -> int:
    """How many chains fit."""
    room = (length - 1 - gap) // (_LINK * depth + n_question_tokens)
    n_chains = min(_MOST_CHAINS, len(_NAMES) // (depth + 1), room)
    if n_chains < 1 or depth > len(_HOPS):
        raise WorkbenchError(
            f"{depth} hops with a gap of {gap} do not fit {length} tokens, or are more than {len(_HOPS)}; pass a "
            "larger length or fewer hops"
        )
    return n_chains


def _question(chain: int, hops: int, depth: int, rng: np.random.Generator) -> _Question:
    return _Question(chain, int(rng.integers(hops, depth + 1)), hops)


def _chain_probe(
    name: str, questions: Sequence[Sequence[_Question]], layout: _Chains, rng: np.random.Generator
) -> Probe:
    """A sequence for every list of questions."""
    n_chains, depth, length, gap = layout
    tokens = Language().backbone(len(questions), length, rng)
    answers = _Answers()
    for i, (sequence, of_sequence) in enumerate(zip(tokens, questions, strict=True)):
        first = length - _QUESTION * len(of_sequence)
        names = rng.permutation(_NAMES)[: n_chains * (depth + 1)].reshape(n_chains, depth + 1)
        positions = 1 + _link_positions(n_chains * depth, first - gap - 1, rng).reshape(n_chains, depth)
        positions.sort(axis=1)  # a value is assigned before it is used
        sequence[positions], sequence[positions + 1] = names[:, 1:], names[:, :-1]
        for start, question in zip(range(first, length, _QUESTION), of_sequence, strict=True):
            answer = question.name - question.hops
            chain = names[question.chain]
            sequence[start : start + _QUESTION] = _HOPS[question.hops - 1], chain[question.name], chain[answer]
            key = int(positions[question.chain, answer]) + 1
            answers.add(i, start + 1, [key], label=question.hops)
    return answers.probe(name, "hops", tokens)


def _link_positions(n: int, room: int, rng: np.random.Generator) -> Ids:
    """Where `n` assignments begin at random in `room` tokens, in any order, without overlap."""
    free = np.sort(rng.choice(room - n * (_LINK - 1), n, replace=False))
    return rng.permutation(free + (_LINK - 1) * np.arange(n))


def _frequencies(shares: Sequence[float], n: int) -> Ids:
    """How often each candidate of `n` tokens occurs, the most frequent first and without a tie."""
    rest = [max(1, int(share * n)) for share in shares[1:]]
    return np.array([n - sum(rest), *rest])
