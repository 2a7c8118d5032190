"""Several long passkeys in one context, all asked at its end: the training input of DuoAttention's gates.

Reference:
    Xiao et al. 2024, DuoAttention, its training data: needle sentence (spelled as there), ordinals, alphabet, depths.
    There the labels are the questions too, and the lengths vary; here the passkeys alone are answers, the question is
    worded anew, and one probe has one length.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from workbench.heads import WorkbenchError
from workbench.probes.draft import Draft, Ids, assemble
from workbench.probes.haystack import Hay, Haystack, documents, plant, random_tokens
from workbench.probes.known_answers import Probe
from workbench.probes.lexicon import ALPHABET, ORDINALS
from workbench.probes.spelling import Speller
from workbench.probes.text_modes import Form, speller_of
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_sizes, draw_one, tokens_left, vocabulary


class _Keys(NamedTuple):
    """For each passkey: what stands before it where it is hidden and where it is asked, itself, and what ends it."""

    head: Ids
    hidden: list[Ids]
    asked: list[Ids]
    keys: list[Ids]
    end: Ids
    haystack: Callable[[int], Hay]


def multi_passkey(
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 4096,
    n_passkeys: int = 10,
    n_words: int = 32,
    n_sequences: int = 4,
    seed: int = 0,
    form: Form = "auto",
    path: str | Path | None = None,
    name: str = "multi_passkey",
) -> Probe:
    """`n_passkeys` passkeys of `n_words` random words of the 26 of the spelling alphabet, hidden, then asked in turn.

    The first passkey lies first; depths are drawn from 1000 values between 5 and 95 percent. Without a tokenizer, words
    are 26 tokens, an ordinal is a token that stands before the passkey in both places, the haystack is random tokens.

    Answers: the passkeys. Target cells: the same word of the passkey where it was hidden. Classes: depth rounded down
    to tens of percent. Sequences have exactly `length` tokens.

    Args:
        path: natural text to hide in; default: the documentation that Python carries.

    Raises:
        WorkbenchError: if the length exceeds the model's context or does not hold all passkeys twice, the vocabulary is
            too small, or the tokenizer merges a passkey with its neighbours.
    """
    check_sizes(source, length=length, n_passkeys=n_passkeys, n_words=n_words, n_sequences=n_sequences)
    if n_passkeys > len(ORDINALS):
        raise WorkbenchError(f"n_passkeys is {n_passkeys}; expected at most {len(ORDINALS)}")
    words, speller = vocabulary(source), speller_of(source, form)
    natural = None if speller is None else documents(speller, path)
    drafts = []
    for i in range(n_sequences):
        rng = np.random.default_rng([seed, i])
        spoken = rng.integers(len(ALPHABET), size=(n_passkeys, n_words))
        depths = np.sort(rng.permutation(np.linspace(5, 95, 1000))[:n_passkeys])
        if speller is None or natural is None:
            made = _in_tokens(words, spoken, rng)
        else:
            made = _in_text(speller, natural, spoken, rng)
        drafts.append(_sequence(made, depths.tolist(), length, words.bos))
    return assemble(name, drafts, class_name="depth")


def _sequence(made: _Keys, depths: list[float], length: int, bos: int | None) -> Draft:
    draft = Draft(bos)
    draft.add(made.head)
    needles = [np.concatenate([one, key, made.end]) for one, key in zip(made.hidden, made.keys, strict=True)]
    n_asked = sum(len(one) + len(key) + len(made.end) for one, key in zip(made.asked, made.keys, strict=True))
    n_written = draft.n_tokens + sum(map(len, needles)) + n_asked
    hay = made.haystack(tokens_left(length, n_written, "passkeys, questions and answers"))
    starts = plant(draft, hay, needles, [hay.near(depth) for depth in depths])
    for i, key in enumerate(made.keys):
        draft.add(made.asked[i])
        draft.answer(key, [starts[i] + len(made.hidden[i])], int(depths[i] // 10) * 10)
        draft.add(made.end)
    return draft


def _in_text(
    speller: Speller, natural: Haystack, spoken: Int[np.ndarray, "n_passkeys n_words"], rng: np.random.Generator
) -> _Keys:
    keys = ["".join(f" {ALPHABET[word]}" for word in words) for words in spoken]
    ordinals = ORDINALS[: len(keys)]
    hide = [f" Remeber this sequence of words, it's the {one} passkey to the vault:" for one in ordinals]
    ask = [f" Question: In the text above, what is the {one} passkey to the vault? Answer:" for one in ordinals]
    hidden = speller.many([(before, key, ".") for before, key in zip(hide, keys, strict=True)])
    asked = speller.many([(before, key, ".") for before, key in zip(ask, keys, strict=True)])
    return _Keys(
        head=speller.first("Passkeys to a vault are hidden in the text that follows. Remember them."),
        hidden=[row[0] for row in hidden],
        asked=[row[0] for row in asked],
        keys=[row[1] for row in hidden],
        end=hidden[0][2],
        haystack=lambda n: natural(n, rng),
    )


def _in_tokens(words: Vocabulary, spoken: Int[np.ndarray, "n_passkeys n_words"], rng: np.random.Generator) -> _Keys:
    n_alphabet, n_passkeys = len(ALPHABET), len(spoken)
    drawn, filler = draw_one(words, n_alphabet + n_passkeys, rng, what=f"{n_passkeys} passkeys")
    alphabet, ordinals = np.split(drawn, [n_alphabet])
    cues = [ordinals[i : i + 1] for i in range(n_passkeys)]
    keys = [alphabet[words] for words in spoken]
    return _Keys(drawn[:0], cues, cues, keys, drawn[:0], lambda n: random_tokens(filler, n, rng))
