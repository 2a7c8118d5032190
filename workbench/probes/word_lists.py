"""Aggregation over a list: which words stand in it more often than the others, wherever they stand.

Reference:
    Hsieh et al. 2024, RULER, common word extraction; the words and the wording of instruction and question are ours,
    there is no worked example before the list, and the answer is given (teacher-forced).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.heads import WorkbenchError
from workbench.probes.aggregation import ask_counted
from workbench.probes.draft import Draft, Ids, assemble, in_order
from workbench.probes.known_answers import Probe
from workbench.probes.lexicon import ADJECTIVES, N_COMPOUNDS, NOUNS, compounds
from workbench.probes.spelling import Speller
from workbench.probes.text_modes import Form, speller_of
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_sizes, draw_one, tokens_left, vocabulary

_SHORT = 4096  # RULER counts fewer repeats in contexts below this


def common_words(
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 1024,
    n_common: int = 10,
    times_common: int = 0,
    times_other: int = 0,
    n_sequences: int = 20,
    seed: int = 0,
    form: Form = "auto",
    name: str = "common_words",
) -> Probe:
    """A shuffled list in which `n_common` words stand more often than all others; then those words.

    In text the list is numbered, of words of the lexicon, or of adjective-nouns where those do not suffice. Without a
    tokenizer a word is a token, and one more token stands between the list and the answers.

    Answers: the common words in the order in which they first appear. Before the last, other words would be as right:
    loss and recall say most at the last rank. Target cells: all places of the word in the list. Classes: rank in the
    answer, from 1. Sequences have at most `length` tokens, with as many other words as fit.

    Args:
        times_common, times_other: how often a common and another word stand in the list; 0: 30 and 3 as RULER has it,
            below 4096 tokens 6 and 1.

    Raises:
        WorkbenchError: if the length exceeds the model's context or does not hold the common words and one other, the
            vocabulary is too small, or common words are not more common.
    """
    check_sizes(source, length=length, n_common=n_common, n_sequences=n_sequences)
    times = (times_common or (6 if length < _SHORT else 30), times_other or (1 if length < _SHORT else 3))
    if times[0] <= times[1]:
        raise WorkbenchError(f"times_common is {times[0]}; expected more than times_other = {times[1]}")
    words, speller = vocabulary(source), speller_of(source, form)
    drafts = []
    for i in range(n_sequences):
        rng = np.random.default_rng([seed, i])
        if speller is None:
            drafts.append(_token_list(words, n_common, times, length, rng))
        else:
            drafts.append(_written_list(speller, words.bos, n_common, times, length, rng))
    return assemble(name, drafts, class_name="rank")


def _token_list(
    words: Vocabulary, n_common: int, times: tuple[int, int], length: int, rng: np.random.Generator
) -> Draft:
    draft = Draft(words.bos)
    n_list = tokens_left(length, draft.n_tokens + 1 + n_common + n_common * times[0], "the common words")
    n_other = n_list // times[1]
    drawn, _ = draw_one(words, 1 + n_common + max(1, n_other), rng, what=f"a list of {length} tokens")
    if n_other == 0:
        raise WorkbenchError(f"length {length} has no room for one other word {times[1]} times")
    counts = np.repeat([times[0], times[1]], [n_common, n_other])
    counted = rng.permutation(np.repeat(drawn[1:], counts))
    common = drawn[1 : 1 + n_common]
    first = [int(np.flatnonzero(counted == one)[0]) for one in common]
    ask_counted(draft, counted, drawn[:1], common[np.argsort(first)], range(1, 1 + n_common))
    return draft


def _written_list(
    speller: Speller, bos: int | None, n_common: int, times: tuple[int, int], length: int, rng: np.random.Generator
) -> Draft:
    draft = Draft(bos)
    draft.add(speller.first("Some words of the numbered list that follows stand in it more often than others."))
    ask = (
        f" Question: Which {n_common} words stand most often in the list? Answer: The {n_common} most common words are:"
    )
    question = speller.pieces(ask)[0]
    written = _list_words(n_common + length // (3 * times[1]), rng)
    spelled = [row[0] for row in speller.many([[f" {word}"] for word in written])]
    numbers = [row[0] for row in speller.many([[f" {i}."] for i in range(1, 1 + length // 2)])]
    n_other = _fitting(spelled, numbers, n_common, times, length - draft.n_tokens - len(question))
    if n_other < 1:
        raise WorkbenchError(
            f"length {length} does not hold {n_common} common words {times[0]} times each and one other {times[1]} "
            "times; pass a larger length, or fewer n_common"
        )
    counts = np.repeat([times[0], times[1]], [n_common, n_other])
    words = rng.permutation(np.repeat(np.arange(n_common + n_other), counts))
    # Numbers and words by turns: piece i is number i + 1, then come the words.
    order = np.stack([np.arange(len(words)), len(words) + words], -1).ravel()
    tokens, starts = in_order([*numbers[: len(words)], *spelled], order)
    starts = starts[1::2] + draft.add(tokens)
    draft.add(question)
    places = [starts[words == word].tolist() for word in range(n_common)]
    common = sorted(range(n_common), key=lambda word: places[word][0])
    for rank, (number, word) in enumerate(zip(numbers, common, strict=False), start=1):
        draft.add(number)
        draft.answer(spelled[word], places[word], rank)
    return draft


def _fitting(
    spelled: Sequence[Ids], numbers: Sequence[Ids], n_common: int, times: tuple[int, int], n_tokens: int
) -> int:
    """How many other words fit: list and answers take numbers and words."""
    of_word = np.array([len(ids) for ids in spelled])
    up_to = np.concatenate([[0], np.cumsum([len(ids) for ids in numbers])])
    common = of_word[:n_common].sum()
    fixed = n_tokens - common * (times[0] + 1)
    if n_common * (times[0] + 1) >= len(up_to):
        return 0
    n_other = np.arange(len(of_word) - n_common + 1)
    entries = n_common * times[0] + n_other * times[1]
    n_other = n_other[entries < len(up_to)]
    taken = up_to[entries[: len(n_other)]] + up_to[n_common]
    taken = taken + times[1] * np.concatenate([[0], np.cumsum(of_word[n_common:])])[: len(n_other)]
    return int(np.searchsorted(taken, fixed, side="right")) - 1


def _list_words(n: int, rng: np.random.Generator) -> list[str]:
    plain = [*ADJECTIVES, *NOUNS]
    if n <= len(plain):
        return [plain[i] for i in rng.permutation(len(plain))[:n]]
    return compounds(min(n, N_COMPOUNDS), rng)
