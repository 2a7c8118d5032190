"""Aggregation over a text: its most frequent words, which no single place in the context holds.

Target cells are all earlier occurrences of the answer in what is counted: attention on them is attention to what has to
be counted, though a head may also count by looking at everything alike.

Reference:
    Hsieh et al. 2024, RULER, frequent word extraction; the wording of instruction and question is ours, and the
    answer is given (teacher-forced).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from workbench.heads import WorkbenchError
from workbench.probes.draft import Draft, Ids, assemble, in_order
from workbench.probes.known_answers import Probe
from workbench.probes.lexicon import letters
from workbench.probes.text_modes import Form, speller_of
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_sizes, draw_one, tokens_left, vocabulary


def frequent_words(
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 1024,
    alpha: int | float = 2,
    n_coded: int = 2000,
    n_sequences: int = 20,
    seed: int = 0,
    form: Form = "auto",
    name: str = "frequent_words",
) -> Probe:
    """Coded words whose frequency falls as rank^−alpha, the first rank being dots; then ranks 2 to 4.

    A coded word is six random letters. Without a tokenizer words and dots are tokens, and one more token stands between
    the text and the answers. Of N words rank k stands N·k^−alpha / ζ(alpha) times, rounded down.

    Answers: the words of ranks 2, 3 and 4. Target cells: all their places in the text. Classes: rank. Sequences have at
    most `length` tokens.

    Raises:
        WorkbenchError: if the length exceeds the model's context or is too short for four different frequencies, alpha
            is not above 1, or the vocabulary is too small.
    """
    check_sizes(source, length=length, n_coded=n_coded, n_sequences=n_sequences)
    if alpha <= 1:
        raise WorkbenchError(f"alpha is {alpha}; expected more than 1")
    words, speller = vocabulary(source), speller_of(source, form)
    drafts = []
    for i in range(n_sequences):
        rng = np.random.default_rng([seed, i])
        if speller is None:
            most = _counts(length, alpha, n_coded)
            drawn, _ = draw_one(words, 1 + len(most), rng, what=f"{length} frequent words")
            head, end = drawn[:0], drawn[:1]
            coded = [drawn[j : j + 1] for j in range(1, len(drawn))]
        else:
            head = speller.first("Count the coded words in the text that follows; dots do not count.")
            ask = " Question: Which three coded words are the most frequent? Answer: The three most frequent words are"
            end = speller.pieces(ask)[0]
            most = _counts(length, alpha, n_coded)
            written = [" ...", *(f" {word}" for word in letters(len(most) - 1, 6, rng))]
            coded = [row[0] for row in speller.many([[word] for word in written])]
        drafts.append(_coded_text(words.bos, head, coded, end, length, alpha, rng))
    return assemble(name, drafts, class_name="rank")


def majority(
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
    """Which token of a class is the k-th most frequent, `gap` tokens of filler ago?

    Of the ordinary tokens, in order: the first `n_classes` ask for a class; a quarter in equal parts are the classes;
    the rest is filler. The far context mixes `n_candidates` tokens of each class, as often as 1 : 2 : … times the same
    number, with as much filler at least. Then the gap, the token that asks for a class, and the answer. No tokenizer
    is used: these are sequences that a small model can be trained on.

    Target cells: all places of the answer. Classes: k, `n_sequences` of each.

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
            chosen = [rng.choice(one, n_candidates, replace=False) for one in members.reshape(n_classes, n_each)]
            counted = np.concatenate([np.repeat(one, unit * np.arange(n_candidates, 0, -1)) for one in chosen])
            rest = filler[rng.integers(len(filler), size=n_far - len(counted) + gap)]
            asked = int(rng.integers(n_classes))
            draft = Draft(words.bos)
            far = rng.permutation(np.concatenate([counted, rest[gap:]]))
            question = np.concatenate([rest[:gap], cues[asked : asked + 1]])
            ask_counted(draft, far, question, chosen[asked][[rank - 1]], [rank])
            drafts.append(draft)
    return assemble(name, drafts, class_name="rank")


def ask_counted(draft: Draft, counted: Ids, question: Ids, answers: Ids, ranks: Sequence[int]) -> None:
    """Write what is counted, a question and answers of one token each; sources are all their places."""
    start = draft.add(counted)
    draft.add(question)
    for answer, rank in zip(answers, ranks, strict=True):
        draft.answer(np.array([answer]), (start + np.flatnonzero(counted == answer)).tolist(), rank)


def _coded_text(
    bos: int | None,
    head: Ids,
    coded: Sequence[Ids],
    end: Ids,
    length: int,
    alpha: int | float,
    rng: np.random.Generator,
) -> Draft:
    draft = Draft(bos)
    draft.add(head)
    answers = [1, 2, 3]
    n_fixed = draft.n_tokens + len(end) + sum(len(coded[rank]) for rank in answers if rank < len(coded))
    n_text = tokens_left(length, n_fixed, "instruction, question and answer")
    of_word = np.array([len(ids) for ids in coded])
    counts = _longest_counts(of_word, n_text, alpha)
    if len(counts) < 5 or len(set(counts[:5].tolist())) < 5:
        raise WorkbenchError(f"length {length} is too short for ranks 1 to 5 to differ in frequency; pass a larger one")
    order = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    tokens, starts = in_order(coded, order)
    starts = starts + draft.add(tokens)
    draft.add(end)
    for rank in answers:
        draft.answer(coded[rank], starts[order == rank].tolist(), rank + 1)
    return draft


def _longest_counts(of_word: Int[np.ndarray, " n"], n_tokens: int, alpha: int | float) -> Int[np.ndarray, " m"]:
    """Counts of the longest text that takes at most `n_tokens`, by bisection over its number of words."""
    low, high = 0, n_tokens + 1
    while high - low > 1:
        middle = (low + high) // 2
        counts = _counts(middle, alpha, len(of_word))
        fits = int((counts * of_word[: len(counts)]).sum()) <= n_tokens
        low, high = (middle, high) if fits else (low, middle)
    return _counts(low, alpha, len(of_word))


def _counts(n_words: int, alpha: int | float, n_coded: int) -> Int[np.ndarray, " m"]:
    """How often each rank stands among `n_words`, as far as it does."""
    rank = np.arange(1, n_coded + 1, dtype=np.float64)
    counts = np.floor(n_words * rank**-alpha / _zeta(alpha)).astype(np.int64)
    return counts[counts > 0]


def _zeta(alpha: int | float, n: int = 1000) -> float:
    """Riemann's ζ: the first terms, and Euler and Maclaurin's formula for the rest."""
    first: Float[np.ndarray, " n"] = np.arange(1, n, dtype=np.float64) ** -alpha
    return float(first.sum() + n ** (1 - alpha) / (alpha - 1) + n**-alpha / 2 + alpha * n ** (-alpha - 1) / 12)
