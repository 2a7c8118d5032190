"""Text as pieces of tokens: what stands between two boundaries is known exactly, and is what the tokenizer would make.

A piece is encoded as it follows other text, so it begins with a space or with punctuation. Pieces whose boundaries
matter, such as a key, a value and what surrounds them, are also encoded joined; a tokenizer that merges across a
boundary is refused, for a model never sees the tokens that the pieces would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from workbench.heads import WorkbenchError
from workbench.probes.draft import Ids

# What a piece is encoded after: ends a word, so that a space or a full stop begins something new.
_BEFORE = "a"
_NEXT_STEP = "pass form=tokens for the same task without text"


class Speller:
    """A tokenizer that encodes pieces, each different one once."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._known: dict[str, Ids] = {}
        self._before = self._encode([_BEFORE])[0]

    def first(self, text: str) -> Ids:
        """The tokens of a text that begins a sequence."""
        ids = self._encode([text])[0]
        self._refuse_unknown([text], [ids])
        return ids

    def pieces(self, *texts: str) -> list[Ids]:
        """Neighbouring pieces, each as its tokens.

        Raises:
            WorkbenchError: if the tokenizer merges across a boundary or does not know the text.
        """
        return self.many([texts])[0]

    def many(self, rows: Sequence[Sequence[str]]) -> list[list[Ids]]:
        """Each row of neighbouring pieces as the tokens of its pieces; boundaries are checked within a row.

        Raises:
            WorkbenchError: as `pieces`.
        """
        self._learn([text for row in rows for text in row])
        self._learn(["".join(row) for row in rows if len(row) > 1])
        found = [[self._known[text] for text in row] for row in rows]
        for row, ids in zip(rows, found, strict=True):
            self._refuse_unknown(row, ids)
            if len(row) > 1 and not np.array_equal(np.concatenate(ids), self._known["".join(row)]):
                raise self._merged(row)
        return found

    def running(self, texts: Sequence[str]) -> list[Ids]:
        """Pieces of filler: tokens the tokenizer does not know are let through."""
        self._learn(texts)
        return [self._known[text] for text in texts]

    def _learn(self, texts: Sequence[str]) -> None:
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        n = len(self._before)
        for text, ids in zip(fresh, self._encode([_BEFORE + text for text in fresh]), strict=True):
            if not np.array_equal(ids[:n], self._before):
                raise WorkbenchError(
                    f"the tokenizer merges a word and {text!r} after it across their boundary, so it cannot be known "
                    f"which tokens {text!r} is; {_NEXT_STEP}"
                )
            self._known[text] = ids[n:]

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(ids, dtype=np.int64) for ids in encoded]

    def _refuse_unknown(self, texts: Sequence[str], ids: Sequence[Ids]) -> None:
        unknown = self._tokenizer.unk_token_id
        for text, piece in zip(texts, ids, strict=True):
            if len(piece) == 0 or (unknown is not None and unknown in piece):
                raise WorkbenchError(f"the tokenizer does not know all of {text!r}; {_NEXT_STEP}")

    def _merged(self, row: Sequence[str]) -> WorkbenchError:
        """Find the first boundary that no token ends at, when the pieces are read joined."""
        joined = self._encode(list(accumulate(row)))
        for left, right, before, both in zip(row, row[1:], joined, joined[1:], strict=False):
            if not np.array_equal(both[: len(before)], before):
                return WorkbenchError(
                    f"the tokenizer merges {left!r} and {right!r} across their boundary: the tokens before it are not "
                    f"those of {left!r} alone, so no row predicts {right!r}; {_NEXT_STEP}"
                )
        return WorkbenchError(
            f"the tokenizer reads {''.join(row)!r} otherwise than its pieces {list(row)}; {_NEXT_STEP}"
        )
