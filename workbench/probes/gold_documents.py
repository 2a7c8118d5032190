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
from workbench.probes.draft import Draft, Ids, pad_right
from workbench.probes.filler_text import plant
from workbench.probes.known_answers import Probe, make_probe
from workbench.probes.registry import probe
from workbench.probes.text_modes import Task, TextMode, sentences, speller_of, token_needles
from workbench.probes.token_ids import HasVocabulary, Vocabulary, check_sizes, tokens_left, vocabulary

_EMPTY = " Question: N/A Answer:"


@probe("gold_document")
def gold_document(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary | Vocabulary | int,
    *,
    length: int = 1024,
    n_documents: int = 8,
    n_sequences: int = 10,
    seed: int = 0,
    form: TextMode = "auto",
    path: str | Path | None = None,
    name: str = "gold_document",
) -> Probe:
    """Documents with one needle each, and a question about one of them: pairs, with and without the question.

    Answer rows: those of the question, its first token to the last before the answer. Needles: the document with the
    answer. `documents` lists all documents. There are no target cells. Without a tokenizer the empty question is about
    a key that no document holds. The sequences with a question have exactly `length` tokens.

    Args:
        n_sequences: number of questions; the probe has twice as many sequences.
        path: natural text for the documents; default: the documentation that Python carries.

    Raises:
        WorkbenchError: if the length exceeds the model's context or does not hold documents and question, or the
            vocabulary is too small.
    """
    check_sizes(source, length=length, n_documents=n_documents, n_sequences=n_sequences)
    speller = speller_of(source, form)
    words = vocabulary(source)
    if speller is None:
        make, empty = token_needles(words, "words", "numbers", "documents"), None
    else:
        make, empty = sentences(speller, "words", "numbers", "documents", path=path), speller.pieces(_EMPTY)[0]
    instances: list[_Instance] = []
    for i in range(n_sequences):
        rng = np.random.default_rng([seed, i])
        task = make(n_documents + 1, 1, rng)
        gold = int(rng.integers(n_documents))
        question = task.question([gold])[0]
        n_written = (words.bos is not None) + len(task.head) + len(question) + len(_answer(task, gold))
        n_hay = tokens_left(length, n_written, "documents and question")
        documents = [
            _document(task, d, len(tokens), rng, length=length)
            for d, tokens in enumerate(np.array_split(np.arange(n_hay), n_documents))
        ]
        without = task.question([n_documents])[0] if empty is None else empty
        instances += [_instance(task, documents, gold, ask, bos=words.bos) for ask in (question, without)]
    return _assembled(name, instances)


class _Instance(NamedTuple):
    """A sequence, the rows of its question, its documents (first token, one past the last), the gold one's number."""

    draft: Draft
    question: tuple[int, int]
    documents: list[tuple[int, int]]
    gold: int


def _answer(task: Task, gold: int) -> Ids:
    """The answer's first token, which ends a sequence whatever its question."""
    return task.needles[gold].answer[:1]


def _instance(task: Task, documents: list[Ids], gold: int, question: Ids, *, bos: int | None) -> _Instance:
    draft = Draft(bos)
    draft.add(task.head)
    starts = [draft.add(document) for document in documents]
    first = draft.add(question)
    draft.add(_answer(task, gold))
    spans = [(start, start + len(document)) for start, document in zip(starts, documents, strict=True)]
    return _Instance(draft, (first, first + len(question)), spans, gold)


def _document(task: Task, d: int, size: int, rng: np.random.Generator, *, length: int) -> Ids:
    """`size` tokens of text with needle d in their middle."""
    needle = task.needles[d].tokens
    if size < len(needle):
        raise WorkbenchError(f"{length} tokens hold no documents of {len(needle)} tokens each; pass fewer of them")
    hay = task.haystack(size - len(needle), rng)
    draft = Draft(None)
    plant(draft, hay, [needle], [hay.near(50)])
    return np.concatenate(draft.pieces)


def _assembled(name: str, instances: list[_Instance]) -> Probe:
    tokens, is_valid = pad_right([instance.draft for instance in instances])
    rows = [(i, row) for i, instance in enumerate(instances) for row in range(*instance.question)]
    needles = [instance.documents[instance.gold] for instance in instances for _ in range(*instance.question)]
    documents = [(i, *span) for i, instance in enumerate(instances) for span in instance.documents]
    return make_probe(
        name,
        tokens,
        attention_mask=is_valid,
        answer_rows=torch.tensor(rows),
        needles=torch.tensor(needles),
        is_paired=True,
        documents=torch.tensor(documents),
    )
