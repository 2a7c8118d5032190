"""Sequences as they are written: text encoded in pieces, pieces put together, drafts assembled into a probe.

A piece is encoded as it follows other text, so it begins with a space or with punctuation. Pieces whose boundaries
matter, such as a key, a value and their neighbours, are also encoded joined. A tokenizer that merges across a boundary
is refused, because a model never sees the tokens that the pieces would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.probes.known_answers import Probe, make_probe

Ids = Int[np.ndarray, " _"]  # token ids, each array of a length of its own

# The text before an encoded piece. It ends a word, so that a space or a full stop begins something new.
_BEFORE = "a"
_NEXT_STEP = "pass form=tokens for the same task without text"


class Speller:
    """A tokenizer that encodes pieces of text, each different piece once."""

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
        spelled = [[self._known[text] for text in row] for row in rows]
        for row, ids in zip(rows, spelled, strict=True):
            self._refuse_unknown(row, ids)
            if len(row) > 1 and not np.array_equal(np.concatenate(ids), self._known["".join(row)]):
                raise self._merged(row)
        return spelled

    def running(self, texts: Sequence[str]) -> list[Ids]:
        """Pieces of filler; tokens that the tokenizer does not know are allowed."""
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
        try:
            encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        except Exception as error:  # the tokenizers library raises plain Exceptions
            raise WorkbenchError(f"the tokenizer cannot spell the task ({str(error)[:80]}); {_NEXT_STEP}") from error
        return [np.array(ids, dtype=np.int64) for ids in encoded]

    def _refuse_unknown(self, texts: Sequence[str], ids: Sequence[Ids]) -> None:
        unknown = self._tokenizer.unk_token_id
        for text, piece in zip(texts, ids, strict=True):
            if len(piece) == 0 or (unknown is not None and unknown in piece):
                raise WorkbenchError(f"the tokenizer does not know all of {text!r}; {_NEXT_STEP}")

    def _merged(self, row: Sequence[str]) -> WorkbenchError:
        """The error for the first boundary of the joined pieces at which no token ends."""
        joined = self._encode(list(accumulate(row)))
        for text, following, ids, ids_with_following in zip(row, row[1:], joined, joined[1:], strict=False):
            if not np.array_equal(ids_with_following[: len(ids)], ids):
                return WorkbenchError(
                    f"the tokenizer merges {text!r} and {following!r} across their boundary: the tokens before it are "
                    f"not those of {text!r} alone, so no row predicts {following!r}; {_NEXT_STEP}"
                )
        return WorkbenchError(
            f"the tokenizer reads {''.join(row)!r} otherwise than its pieces {list(row)}; {_NEXT_STEP}"
        )


class Draft:
    """One sequence: the tokens written so far, its answers, and the cells that hold them."""

    def __init__(self, bos: int | None):
        self.n_tokens = 0
        self.pieces: list[Ids] = []
        self.rows: list[int] = []
        self.labels: list[int] = []
        self.cells: list[tuple[int, int]] = []
        if bos is not None:
            self.add(np.array([bos]))

    def add(self, ids: Ids) -> int:
        """Write tokens; returns the position of the first."""
        start = self.n_tokens
        self.pieces.append(ids)
        self.n_tokens += len(ids)
        return start

    def answer(self, ids: Ids, sources: Iterable[int], label: int) -> None:
        """Write an answer. The same tokens, in the same order, stand at each of `sources`; `label` is its class."""
        start = self.add(ids)
        starts = list(sources)
        for i in range(len(ids)):
            row = start + i - 1
            self.rows.append(row)
            self.labels.append(label)
            self.cells += [(row, source + i) for source in starts]


def in_order(pieces: Sequence[Ids], order: Int[np.ndarray, " n"]) -> tuple[Ids, Int[np.ndarray, " n"]]:
    """Pieces one after the other in the order of their numbers: the tokens, and the start of each piece in them."""
    ends = np.cumsum(np.array([len(piece) for piece in pieces])[order])
    return np.concatenate([pieces[i] for i in order.tolist()]), np.concatenate([[0], ends[:-1]])


def assemble(name: str, drafts: Sequence[Draft], *, class_name: str, metric: str = "recall") -> Probe:
    """Drafts as a probe, shorter ones padded on the right."""
    tokens, is_valid = pad_right(drafts)
    answer_rows = [(i, row) for i, draft in enumerate(drafts) for row in draft.rows]
    cells = [(i, row, key) for i, draft in enumerate(drafts) for row, key in draft.cells]
    return make_probe(
        name,
        tokens,
        attention_mask=is_valid,
        answer_rows=torch.tensor(answer_rows),
        target_cells=torch.tensor(cells),
        classes=torch.tensor([label for draft in drafts for label in draft.labels]),
        class_name=class_name,
        metric=metric,
    )


def pad_right(drafts: Sequence[Draft]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"] | None]:
    """The tokens of all drafts, padded with each one's first token, and their mask; None where nothing is padded."""
    longest = max(draft.n_tokens for draft in drafts)
    tokens = np.zeros((len(drafts), longest), dtype=np.int64)
    for row, draft in zip(tokens, drafts, strict=True):
        row[: draft.n_tokens] = np.concatenate(draft.pieces)
        row[draft.n_tokens :] = row[0]
    lengths = torch.tensor([draft.n_tokens for draft in drafts])
    is_valid = torch.arange(longest) < lengths[:, None]
    return torch.from_numpy(tokens), None if bool(is_valid.all()) else is_valid
