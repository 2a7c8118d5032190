"""Several long passkeys in one context, each with its question at the end: the training input of DuoAttention's gates.

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
from workbench.probes.draft import Draft, Ids, Speller, assemble
from workbench.probes.filler_text import Hay, Haystack, documents, plant, random_tokens
from workbench.probes.known_answers import Probe
from workbench.probes.lexicon import ALPHABET, ORDINALS
from workbench.probes.registry import probe
from workbench.probes.text_modes import TextMode, speller_of
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_sizes, draw_one, tokens_left, vocabulary


class _Passkeys(NamedTuple):
    """For each passkey: the tokens before it in its needle and in its question, its own, and the tokens that end it."""

    head: Ids
    leads: list[Ids]
    questions: list[Ids]
    keys: list[Ids]
    end: Ids
    haystack: Callable[[int], Hay]


@probe("multi_passkey")
def multi_passkey(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 4096,
    n_passkeys: int = 10,
    n_words: int = 32,
    n_sequences: int = 4,
    seed: int = 0,
    form: TextMode = "auto",
    path: str | Path | None = None,
    name: str = "multi_passkey",
) -> Probe:
    """`n_passkeys` hidden passkeys of `n_words` random words of the spelling alphabet, then a question about each.

    The first passkey lies first; depths are drawn from 1000 values between 5 and 95 percent. Without a tokenizer, words
    are 26 tokens, an ordinal is a token before the passkey in needle and question, the haystack is random tokens.

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
            passkeys = _in_tokens(words, spoken, rng)
        else:
            passkeys = _in_text(speller, natural, spoken, rng)
        drafts.append(_sequence(passkeys, depths.tolist(), length, words.bos))
    return assemble(name, drafts, class_name="depth")


def _sequence(passkeys: _Passkeys, depths: list[float], length: int, bos: int | None) -> Draft:
    draft = Draft(bos)
    draft.add(passkeys.head)
    keys, end = passkeys.keys, passkeys.end
    needles = [np.concatenate([lead, key, end]) for lead, key in zip(passkeys.leads, keys, strict=True)]
    n_after = sum(len(ask) + len(key) + len(end) for ask, key in zip(passkeys.questions, keys, strict=True))
    n_written = draft.n_tokens + sum(map(len, needles)) + n_after
    hay = passkeys.haystack(tokens_left(length, n_written, "passkeys, questions and answers"))
    starts = plant(draft, hay, needles, [hay.near(depth) for depth in depths])
    for i, key in enumerate(keys):
        draft.add(passkeys.questions[i])
        draft.answer(key, [starts[i] + len(passkeys.leads[i])], int(depths[i] // 10) * 10)
        draft.add(end)
    return draft


def _in_text(
    speller: Speller, natural: Haystack, spoken: Int[np.ndarray, "n_passkeys n_words"], rng: np.random.Generator
) -> _Passkeys:
    keys = ["".join(f" {ALPHABET[word]}" for word in words) for words in spoken]
    ordinals = ORDINALS[: len(keys)]
    hide = [f" Remeber this sequence of words, it's the {ordinal} passkey to the vault:" for ordinal in ordinals]
    ask = [f" Question: In the text above, what is the {ordinal} passkey to the vault? Answer:" for ordinal in ordinals]
    hidden = speller.many([(lead, key, ".") for lead, key in zip(hide, keys, strict=True)])
    asking = speller.many([(lead, key, ".") for lead, key in zip(ask, keys, strict=True)])
    return _Passkeys(
        head=speller.first("Passkeys to a vault are hidden in the text that follows. Remember them."),
        leads=[row[0] for row in hidden],
        questions=[row[0] for row in asking],
        keys=[row[1] for row in hidden],
        end=hidden[0][2],
        haystack=lambda n: natural(n, rng),
    )


def _in_tokens(words: Vocabulary, spoken: Int[np.ndarray, "n_passkeys n_words"], rng: np.random.Generator) -> _Passkeys:
    n_alphabet, n_passkeys = len(ALPHABET), len(spoken)
    drawn, filler = draw_one(words, n_alphabet + n_passkeys, rng, purpose=f"{n_passkeys} passkeys")
    alphabet, ordinals = np.split(drawn, [n_alphabet])
    cues = [ordinals[i : i + 1] for i in range(n_passkeys)]
    keys = [alphabet[words] for words in spoken]
    return _Passkeys(drawn[:0], cues, cues, keys, drawn[:0], lambda n: random_tokens(filler, n, rng))
