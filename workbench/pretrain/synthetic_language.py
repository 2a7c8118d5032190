"""Copybook, a synthetic language of 32 words whose documents copy earlier spans of themselves.

1. Backbone: each word follows from the word two before it with probability `skip_rate` (a fixed random table of
   skip-bigrams), else it is drawn independently: word r with probability ∝ (r + 1)^−0.7.
2. Document: BOS, then segments of 5 to 13 tokens. The first is backbone; each later one is, with probability
   `copy_rate`, a copy of a random earlier span of the document, else backbone again.

A model can predict copies only by looking up an earlier occurrence of the current word, so an induction head lowers the
loss. Skip-bigrams reward a head that looks a fixed distance back, so the previous-token head forms early.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

VOCABULARY = 40
N_RESERVED = 8  # BOS and seven ids that no document contains

_UNIGRAM_EXPONENT = 0.7


@dataclass(frozen=True, slots=True)
class Language:
    """One language per seed: the seed chooses the skip-bigrams, and all else is equal.

    Token ids: `bos`, seven reserved ones, then `words` (8 to 39). `successors[i]` is the skip-bigram of `words[i]`: the
    word that follows it two positions later. `segment`: shortest and longest segment, in tokens.
    """

    seed: int = 0
    copy_rate: float = 0.65
    skip_rate: float = 0.4
    segment: tuple[int, int] = (5, 13)
    bos: int = field(default=0, init=False)
    words: Int[np.ndarray, " n_words"] = field(init=False, repr=False, compare=False)
    successors: Int[np.ndarray, " n_words"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = np.arange(N_RESERVED, VOCABULARY)
        rng = np.random.default_rng(10_000 + self.seed)
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "successors", _draw(words, words.shape, rng))

    def backbone(self, n: int, length: int, rng: np.random.Generator) -> Int[np.ndarray, "n length"]:
        """Sequences of skip-bigram text without copies, BOS at position 0. Probes use them as filler."""
        tokens = _draw(self.words, (n, length), rng)
        follows = rng.random((n, length)) < self.skip_rate
        tokens[:, 0] = self.bos
        for t in range(3, length):
            successors = self.successors[tokens[:, t - 2] - N_RESERVED]
            tokens[:, t] = np.where(follows[:, t], successors, tokens[:, t])
        return tokens

    def documents(self, n: int, length: int, rng: np.random.Generator) -> Int[np.ndarray, "n length"]:
        """Documents to train on: BOS, then backbone and verbatim copies of earlier spans of the same document."""
        tokens = self.backbone(n, length, rng)
        shortest, longest = self.segment
        rows = np.arange(n)
        remaining = rng.integers(shortest, longest + 1, n)  # tokens until the document's current segment ends
        back = np.zeros(n, dtype=np.int64)  # distance to the source of the current copy; 0 in backbone
        for t in range(1, length):
            starts = remaining == 0
            drawn = np.minimum(rng.integers(shortest, longest + 1, n), length - t)
            # A copy is no longer than the document before it, and its source ends before it begins.
            copied = np.minimum(drawn, max(t - 1, 1))
            source = rng.integers(1, np.maximum(t - copied, 1) + 1)
            copies = rng.random(n) < self.copy_rate
            remaining = np.where(starts, np.where(copies, copied, drawn), remaining)
            back = np.where(starts, np.where(copies, t - source, 0), back)
            tokens[:, t] = tokens[rows, t - back]
            remaining -= 1
        return tokens


def _draw(
    words: Int[np.ndarray, " n_words"], shape: tuple[int, ...], rng: np.random.Generator
) -> Int[np.ndarray, "..."]:
    frequency = np.arange(1, len(words) + 1) ** -_UNIGRAM_EXPONENT
    cumulative = np.cumsum(frequency / frequency.sum())
    return words[np.minimum(np.searchsorted(cumulative, rng.random(shape)), len(words) - 1)]
