"""Tasks that need the far context, in a form that a small model learns: chains of names, and counting.

Both use words that no document holds: names, and candidates of two classes; the words of documents are filler between
them. What is asked about stands at the beginning, then a gap of filler, then the questions.

1. `chains`: assignments of two tokens, a name and what it is assigned, which was itself assigned before. A question is
   a token that says how many assignments to follow, and a name; the answer is the name where they lead.
2. `counts`: candidates of both classes, mixed; of each class one is the most frequent. A question is the token that
   stands for a class; the answer is its most frequent candidate.

A sequence has several questions. None gives another's answer away: chains share no name, classes no candidate.
`drills` are chains to train on, with more questions and less filler; there one question may repeat another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from workbench.heads import WorkbenchError
from workbench.pretrain.language import VOCABULARY, Language
from workbench.probes import Probe, make_probe

N_TASK_WORDS = 24
_FOLLOW, _CLASSES = (1, 2, 3, 4), (5, 6)  # what begins a question: reserved tokens of the language
_NAMES = np.arange(VOCABULARY, VOCABULARY + 12)
_CANDIDATES = (_NAMES[-1] + 1 + np.arange(12)).reshape(2, 6)
_SHARES = ((0.5, 0.3, 0.2), (0.6, 0.2, 0.2))  # of a class's tokens that are each of its candidates
_MOST_CHAINS = 4
_ROUNDS = 2  # of a drill, in each of which every chain is asked at every number of hops
_LINK = 3  # tokens of an assignment and of the filler behind it, without which a name would seem assigned what follows
_QUESTION = 3

Ids = Int[np.ndarray, " n"]


class _Question(NamedTuple):
    chain: int
    name: int  # place in the chain
    hops: int


def chains(hops: Sequence[int], *, length: int, gap: int, n_sequences: int, rng: np.random.Generator) -> Probe:
    """Names that are `hops` assignments away from the one that is asked, with every chain asked once.

    Chains are as long as the longest that is asked, up to four of them. Target cells: the answer where it is assigned.
    Classes: hops.

    Raises:
        WorkbenchError: if the length does not hold one chain, or there are too few names for it.
    """
    depth = max(hops)
    n_chains = _n_chains(depth, _QUESTION, length=length, gap=gap)

    def ask() -> list[_Question]:
        return [_question(chain, int(rng.choice(hops)), depth, rng) for chain in rng.permutation(n_chains).tolist()]

    return _asked("hops", [ask() for _ in range(n_sequences)], n_chains, depth, length=length, gap=gap, rng=rng)


def drills(hops: Sequence[int], *, length: int, n_sequences: int, rng: np.random.Generator) -> Probe:
    """As `chains` without a gap, with every chain asked twice at every number of hops.

    Raises:
        WorkbenchError: as `chains`.
    """
    depth = max(hops)
    n_chains = _n_chains(depth, _ROUNDS * len(hops) * _QUESTION, length=length, gap=0)

    def ask() -> list[_Question]:
        every = [(chain, h) for chain in range(n_chains) for h in hops] * _ROUNDS
        return [_question(chain, h, depth, rng) for chain, h in (every[i] for i in rng.permutation(len(every)))]

    return _asked("drills", [ask() for _ in range(n_sequences)], n_chains, depth, length=length, gap=0, rng=rng)


def counts(*, length: int, gap: int, n_sequences: int, rng: np.random.Generator) -> Probe:
    """The most frequent candidate of each class, of three; half of the far context, rounded down, is candidates.

    Target cells: all places of the answer. Classes: by how many occurrences the most frequent leads.

    Raises:
        WorkbenchError: if the length leaves too little to count in.
    """
    n_far = length - 1 - gap - 2 * len(_CLASSES)
    n_each = n_far // (2 * len(_CLASSES))
    if n_each < 4:
        raise WorkbenchError(f"length {length} leaves {max(n_far, 0)} tokens to count in; pass more")
    tokens = Language().backbone(n_sequences, length, rng)
    rows: list[tuple[int, int]] = []
    cells: list[tuple[int, int, int]] = []
    margins: list[int] = []
    for i, sequence in enumerate(tokens):
        drawn = [rng.permutation(members)[:3] for members in _CANDIDATES]
        often = [_often(_SHARES[int(rng.integers(len(_SHARES)))], n_each) for _ in drawn]
        counted = np.concatenate([np.repeat(words, n) for words, n in zip(drawn, often, strict=True)])
        places = 1 + rng.permutation(n_far)[: len(counted)]
        sequence[places] = counted
        for row, asked in zip((length - 4, length - 2), rng.permutation(len(_CLASSES)), strict=True):
            answer = drawn[asked][0]
            sequence[row : row + 2] = _CLASSES[asked], answer
            rows.append((i, row))
            cells += [(i, row, int(place)) for place in np.sort(places[counted == answer])]
            margins.append(int(often[asked][0] - often[asked][1]))
    return _probe("counting", "margin", tokens, rows, cells, margins)


def _n_chains(depth: int, n_question_tokens: int, *, length: int, gap: int) -> int:
    """How many chains fit."""
    room = (length - 1 - gap) // (_LINK * depth + n_question_tokens)
    n_chains = min(_MOST_CHAINS, len(_NAMES) // (depth + 1), room)
    if n_chains < 1 or depth > len(_FOLLOW):
        raise WorkbenchError(
            f"{depth} hops with a gap of {gap} do not fit {length} tokens, or are more than {len(_FOLLOW)}; pass a "
            "larger length or fewer hops"
        )
    return n_chains


def _question(chain: int, hops: int, depth: int, rng: np.random.Generator) -> _Question:
    return _Question(chain, int(rng.integers(hops, depth + 1)), hops)


def _asked(
    name: str,
    questions: Sequence[Sequence[_Question]],
    n_chains: int,
    depth: int,
    *,
    length: int,
    gap: int,
    rng: np.random.Generator,
) -> Probe:
    """A sequence for every list of questions."""
    tokens = Language().backbone(len(questions), length, rng)
    rows: list[tuple[int, int]] = []
    cells: list[tuple[int, int, int]] = []
    for i, (sequence, asked) in enumerate(zip(tokens, questions, strict=True)):
        first = length - _QUESTION * len(asked)
        names = rng.permutation(_NAMES)[: n_chains * (depth + 1)].reshape(n_chains, depth + 1)
        places = 1 + _places(n_chains * depth, first - gap - 1, rng).reshape(n_chains, depth)
        places.sort(axis=1)  # what is assigned was assigned before
        sequence[places], sequence[places + 1] = names[:, 1:], names[:, :-1]
        for at, one in zip(range(first, length, _QUESTION), asked, strict=True):
            led_to = one.name - one.hops
            sequence[at : at + _QUESTION] = _FOLLOW[one.hops - 1], names[one.chain, one.name], names[one.chain, led_to]
            rows.append((i, at + 1))
            cells.append((i, at + 1, int(places[one.chain, led_to]) + 1))
    return _probe(name, "hops", tokens, rows, cells, [one.hops for asked in questions for one in asked])


def _places(n: int, room: int, rng: np.random.Generator) -> Ids:
    """Where `n` assignments begin that lie at random in so much room, in any order, none over another."""
    free = np.sort(rng.choice(room - n * (_LINK - 1), n, replace=False))
    return rng.permutation(free + (_LINK - 1) * np.arange(n))


def _often(shares: Sequence[float], n: int) -> Ids:
    """How often each candidate stands, the most frequent first and alone in front."""
    rest = [max(1, int(share * n)) for share in shares[1:]]
    return np.array([n - sum(rest), *rest])


def _probe(
    name: str,
    class_name: str,
    tokens: Int[np.ndarray, "b t"],
    rows: Sequence[tuple[int, int]],
    cells: Sequence[tuple[int, int, int]],
    classes: Sequence[int],
) -> Probe:
    return make_probe(
        name,
        torch.from_numpy(tokens),
        answer_rows=torch.tensor(rows),
        target_cells=torch.tensor(cells),
        classes=torch.tensor(classes),
        class_name=class_name,
        metric="accuracy",
    )
