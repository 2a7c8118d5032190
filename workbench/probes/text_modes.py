"""The two modes of a needle task: sentences for a tokenizer, bare tokens for any vocabulary.

A key and a value are of a kind: `words`, an adjective-noun of the lexicon, else two tokens; `numbers`, seven digits,
else three tokens; `uuids`, else eight tokens. Within a sequence all keys differ, and all values.

Reference:
    Hsieh et al. 2024, RULER: the needle's sentence, its keys and values. Instruction and question are worded anew, and
    stand in one paragraph, so that the tokenizer's boundaries are spaces.
    Mohtashami & Jaggi 2023, Landmark Attention: a passkey of five digits, written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import perm
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import UUID

import numpy as np

from workbench.heads import WorkbenchError
from workbench.probes.draft import Ids, Speller
from workbench.probes.filler_text import Hay, documents, from_pieces, noise, random_tokens, repeated_tokens
from workbench.probes.lexicon import N_COMPOUNDS, compound
from workbench.probes.token_ids import HasVocabulary, Vocabulary, draw_one, why_no_tokenizer

TextMode = Literal["auto", "text", "tokens"]
Kind = Literal["words", "numbers", "uuids"]
HaystackKind = Literal["noise", "documents", "needles"]
_N_TOKENS: dict[Kind, int] = {"words": 2, "numbers": 3, "uuids": 8}


class Needle(NamedTuple):
    """Tokens to hide, the answer among them, and its offsets in them."""

    tokens: Ids
    answer: Ids
    offsets: tuple[int, ...]


class Task(NamedTuple):
    """The content of a sequence: needle i holds value i of all, which belongs to key i // n_values.

    `question(numbers)` is, for the needles of these numbers in this order, the tokens before each one's answer.
    `haystack(n, rng)` is n tokens to hide the needles in.
    """

    head: Ids
    needles: list[Needle]
    question: Callable[[Sequence[int]], list[Ids]]
    haystack: Callable[[int, np.random.Generator], Hay]


# Makes the task of one sequence, from the number of keys, the number of values of each, and a random generator.
TaskMaker = Callable[[int, int, np.random.Generator], Task]


def speller_of(source: HasVocabulary | Vocabulary | int, text_mode: TextMode) -> Speller | None:
    """The tokenizer to write text with; None for bare tokens.

    Raises:
        WorkbenchError: for an unknown mode, or for text without a tokenizer.
    """
    if text_mode not in ("auto", "text", "tokens"):
        raise WorkbenchError(f"form is {text_mode!r}; expected 'auto', 'text' or 'tokens'")
    tokenizer = None if isinstance(source, Vocabulary | int) else source.tokenizer
    if tokenizer is None and text_mode == "text":
        raise WorkbenchError(
            f"form is 'text', and there is no tokenizer to write it with{why_no_tokenizer(source)}; pass form=tokens, "
            "or name one with tokenizer= of open_model (--tokenizer)"
        )
    return None if tokenizer is None or text_mode == "tokens" else Speller(tokenizer)


def sentences(
    speller: Speller, keys: Kind, values: Kind, haystack: HaystackKind, *, path: str | Path | None
) -> TaskMaker:
    """Needles as RULER words them: `One of the special magic numbers for quiet-river is: 1234567.`"""
    head = speller.first(f"Some special magic {values} are hidden in the text that follows. Remember them.")
    text = documents(speller, path) if haystack == "documents" else noise(speller)

    def needles(names: Sequence[str], contents: Sequence[str]) -> list[Needle]:
        leads = [f" One of the special magic {values} for {name} is:" for name in names]
        rows = speller.many([(lead, f" {value}", ".") for lead, value in zip(leads, contents, strict=True)])
        return [Needle(np.concatenate(row), row[1], (len(row[0]),)) for row in rows]

    def task(n_keys: int, n_values: int, rng: np.random.Generator) -> Task:
        taken: set[str] = set()
        names = [_new_text(keys, rng, taken) for _ in range(n_keys)]
        contents = [_new_text(values, rng, taken) for _ in range(n_keys * n_values)]

        def question(numbers: Sequence[int]) -> list[Ids]:
            listed = ", ".join(dict.fromkeys(names[i // n_values] for i in numbers))
            noun, verb = (values, "are") if len(numbers) > 1 else (values[:-1], "is")
            ask = f" Question: What {verb} the special magic {noun} for {listed} in the text above?"
            answers = chain.from_iterable((",", f" {contents[i]}") for i in numbers)
            row = [f"{ask} Answer: The special magic {noun} for {listed} {verb}:", *list(answers)[1:]]
            return speller.pieces(*row)[::2]

        def other_needles(n: int, rng: np.random.Generator) -> Hay:
            pieces: list[Ids] = []
            n_missing = n
            while n_missing > 0:
                n_more = 1 + n_missing // 16  # a needle is longer than that
                more = [[_new_text(kind, rng, taken) for _ in range(n_more)] for kind in (keys, values)]
                pieces += [needle.tokens for needle in needles(*more)]
                n_missing = n - sum(map(len, pieces))
            return from_pieces(pieces, n)

        hidden_in = other_needles if haystack == "needles" else text
        return Task(head, needles([name for name in names for _ in range(n_values)], contents), question, hidden_in)

    return task


def token_needles(words: Vocabulary, keys: Kind, values: Kind, haystack: HaystackKind) -> TaskMaker:
    """Needles of a key's tokens and a value's; the question is the key again. Keys, values and filler share no token.

    The question about a key with several values is the key once, with all its values after it.
    """

    def task(n_keys: int, n_values: int, rng: np.random.Generator) -> Task:
        key_pool, value_pool, filler = _pools(words, rng)
        key_sets, value_sets = _Different(keys, key_pool), _Different(values, value_pool)
        names, contents = key_sets.draw(n_keys, rng), value_sets.draw(n_keys * n_values, rng)

        def question(numbers: Sequence[int]) -> list[Ids]:
            key_numbers = [i // n_values for i in numbers]
            is_new = [i == 0 or key != key_numbers[i - 1] for i, key in enumerate(key_numbers)]
            return [names[key] if new else names[key][:0] for key, new in zip(key_numbers, is_new, strict=True)]

        def hay(n: int, rng: np.random.Generator) -> Hay:
            if haystack == "noise":
                return repeated_tokens(filler, n, rng)
            if haystack == "documents":
                return random_tokens(filler, n, rng)
            n_others = 1 + n // (_N_TOKENS[keys] + _N_TOKENS[values])
            pairs = zip(key_sets.draw(n_others, rng), value_sets.draw(n_others, rng), strict=True)
            return from_pieces([np.concatenate(pair) for pair in pairs], n)

        needles = [
            Needle(np.concatenate([names[i // n_values], content]), content, (_N_TOKENS[keys],))
            for i, content in enumerate(contents)
        ]
        return Task(names[0][:0], needles, question, hay)

    return task


def passkey_sentences(speller: Speller) -> TaskMaker:
    """`The pass key is 12345. Remember it: 12345 is the pass key.` in noise."""
    head = speller.first("A pass key is hidden in the text that follows. Find it and remember it.")
    hidden_in = noise(speller)

    def task(_n_keys: int, _n_values: int, rng: np.random.Generator) -> Task:
        digits = f" {rng.integers(10**4, 10**5)}"
        pieces = speller.pieces(" The pass key is", digits, ". Remember it:", digits, " is the pass key.")
        needle = Needle(np.concatenate(pieces), pieces[1], (len(pieces[0]), sum(map(len, pieces[:3]))))
        ask = speller.pieces(" Question: What is the pass key? Answer: The pass key is", digits)
        return Task(head, [needle], lambda _: ask[:1], hidden_in)

    return task


def token_passkey(words: Vocabulary, n_answer: int) -> TaskMaker:
    """A key token and `n_answer` value tokens in a repeated block of filler; the question is the key again."""

    def task(_n_keys: int, _n_values: int, rng: np.random.Generator) -> Task:
        drawn, filler = draw_one(words, 1 + n_answer, rng, purpose=f"a passkey of {n_answer} tokens")
        key, value = np.split(drawn, [1])
        needle = Needle(np.concatenate([key, value]), value, (1,))
        return Task(key[:0], [needle], lambda _: [key], lambda n, rng: repeated_tokens(filler, n, rng))

    return task


def _pools(words: Vocabulary, rng: np.random.Generator) -> tuple[Ids, Ids, Ids]:
    """The ordinary tokens in random order, a quarter for keys, a quarter for values, the rest for filler."""
    mixed = rng.permutation(words.ids.numpy())
    quarter = len(mixed) // 4
    keys, values, filler = np.split(mixed, [quarter, 2 * quarter])
    return keys, values, filler


def _new_text(kind: Kind, rng: np.random.Generator, taken: set[str]) -> str:
    """A key or value that is not in `taken`; it is added there."""
    if kind == "words" and len(taken) >= N_COMPOUNDS:
        raise WorkbenchError(f"the needles need more than {N_COMPOUNDS} different words; pass a smaller length")
    while True:
        if kind == "words":
            text = compound(int(rng.integers(N_COMPOUNDS)))
        elif kind == "numbers":
            text = str(rng.integers(10**6, 10**7))
        else:
            text = str(UUID(bytes=rng.bytes(16), version=4))
        if text not in taken:
            taken.add(text)
            return text


class _Different:
    """Keys or values made of a pool's tokens: no token twice in one, and no two alike over all draws."""

    def __init__(self, kind: Kind, pool: Ids):
        self._kind, self._pool, self._n_tokens = kind, pool, _N_TOKENS[kind]
        self._taken: set[tuple[int, ...]] = set()

    def draw(self, n: int, rng: np.random.Generator) -> list[Ids]:
        n_all = len(self._taken) + n
        if n_all > perm(len(self._pool), self._n_tokens):
            raise WorkbenchError(
                f"{n_all} different {self._kind} of {self._n_tokens} tokens cannot be made of the {len(self._pool)} "
                "ordinary tokens set aside for them; pass a larger vocabulary or a smaller length"
            )
        drawn: list[tuple[int, ...]] = []
        while len(drawn) < n:
            picks = rng.integers(len(self._pool), size=(n - len(drawn) + 8, self._n_tokens))
            is_different = (np.diff(np.sort(picks, axis=1), axis=1) > 0).all(axis=1)
            new = [pick for pick in map(tuple, picks[is_different].tolist()) if pick not in self._taken]
            new = list(dict.fromkeys(new))[: n - len(drawn)]
            self._taken.update(new)
            drawn += new
        return list(self._pool[np.array(drawn)])
