"""Natural text as a probe: every row predicts its next token, or only the rows where a rare n-gram stands again.

Tokens that can be predicted by looking up an earlier n-gram are found by token identity.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cachetools import LRUCache
from jaxtyping import Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.probes.filler_text import read_text
from workbench.probes.known_answers import Probe, make_probe, octave
from workbench.probes.registry import probe
from workbench.probes.token_ids import (
    Beginning,
    HasVocabulary,
    Vocabulary,
    beginning,
    check_sizes,
    why_no_tokenizer,
    with_beginning,
)
from workbench.probes.token_inputs import TokensLike, encode, token_batch


def text(source: HasVocabulary, content: str, *, bos: int | str | None = "auto", name: str = "text") -> Probe:
    """One sequence: the text as the model's own tokenizer reads it, behind the beginning that all probes have.

    Args:
        bos: the token it begins with: a token's id, None for none; "auto": as `beginning` says. Other special tokens
            are put as the tokenizer puts them.

    Raises:
        WorkbenchError: if the model has no tokenizer, or the text has fewer than two tokens.
    """
    lead, body = _begun(source if bos == "auto" else with_beginning(source, bos), content)
    ids = torch.cat([lead, body])
    if len(ids) < 2:
        raise WorkbenchError(f"the text has {len(ids)} tokens; expected at least 2")
    return token_sequences(ids[None], name=name)


@probe("text")
def text_file(
    source: HasVocabulary,
    path: str | Path,
    *,
    length: int = 256,
    n_sequences: int = 16,
    seed: int = 0,
    name: str = "text",
) -> Probe:
    """`n_sequences` windows of `length` tokens from a text file, drawn at random without overlap.

    The file is tokenized once; each window starts with the beginning-of-sequence token, if there is one.

    Raises:
        WorkbenchError: if the file cannot be read as UTF-8, is too short, the model has no tokenizer, or the length
            exceeds its context.
    """
    check_sizes(source, length=length, n_sequences=n_sequences)
    windows = _cut_windows(source, path, length, n_sequences, seed=seed)
    return token_sequences(windows.tokens, name=name)


def token_sequences(tokens: TokensLike, attention_mask: Any = None, *, name: str = "tokens") -> Probe:
    """Token sequences as a probe: each valid row with a valid next token predicts it. Classes: the row's position.

    Token ids come as a tensor, an array, lists or a tokenizer's output. A row and its next token are of one document,
    where the mask numbers several, and positions count from its beginning.

    Raises:
        WorkbenchError: for what are no token ids, or a mask of another shape.
    """
    tokens, attention_mask = token_batch(tokens, attention_mask)
    number = torch.ones_like(tokens) if attention_mask is None else attention_mask.long()
    if number.shape != tokens.shape:
        raise WorkbenchError(
            f"attention_mask has shape {tuple(number.shape)}; expected the tokens' {tuple(tokens.shape)}"
        )
    is_same = number[:, :-1] == number[:, 1:]
    position = torch.arange(tokens.shape[1]).expand_as(tokens)
    is_start = torch.ones_like(tokens, dtype=torch.bool)
    is_start[:, 1:] = ~is_same
    start = torch.where(is_start, position, 0).cummax(-1).values
    sequence, row = (is_same & (number[:, 1:] != 0)).nonzero(as_tuple=True)
    return make_probe(
        name,
        tokens.cpu(),
        attention_mask=attention_mask,
        answer_rows=torch.stack([sequence, row], -1),
        classes=row - start[sequence, row],
        class_name="position",
    )


@probe("repeated_ngrams")
def repeated_ngrams(  # noqa: PLR0913  (keywords of job files)
    source: HasVocabulary,
    *,
    path: str | Path | None = None,
    n: int = 3,
    at_most: int = 20,
    length: int = 512,
    n_sequences: int = 16,
    seed: int = 0,
    name: str = "repeated_ngrams",
) -> Probe:
    """Natural text in which rare n-grams stand again: the last token of each, and that of its first occurrence.

    Windows as in `text_file`. A rare n-gram occurs at most `at_most` times in the whole text; a repeated one occurs at
    least twice in a window.

    Answers: the last token of every occurrence of a repeated rare n-gram. Target cells: of later occurrences, the same
    token of all earlier ones. Classes: the distance to the nearest of them, at least 1, rounded down to a power of two;
    0 for the first occurrence, to compare with. The pooled number holds both.

    Args:
        path: a text file; default: the documentation that Python carries.

    Raises:
        WorkbenchError: as `text_file`; or if n < 2, or nothing repeats.
    """
    check_sizes(source, length=length, n_sequences=n_sequences, at_most=at_most)
    if n < 2:
        raise WorkbenchError(f"n is {n}; expected at least 2: a token, and one to predict it from")
    windows = _cut_windows(source, path, length, n_sequences, seed=seed)
    ngrams = _identify(windows.body.numpy(), n)
    is_rare = np.bincount(ngrams) <= at_most
    answers: list[tuple[int, int, int]] = []
    cells: list[tuple[int, int, int]] = []
    for i, start in enumerate(windows.starts):
        inside = ngrams[start : start + length - windows.n_lead - n + 1]
        for occurrences in _repeated(inside, is_rare):
            ends = [windows.n_lead + first + n - 1 for first in occurrences]
            answers.append((i, ends[0] - 1, 0))
            for m, end in enumerate(ends[1:], start=1):
                answers.append((i, end - 1, max(1, end - 1 - ends[m - 1])))
                cells += [(i, end - 1, earlier) for earlier in ends[:m]]
    if not answers:
        raise WorkbenchError(
            f"no {n}-gram of at most {at_most} occurrences repeats within {length} tokens; pass a smaller n or a "
            "larger at_most, length or n_sequences"
        )
    rows = torch.tensor(answers)
    distance = rows[:, 2]
    return make_probe(
        name,
        windows.tokens,
        answer_rows=rows[:, :2],
        target_cells=torch.tensor(cells),
        classes=torch.where(distance == 0, 0, octave(distance.clamp(min=1))),
        metric="copy_accuracy",
    )


class _Windows(NamedTuple):
    """`tokens`: windows of a text, the first `n_lead` of each special; the rest of window i is `body[starts[i]: …]`."""

    tokens: Int[Tensor, "b t"]
    n_lead: int
    body: Int[Tensor, " n_body"]
    starts: list[int]


def _cut_windows(
    source: HasVocabulary, path: str | Path | None, length: int, n_sequences: int, *, seed: int
) -> _Windows:
    """Windows of `length` tokens of a text file, None being Python's documentation, drawn without overlap.

    Raises:
        WorkbenchError: as `text_file`.
    """
    lead, body = _begun(source, None if path is None else read_text(path))
    n_body = length - len(lead)
    n_windows = len(body) // max(1, n_body)
    if n_windows < n_sequences:
        title = "Python's documentation" if path is None else path
        raise WorkbenchError(
            f"{title} has {len(body)} tokens: {n_windows} windows of {length}; expected {n_sequences}. "
            "Pass a smaller length or n_sequences"
        )
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randperm(n_windows, generator=generator)[:n_sequences].sort().values
    starts = (picks * n_body).tolist()
    return _Windows(torch.stack([torch.cat([lead, body[s : s + n_body]]) for s in starts]), len(lead), body, starts)


def _begun(
    source: HasVocabulary | Vocabulary, content: str | None
) -> tuple[Int[Tensor, " n_lead"], Int[Tensor, " n_body"]]:
    """What stands before a text, Python's documentation without one, and its own tokens.

    A tokenizer that puts special tokens before a text keeps them, as `[CLS]`; where it puts none, the text begins as
    every probe does.
    """
    ids = _documentation(source) if content is None else _encode(source, content)
    own = _encode(source, "")
    has_own = bool(len(own)) and torch.equal(ids[: len(own)], own)
    body = ids[len(own) :] if has_own else ids
    if has_own and not isinstance(source, Beginning):
        return own, body
    bos = beginning(source)
    return torch.tensor([] if bos is None else [bos], dtype=torch.long), body


def _encode(source: HasVocabulary | Vocabulary, content: str) -> Int[Tensor, " t"]:
    tokenizer = getattr(source, "tokenizer", None)  # a Vocabulary has none
    if tokenizer is None:
        raise WorkbenchError(
            f"this model has no tokenizer{why_no_tokenizer(source)}; name one with tokenizer= of open_model "
            "(--tokenizer), or pass token ids to probes.token_sequences(tokens)"
        )
    return torch.tensor(encode(tokenizer, content), dtype=torch.long)


# Of the tokenizers used last: Python's documentation, by all that says how a tokenizer splits it.
_of_documentation: LRUCache[Hashable, Int[Tensor, " t"]] = LRUCache(maxsize=4)
_lock = threading.Lock()
_MOST_WORDS = 1 << 16  # writing a larger tokenizer out takes half as long as the text does


def _documentation(source: HasVocabulary | Vocabulary) -> Int[Tensor, " t"]:
    """Python's documentation as the model's tokenizer reads it; nobody may write into it."""
    key = _ways(getattr(source, "tokenizer", None))
    if key is None:
        return _encode(source, read_text(None))
    with _lock:
        if key not in _of_documentation:
            _of_documentation[key] = _encode(source, read_text(None))
        return _of_documentation[key]


def _ways(tokenizer: Any) -> Hashable:
    """What says how a tokenizer splits a text; None for a large one, or one that is not of the tokenizers library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not type(tokenizer).__module__.startswith("transformers.") or len(tokenizer) > _MOST_WORDS:
        return None
    settings = hashlib.blake2b(backend.to_str().encode(), digest_size=16).digest()
    return type(tokenizer), settings, tokenizer.split_special_tokens


def _identify(body: Int[np.ndarray, " t"], n: int) -> Int[np.ndarray, " starts"]:
    """A number for the n-gram that starts at each position; equal n-grams have equal numbers."""
    size = int(body.max()) + 1
    numbers = body
    for k in range(1, n):
        _, numbers = np.unique(numbers[:-1] * size + body[k:], return_inverse=True)
    return numbers


def _repeated(ngrams: Int[np.ndarray, " starts"], is_rare: np.ndarray) -> list[list[int]]:
    """The starts of each rare n-gram that occurs more than once, ascending."""
    order = np.argsort(ngrams, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(ngrams[order])) + 1)
    return [group.tolist() for group in groups if len(group) > 1 and is_rare[ngrams[group[0]]]]
