"""The two forms a needle task takes: sentences for a tokenizer, bare tokens for any vocabulary.

A key and a value are of a kind: `words`, an adjective-noun of the lexicon, else two tokens; `numbers`, seven digits,
else three tokens; `uuids`, else eight tokens. Within a sequence all keys differ, and all values.

Reference:
    Hsieh et al. 2024, RULER: the needle's sentence, its keys and values. Instruction and question are worded anew, and
    stand in one paragraph, so that the tokenizer's boundaries are spaces.
    Mohtashami & Jaggi 2023, Landmark Attention: a passkey of five digits that is said twice.
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
from workbench.probes.draft import Ids
from workbench.probes.haystack import Hay, documents, from_pieces, noise, random_tokens, repeated_tokens
from workbench.probes.lexicon import N_COMPOUNDS, compound
from workbench.probes.spelling import Speller
from workbench.probes.token_ids import HasVocabulary, Vocabulary, draw_one

Kind = Literal["words", "numbers", "uuids"]
Form = Literal["auto", "text", "tokens"]
Hidden = Literal["noise", "documents", "needles"]
_N_TOKENS: dict[Kind, int] = {"words": 2, "numbers": 3, "uuids": 8}
_N_WRITTEN: dict[Kind, int] = {"words": N_COMPOUNDS, "numbers": 9 * 10**6, "uuids": 1 << 122}


class Needle(NamedTuple):
    """Tokens to hide, the answer among them, and the places in them where it stands."""

    tokens: Ids
    answer: Ids
    places: tuple[int, ...]


class Task(NamedTuple):
    """What a sequence is made of: needle i holds value i of all, which belongs to key i // n_values.

    `question(asked)` writes, for the needles asked in the order given, what stands before each one's answer.
    `haystack(n, rng)` is n tokens to hide them in.
    """

    head: Ids
    needles: list[Needle]
    question: Callable[[Sequence[int]], list[Ids]]
    haystack: Callable[[int, np.random.Generator], Hay]


# Makes the task of one sequence, from the number of keys, the number of values of each, and random numbers.
NeedleForm = Callable[[int, int, np.random.Generator], Task]


def speller_of(source: HasVocabulary | Vocabulary | int, form: Form) -> Speller | None:
    """The tokenizer to write text with; None for the form without text.

    Raises:
        WorkbenchError: for an unknown form, or for text without a tokenizer.
    """
    if form not in ("auto", "text", "tokens"):
        raise WorkbenchError(f"form is {form!r}; expected 'auto', 'text' or 'tokens'")
    tokenizer = None if isinstance(source, Vocabulary | int) else source.tokenizer
    if tokenizer is None and form == "text":
        raise WorkbenchError("form is 'text', and there is no tokenizer to write it with; pass form=tokens")
    return None if tokenizer is None or form == "tokens" else Speller(tokenizer)


def sentences(speller: Speller, keys: Kind, values: Kind, hidden: Hidden, path: str | Path | None) -> NeedleForm:
    """Needles as RULER words them: `One of the special magic numbers for quiet-river is: 1234567.`"""
    head = speller.first(f"Some special magic {values} are hidden in the text that follows. Remember them.")
    around = documents(speller, path) if hidden == "documents" else noise(speller)

    def needles(names: Sequence[str], contents: Sequence[str]) -> list[Needle]:
        about = [f" One of the special magic {values} for {name} is:" for name in names]
        rows = speller.many([(what, f" {value}", ".") for what, value in zip(about, contents, strict=True)])
        return [Needle(np.concatenate(row), row[1], (len(row[0]),)) for row in rows]

    def task(n_keys: int, n_values: int, rng: np.random.Generator) -> Task:
        taken: set[str] = set()
        names = [_written(keys, rng, taken) for _ in range(n_keys)]
        contents = [_written(values, rng, taken) for _ in range(n_keys * n_values)]

        def question(asked: Sequence[int]) -> list[Ids]:
            listed = ", ".join(dict.fromkeys(names[i // n_values] for i in asked))
            what, verb = (values, "are") if len(asked) > 1 else (values[:-1], "is")
            ask = f" Question: What {verb} the special magic {what} for {listed} in the text above?"
            said = chain.from_iterable((",", f" {contents[i]}") for i in asked)
            row = [f"{ask} Answer: The special magic {what} for {listed} {verb}:", *list(said)[1:]]
            return speller.pieces(*row)[::2]

        def others(n: int, rng: np.random.Generator) -> Hay:
            pieces: list[Ids] = []
            missing = n
            while missing > 0:
                more = 1 + missing // 16  # a needle is longer than that
                new = [[_written(kind, rng, taken) for _ in range(more)] for kind in (keys, values)]
                pieces += [needle.tokens for needle in needles(*new)]
                missing = n - sum(map(len, pieces))
            return from_pieces(pieces, n)

        hidden_in = others if hidden == "needles" else around
        return Task(head, needles([name for name in names for _ in range(n_values)], contents), question, hidden_in)

    return task


def token_needles(words: Vocabulary, keys: Kind, values: Kind, hidden: Hidden) -> NeedleForm:
    """Needles of a key's tokens and a value's; the question is the key again. Keys, values and filler share no token.

    A key with several values is followed by all of them where it is asked.
    """

    def task(n_keys: int, n_values: int, rng: np.random.Generator) -> Task:
        key_pool, value_pool, filler = _pools(words, rng)
        taken_keys: set[tuple[int, ...]] = set()
        taken_values: set[tuple[int, ...]] = set()
        names = _drawn(keys, key_pool, n_keys, rng, taken_keys)
        contents = _drawn(values, value_pool, n_keys * n_values, rng, taken_values)

        def question(asked: Sequence[int]) -> list[Ids]:
            keys_asked = [i // n_values for i in asked]
            is_new = [i == 0 or key != keys_asked[i - 1] for i, key in enumerate(keys_asked)]
            return [names[key] if new else names[key][:0] for key, new in zip(keys_asked, is_new, strict=True)]

        def haystack(n: int, rng: np.random.Generator) -> Hay:
            if hidden == "noise":
                return repeated_tokens(filler, n, rng)
            if hidden == "documents":
                return random_tokens(filler, n, rng)
            n_others = 1 + n // (_N_TOKENS[keys] + _N_TOKENS[values])
            more_names = _drawn(keys, key_pool, n_others, rng, taken_keys)
            more_contents = _drawn(values, value_pool, n_others, rng, taken_values)
            return from_pieces([np.concatenate(pair) for pair in zip(more_names, more_contents, strict=True)], n)

        needles = [
            Needle(np.concatenate([names[i // n_values], content]), content, (_N_TOKENS[keys],))
            for i, content in enumerate(contents)
        ]
        return Task(names[0][:0], needles, question, haystack)

    return task


def passkey_sentences(speller: Speller) -> NeedleForm:
    """`The pass key is 12345. Remember it: 12345 is the pass key.` in noise."""
    head = speller.first("A pass key is hidden in the text that follows. Find it and remember it.")
    hidden_in = noise(speller)

    def task(_n_keys: int, _n_values: int, rng: np.random.Generator) -> Task:
        digits = f" {rng.integers(10**4, 10**5)}"
        said = speller.pieces(" The pass key is", digits, ". Remember it:", digits, " is the pass key.")
        needle = Needle(np.concatenate(said), said[1], (len(said[0]), sum(map(len, said[:3]))))
        ask = speller.pieces(" Question: What is the pass key? Answer: The pass key is", digits)
        return Task(head, [needle], lambda _: ask[:1], hidden_in)

    return task


def token_passkey(words: Vocabulary, n_answer: int) -> NeedleForm:
    """A key token and `n_answer` value tokens in a repeated block of filler; the question is the key again."""

    def task(_n_keys: int, _n_values: int, rng: np.random.Generator) -> Task:
        drawn, filler = draw_one(words, 1 + n_answer, rng, what=f"a passkey of {n_answer} tokens")
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


def _written(kind: Kind, rng: np.random.Generator, taken: set[str]) -> str:
    """A key or value that is not among those taken, which it joins."""
    if kind == "words" and len(taken) >= _N_WRITTEN[kind]:
        raise WorkbenchError(f"the needles need more than {N_COMPOUNDS} different words; pass a smaller length")
    while True:
        if kind == "words":
            found = compound(int(rng.integers(N_COMPOUNDS)))
        elif kind == "numbers":
            found = str(rng.integers(10**6, 10**7))
        else:
            found = str(UUID(bytes=rng.bytes(16), version=4))
        if found not in taken:
            taken.add(found)
            return found


def _drawn(kind: Kind, pool: Ids, n: int, rng: np.random.Generator, taken: set[tuple[int, ...]]) -> list[Ids]:
    """`n` times different tokens of a pool, in orders that are not among those taken, which they join."""
    n_tokens = _N_TOKENS[kind]
    if len(taken) + n > perm(len(pool), n_tokens):
        raise WorkbenchError(
            f"{len(taken) + n} different {kind} of {n_tokens} tokens cannot be made of the {len(pool)} ordinary tokens "
            "set aside for them; pass a larger vocabulary or a smaller length"
        )
    found: list[tuple[int, ...]] = []
    while len(found) < n:
        places = rng.integers(len(pool), size=(n - len(found) + 8, n_tokens))
        is_different = (np.diff(np.sort(places, axis=1), axis=1) > 0).all(axis=1)
        new = [key for key in map(tuple, places[is_different].tolist()) if key not in taken]
        new = list(dict.fromkeys(new))[: n - len(found)]
        taken.update(new)
        found += new
    return list(pool[np.array(found)])
