"""Haystacks of any length: sentences of noise, natural text, random tokens, with breaks where needles may be planted.

Reference:
    Hsieh et al. 2024, RULER: haystacks of repeated noise sentences, of essays, and of other needles. Our noise
    sentences and our essays, Python's own documentation, are others.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workbench.heads import WorkbenchError
from workbench.probes.draft import Draft, Ids, Speller

NOISE = (
    "The sea is wide.",
    "The hills are old.",
    "The road is long.",
    "We go on.",
    "Then we turn and come home.",
)
_LONGEST_PIECE = 40  # words
# Byte-order marks, those of UTF-32 first: that of UTF-16 is the beginning of one.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Hay(NamedTuple):
    """`tokens` to hide needles in, and `breaks`: the ascending positions, 0 to the end, where one may be planted."""

    tokens: Ids
    breaks: Ids

    def near(self, depth: int | float) -> int:
        """The last break at or before `depth` percent."""
        return int(self.breaks[np.searchsorted(self.breaks, len(self.tokens) * depth / 100, side="right") - 1])


Haystack = Callable[[int, np.random.Generator], Hay]


def noise(speller: Speller) -> Haystack:
    """The noise sentences, repeated."""
    pieces = speller.running([f" {sentence}" for sentence in NOISE])
    return lambda n, _: from_pieces(pieces, n)


def documents(speller: Speller, path: str | Path | None = None) -> Haystack:
    """Natural text of `path` or Python's documentation, from a random sentence on, repeated where it ends.

    Raises:
        WorkbenchError: if the file cannot be read as UTF-8 or holds no text.
    """
    texts = _documentation() if path is None else _pieces(read_text(path))
    if not texts:
        raise WorkbenchError(f"{path} holds no text; a haystack needs some")

    def cut(n: int, rng: np.random.Generator) -> Hay:
        start = int(rng.integers(len(texts)))
        turned = [*texts[start:], *texts[:start]]
        pieces: list[Ids] = []
        while sum(map(len, pieces)) < n and len(pieces) < len(texts):
            pieces += speller.running(turned[len(pieces) : 2 * len(pieces) + 64])
        return from_pieces(pieces, n)

    return cut


@cache
def _documentation() -> Sequence[str]:
    return _pieces(read_text(None))


def _pieces(content: str) -> Sequence[str]:
    """The sentences of a text, long ones cut, each with a space before it."""
    words = content.split()
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", " ".join(words)) if words else []
    split = (sentence.split(" ") for sentence in sentences)
    return tuple(
        " " + " ".join(sentence[i : i + _LONGEST_PIECE])
        for sentence in split
        for i in range(0, len(sentence), _LONGEST_PIECE)
    )


def random_tokens(pool: Ids, n: int, rng: np.random.Generator) -> Hay:
    """Tokens drawn from a pool; a needle may stand anywhere."""
    return Hay(pool[rng.integers(len(pool), size=n)], np.arange(n + 1))


def repeated_tokens(pool: Ids, n: int, rng: np.random.Generator) -> Hay:
    """One block of 24 random tokens, repeated as noise sentences are; a needle stands between blocks."""
    return from_pieces([pool[rng.integers(len(pool), size=24)]], n)


def from_pieces(pieces: Sequence[Ids], n: int) -> Hay:
    """The pieces, repeated as often as needed and cut after `n` tokens; breaks lie between pieces."""
    ends = np.cumsum([len(piece) for piece in pieces])
    times = n // int(ends[-1]) + 1
    tokens = np.tile(np.concatenate(pieces), times)[:n]
    breaks = (np.arange(times)[:, None] * ends[-1] + ends).ravel()
    return Hay(tokens, np.concatenate([[0], breaks[breaks < n], [n]]))


def plant(draft: Draft, hay: Hay, needles: Sequence[Ids], breaks: Sequence[int]) -> list[int]:
    """Write the haystack with needle i before its token `breaks[i]`; returns each needle's first position."""
    starts, n_written = [0] * len(needles), 0
    for i in sorted(range(len(needles)), key=lambda i: breaks[i]):
        draft.add(hay.tokens[n_written : breaks[i]])
        starts[i], n_written = draft.add(needles[i]), breaks[i]
    draft.add(hay.tokens[n_written:])
    return starts


def read_text(path: str | Path | None) -> str:
    """A text file, or for None the documentation that Python carries (it differs between Python versions).

    The file is UTF-8, or what its byte-order mark says; the mark is left out, and every line ends with a newline alone.

    Raises:
        WorkbenchError: if the file cannot be read, holds no text, or is in another encoding.
    """
    if path is None:
        from pydoc_data.topics import topics

        return " ".join(chain.from_iterable((topics[name], "\n") for name in sorted(topics)))
    try:
        raw = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise WorkbenchError(f"cannot read {path}: {error}; pass the path of a text file") from error
    mark, encoding = next((each for each in _MARKS if raw.startswith(each[0])), (b"", "utf-8"))
    try:
        content = raw.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        raise WorkbenchError(
            f"{path} is not {encoding.upper()} text: {error}; convert it, as `iconv -f LATIN1 -t UTF-8 {path}` "
            "does for Latin-1"
        ) from error
    if "\0" in content:
        raise WorkbenchError(
            f"{path} holds NUL characters, which are in no text: it is a binary file, or UTF-16 without a byte-order "
            "mark; convert it to UTF-8"
        )
    if not content.strip():
        raise WorkbenchError(f"{path} holds no text; pass a file with some")
    return content.replace("\r\n", "\n").replace("\r", "\n")
