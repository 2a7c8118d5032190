"""Documents, a question that one of them answers, and the same documents with an empty question.

Reference:
    Zhang et al. 2025, QRHead: numbered paragraphs, then instruction and query; the query `N/A` to compare with. Our
    paragraphs are natural text around a needle of RULER's, the wording is our own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from workbench.heads import WorkbenchError
from workbench.probes.draft import Draft, Ids
from workbench.probes.haystack import plant
from workbench.probes.known_answers import Probe, make_probe
from workbench.probes.spelling import Speller
from workbench.probes.text_modes import Form, Task, sentences, speller_of, token_needles
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_sizes, tokens_left, vocabulary

_EMPTY = " Question: N/A Answer:"


def gold_document(
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 1024,
    n_documents: int = 8,
    n_sequences: int = 10,
    seed: int = 0,
    form: Form = "auto",
    path: str | Path | None = None,
    name: str = "gold_document",
) -> Probe:
    """Documents that hold one needle each, and a question that needs one of them: pairs, with and without the question.

    Answer rows: those of the question, its first token to the last before the answer. Needles: the document with the
    answer; `documents` tells all of them. There are no target cells. Without a tokenizer the empty question is about a
    key that no document holds.
    The sequences with a question have exactly `length` tokens.

    Args:
        n_sequences: of questions; the probe has twice as many sequences.
        path: natural text that documents are made of; default: the documentation that Python carries.

    Raises:
        WorkbenchError: if the length exceeds the model's context or does not hold documents and question, or the
            vocabulary is too small.
    """
    check_sizes(source, length=length, n_documents=n_documents, n_sequences=n_sequences)
    speller = speller_of(source, form)
    words = vocabulary(source)
    if speller is None:
        make = token_needles(words, "words", "numbers", "documents")
    else:
        make = sentences(speller, "words", "numbers", "documents", path)
    pairs = [
        _pair(made, n_documents, length, words.bos, rng, empty=None if speller is None else _empty(speller))
        for i in range(n_sequences)
        for rng in [np.random.default_rng([seed, i])]
        for made in [make(n_documents + 1, 1, rng)]
    ]
    return _assembled(name, [one for pair in pairs for one in pair])


class _Asked(NamedTuple):
    """A sequence, the rows of its question, and its documents, which one is gold: first and one past the last."""

    draft: Draft
    question: tuple[int, int]
    documents: list[tuple[int, int]]
    gold: int


def _pair(
    made: Task, n_documents: int, length: int, bos: int | None, rng: np.random.Generator, *, empty: Ids | None
) -> list[_Asked]:
    """The same documents with a question on one of them and with an empty one; the answer's first token ends both."""
    gold = int(rng.integers(n_documents))
    question = made.question([gold])[0]
    answer = made.needles[gold].answer[:1]
    n_written = (bos is not None) + len(made.head) + len(question) + len(answer)
    n_hay = tokens_left(length, n_written, "documents and question")
    documents = [
        _document(made, d, len(part), rng, length=length)
        for d, part in enumerate(np.array_split(np.arange(n_hay), n_documents))
    ]
    found: list[_Asked] = []
    for asked in (question, made.question([n_documents])[0] if empty is None else empty):
        draft = Draft(bos)
        draft.add(made.head)
        starts = [draft.add(document) for document in documents]
        first = draft.add(asked)
        spans = [(start, start + len(document)) for start, document in zip(starts, documents, strict=True)]
        found.append(_Asked(draft, (first, first + len(asked)), spans, gold))
        draft.add(answer)
    return found


def _document(made: Task, d: int, size: int, rng: np.random.Generator, *, length: int) -> Ids:
    """`size` tokens of text with needle d in their middle."""
    needle = made.needles[d].tokens
    if size < len(needle):
        raise WorkbenchError(f"{length} tokens hold no documents of {len(needle)} tokens each; pass fewer of them")
    hay = made.haystack(size - len(needle), rng)
    draft = Draft(None)
    plant(draft, hay, [needle], [hay.near(50)])
    return np.concatenate(draft.pieces)


def _empty(speller: Speller) -> Ids:
    return speller.pieces(_EMPTY)[0]


def _assembled(name: str, asked: list[_Asked]) -> Probe:
    """Sequences padded on the right, each with its question's rows and its document."""
    lengths = torch.tensor([one.draft.n_tokens for one in asked])
    tokens = torch.zeros(len(asked), int(lengths.max()), dtype=torch.long)
    for row, one in zip(tokens, asked, strict=True):
        written = torch.from_numpy(np.concatenate(one.draft.pieces))
        row[: len(written)], row[len(written) :] = written, written[0]
    is_valid = torch.arange(tokens.shape[1]) < lengths[:, None]
    rows = [(i, row) for i, one in enumerate(asked) for row in range(*one.question)]
    needles = [one.documents[one.gold] for one in asked for _ in range(*one.question)]
    documents = [(i, *span) for i, one in enumerate(asked) for span in one.documents]
    return make_probe(
        name,
        tokens,
        attention_mask=None if bool(is_valid.all()) else is_valid,
        answer_rows=torch.tensor(rows),
        needles=torch.tensor(needles),
        is_paired=True,
        documents=torch.tensor(documents),
    )
