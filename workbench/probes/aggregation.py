"""Aggregation: the words that stand most often in a list or a text, an answer that no single position holds.

Target cells are all earlier occurrences of the answer in the counted part of the context. A head may also count by
attending to everything alike, so attention on these cells is not the only way to count.

Reference:
    Hsieh et al. 2024, RULER, common and frequent word extraction. The words of lists, and the wording of instruction
    and question, are ours; no worked example stands before the list; the answer is given (teacher-forced).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from workbench.heads import WorkbenchError
from workbench.probes.draft import Draft, Ids, Speller, assemble, in_order
from workbench.probes.known_answers import Probe
from workbench.probes.lexicon import ADJECTIVES, N_COMPOUNDS, NOUNS, compounds, letters
from workbench.probes.registry import probe
from workbench.probes.text_modes import TextMode, speller_of
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_sizes, draw_one, tokens_left, vocabulary

_SHORT = 4096  # RULER counts fewer repeats in contexts below this


@probe("common_words")
def common_words(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 1024,
    n_common: int = 10,
    times_common: int = 0,
    times_other: int = 0,
    n_sequences: int = 20,
    seed: int = 0,
    form: TextMode = "auto",
    name: str = "common_words",
) -> Probe:
    """A shuffled list in which `n_common` words stand more often than all others; then those words.

    In text the list is numbered. Its words are those of the lexicon, or adjective-nouns where those do not suffice.
    Without a tokenizer a word is a token, and one more token stands between the list and the answers.

    Answers: the common words in the order in which they first appear. At all ranks but the last, other words would be
    as right, so loss and recall say most at the last rank. Target cells: all occurrences of the word in the list.
    Classes: rank in the answer, from 1. Sequences have at most `length` tokens, with as many other words as fit.

    Args:
        times_common, times_other: number of times that a common and another word stand in the list; 0: 30 and 3 as in
            RULER, below 4096 tokens 6 and 1.

    Raises:
        WorkbenchError: if the length exceeds the model's context or does not hold the common words and one other, the
            vocabulary is too small, or common words are not more common.
    """
    check_sizes(source, length=length, n_common=n_common, n_sequences=n_sequences)
    sizes = _ListSizes(
        length, n_common, times_common or (6 if length < _SHORT else 30), times_other or (1 if length < _SHORT else 3)
    )
    if sizes.times_common <= sizes.times_other:
        raise WorkbenchError(
            f"times_common is {sizes.times_common}; expected more than times_other = {sizes.times_other}"
        )
    words, speller = vocabulary(source), speller_of(source, form)
    drafts = []
    for i in range(n_sequences):
        rng = np.random.default_rng([seed, i])
        if speller is None:
            drafts.append(_token_list(words, sizes, rng))
        else:
            drafts.append(_written_list(speller, words.bos, sizes, rng))
    return assemble(name, drafts, class_name="rank")


@probe("frequent_words")
def frequent_words(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 1024,
    alpha: int | float = 2,
    n_coded: int = 2000,
    n_sequences: int = 20,
    seed: int = 0,
    form: TextMode = "auto",
    name: str = "frequent_words",
) -> Probe:
    """Coded words whose frequency falls as rank^−alpha, the first rank being dots; then ranks 2 to 4.

    A coded word is six random letters. Without a tokenizer words and dots are tokens, and one more token stands between
    the text and the answers. Of N words, rank k stands N·k^−alpha / ζ(alpha) times, rounded down.

    Answers: the words of ranks 2, 3 and 4. Target cells: all their occurrences in the text. Classes: rank. Sequences
    have at most `length` tokens.

    Raises:
        WorkbenchError: if the length exceeds the model's context or is too short for four different frequencies, alpha
            is not above 1, or the vocabulary is too small.
    """
    check_sizes(source, length=length, n_coded=n_coded, n_sequences=n_sequences)
    if alpha <= 1:
        raise WorkbenchError(f"alpha is {alpha}; expected more than 1")
    words, speller = vocabulary(source), speller_of(source, form)
    n_different = len(_counts(length, alpha, n_coded))
    drafts = []
    for i in range(n_sequences):
        rng = np.random.default_rng([seed, i])
        if speller is None:
            drawn, _ = draw_one(words, 1 + n_different, rng, purpose=f"{length} frequent words")
            coded = [drawn[j : j + 1] for j in range(1, len(drawn))]
            content = _CodedText(head=drawn[:0], coded=coded, question=drawn[:1])
        else:
            head = speller.first("Count the coded words in the text that follows; dots do not count.")
            ask = " Question: Which three coded words are the most frequent? Answer: The three most frequent words are"
            written = [" ...", *(f" {word}" for word in letters(n_different - 1, 6, rng))]
            coded = [row[0] for row in speller.many([[word] for word in written])]
            content = _CodedText(head, coded, speller.pieces(ask)[0])
        drafts.append(_coded_sequence(content, length, alpha, bos=words.bos, rng=rng))
    return assemble(name, drafts, class_name="rank")


@probe("majority")
def majority(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    k: int | Sequence[int] = 1,
    length: int = 256,
    gap: int = 64,
    n_classes: int = 2,
    n_candidates: int = 4,
    n_sequences: int = 20,
    seed: int = 0,
    name: str = "majority",
) -> Probe:
    """Tokens of several classes, a gap of filler, and the cue of one class; then its k-th most frequent token.

    Of the ordinary tokens, in order: the first `n_classes` are cues; a quarter in equal parts are the classes; the rest
    is filler. The far context mixes `n_candidates` tokens of each class, as often as 1 : 2 : … times the same number,
    with at least as much filler. Then come `gap` tokens of filler, a cue, and the answer. No tokenizer is used: these
    are sequences that a small model can be trained on.

    Target cells: all occurrences of the answer. Classes: k, `n_sequences` of each.

    Raises:
        WorkbenchError: if the length exceeds the model's context or does not hold the candidates, the vocabulary is too
            small, or k is not from 1 to n_candidates.
    """
    ranks = [k] if isinstance(k, int) else list(k)
    if not ranks or not all(1 <= rank <= n_candidates for rank in ranks):
        raise WorkbenchError(f"k is {k}; expected 1 to n_candidates = {n_candidates}")
    check_sizes(source, length=length, n_classes=n_classes, n_sequences=n_sequences)
    words = vocabulary(source)
    ids = words.ids.numpy()
    n_each = len(ids) // (4 * n_classes)
    if n_each < n_candidates:
        raise WorkbenchError(
            f"{n_classes} classes of {n_candidates} candidates need {4 * n_classes * n_candidates} ordinary tokens; "
            f"the vocabulary has {len(ids)}"
        )
    cues, members, filler = np.split(ids, [n_classes, n_classes * (n_each + 1)])
    n_far = tokens_left(length, (words.bos is not None) + gap + 2, "gap, question and answer")
    unit = n_far // (n_classes * n_candidates * (n_candidates + 1))
    if unit == 0:
        least = length - n_far + n_classes * n_candidates * (n_candidates + 1)
        raise WorkbenchError(f"length {length} leaves {n_far} tokens to count in; pass length={least} or more")
    drafts = []
    for rank in ranks:
        for i in range(n_sequences):
            rng = np.random.default_rng([seed, rank, i])
            candidates = [
                rng.choice(of_class, n_candidates, replace=False) for of_class in members.reshape(n_classes, n_each)
            ]
            counted = np.concatenate([np.repeat(drawn, unit * np.arange(n_candidates, 0, -1)) for drawn in candidates])
            rest = filler[rng.integers(len(filler), size=n_far - len(counted) + gap)]
            c = int(rng.integers(n_classes))
            far = rng.permutation(np.concatenate([counted, rest[gap:]]))
            question = np.concatenate([rest[:gap], cues[c : c + 1]])
            draft = Draft(words.bos)
            _add_counted(draft, far, question, candidates[c][[rank - 1]], ranks=[rank])
            drafts.append(draft)
    return assemble(name, drafts, class_name="rank")


def _add_counted(draft: Draft, counted: Ids, question: Ids, answers: Ids, *, ranks: Sequence[int]) -> None:
    """Write the counted part, a question and answers of one token each; sources are all their occurrences."""
    start = draft.add(counted)
    draft.add(question)
    for answer, rank in zip(answers, ranks, strict=True):
        draft.answer(np.array([answer]), (start + np.flatnonzero(counted == answer)).tolist(), rank)


class _ListSizes(NamedTuple):
    """Tokens of the sequence, number of common words, and how often a common and another word stand in the list."""

    length: int
    n_common: int
    times_common: int
    times_other: int


def _token_list(words: Vocabulary, sizes: _ListSizes, rng: np.random.Generator) -> Draft:
    length, n_common, times_common, times_other = sizes
    draft = Draft(words.bos)
    n_list = tokens_left(length, draft.n_tokens + 1 + n_common + n_common * times_common, "the common words")
    n_other = n_list // times_other
    drawn, _ = draw_one(words, 1 + n_common + max(1, n_other), rng, purpose=f"a list of {length} tokens")
    if n_other == 0:
        raise WorkbenchError(f"length {length} has no room for one other word {times_other} times")
    counts = np.repeat([times_common, times_other], [n_common, n_other])
    counted = rng.permutation(np.repeat(drawn[1:], counts))
    common = drawn[1 : 1 + n_common]
    first = [int(np.flatnonzero(counted == word)[0]) for word in common]
    _add_counted(draft, counted, drawn[:1], common[np.argsort(first)], ranks=range(1, 1 + n_common))
    return draft


def _written_list(speller: Speller, bos: int | None, sizes: _ListSizes, rng: np.random.Generator) -> Draft:
    length, n_common, times_common, times_other = sizes
    draft = Draft(bos)
    draft.add(speller.first("Some words of the numbered list that follows stand in it more often than others."))
    ask = (
        f" Question: Which {n_common} words stand most often in the list? Answer: The {n_common} most common words are:"
    )
    question = speller.pieces(ask)[0]
    written = _list_words(n_common + length // (3 * times_other), rng)
    spelled = [row[0] for row in speller.many([[f" {word}"] for word in written])]
    numbers = [row[0] for row in speller.many([[f" {i}."] for i in range(1, 1 + length // 2)])]
    n_other = _n_fitting(spelled, numbers, sizes, length - draft.n_tokens - len(question))
    if n_other < 1:
        raise WorkbenchError(
            f"length {length} does not hold {n_common} common words {times_common} times each and one other "
            f"{times_other} times; pass a larger length, or fewer n_common"
        )
    counts = np.repeat([times_common, times_other], [n_common, n_other])
    words = rng.permutation(np.repeat(np.arange(n_common + n_other), counts))
    # Numbers and words by turns: piece i is number i + 1, then come the words.
    order = np.stack([np.arange(len(words)), len(words) + words], -1).ravel()
    tokens, starts = in_order([*numbers[: len(words)], *spelled], order)
    starts = starts[1::2] + draft.add(tokens)
    draft.add(question)
    occurrences = [starts[words == word].tolist() for word in range(n_common)]
    common = sorted(range(n_common), key=lambda word: occurrences[word][0])
    for rank, (number, word) in enumerate(zip(numbers, common, strict=False), start=1):
        draft.add(number)
        draft.answer(spelled[word], occurrences[word], rank)
    return draft


def _n_fitting(spelled: Sequence[Ids], numbers: Sequence[Ids], sizes: _ListSizes, n_tokens: int) -> int:
    """How many other words fit into `n_tokens`; list and answers are numbers and words."""
    _, n_common, times_common, times_other = sizes
    tokens_of_word = np.array([len(ids) for ids in spelled])
    tokens_of_numbers = np.concatenate([[0], np.cumsum([len(ids) for ids in numbers])])
    n_left = n_tokens - tokens_of_word[:n_common].sum() * (times_common + 1)
    if n_common * (times_common + 1) >= len(tokens_of_numbers):
        return 0
    n_other = np.arange(len(tokens_of_word) - n_common + 1)
    entries = n_common * times_common + n_other * times_other
    n_other = n_other[entries < len(tokens_of_numbers)]
    taken = tokens_of_numbers[entries[: len(n_other)]] + tokens_of_numbers[n_common]
    taken = taken + times_other * np.concatenate([[0], np.cumsum(tokens_of_word[n_common:])])[: len(n_other)]
    return int(np.searchsorted(taken, n_left, side="right")) - 1


def _list_words(n: int, rng: np.random.Generator) -> list[str]:
    plain = [*ADJECTIVES, *NOUNS]
    if n <= len(plain):
        return [plain[i] for i in rng.permutation(len(plain))[:n]]
    return compounds(min(n, N_COMPOUNDS), rng)


class _CodedText(NamedTuple):
    """Instruction, dots and coded words by rank, question."""

    head: Ids
    coded: Sequence[Ids]
    question: Ids


def _coded_sequence(
    content: _CodedText, length: int, alpha: int | float, *, bos: int | None, rng: np.random.Generator
) -> Draft:
    draft = Draft(bos)
    draft.add(content.head)
    coded, answers = content.coded, [1, 2, 3]
    n_answers = sum(len(coded[rank]) for rank in answers if rank < len(coded))
    n_fixed = draft.n_tokens + len(content.question) + n_answers
    n_text = tokens_left(length, n_fixed, "instruction, question and answer")
    tokens_of_word = np.array([len(ids) for ids in coded])
    counts = _longest_counts(tokens_of_word, n_text, alpha)
    if len(counts) < 5 or len(set(counts[:5].tolist())) < 5:
        raise WorkbenchError(f"length {length} is too short for ranks 1 to 5 to differ in frequency; pass a larger one")
    order = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    tokens, starts = in_order(coded, order)
    starts = starts + draft.add(tokens)
    draft.add(content.question)
    for rank in answers:
        draft.answer(coded[rank], starts[order == rank].tolist(), rank + 1)
    return draft


def _longest_counts(tokens_of_word: Int[np.ndarray, " n"], n_tokens: int, alpha: int | float) -> Int[np.ndarray, " m"]:
    """Counts of the longest text of at most `n_tokens`, by bisection over its number of words."""
    low, high = 0, n_tokens + 1
    while high - low > 1:
        middle = (low + high) // 2
        counts = _counts(middle, alpha, len(tokens_of_word))
        fits = int((counts * tokens_of_word[: len(counts)]).sum()) <= n_tokens
        low, high = (middle, high) if fits else (low, middle)
    return _counts(low, alpha, len(tokens_of_word))


def _counts(n_words: int, alpha: int | float, n_coded: int) -> Int[np.ndarray, " m"]:
    """How often each rank stands among `n_words`; ranks that do not occur are left out."""
    rank = np.arange(1, n_coded + 1, dtype=np.float64)
    counts = np.floor(n_words * rank**-alpha / _zeta(alpha)).astype(np.int64)
    return counts[counts > 0]


def _zeta(alpha: int | float, n: int = 1000) -> float:
    """Riemann's ζ: the first terms, and the Euler–Maclaurin formula for the rest."""
    first: Float[np.ndarray, " n"] = np.arange(1, n, dtype=np.float64) ** -alpha
    return float(first.sum() + n ** (1 - alpha) / (alpha - 1) + n**-alpha / 2 + alpha * n ** (-alpha - 1) / 12)
