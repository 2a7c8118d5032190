"""Natural text as a probe: every row predicts its next token, or only the rows where a rare n-gram stands again.

Tokens that can be predicted by looking up an earlier n-gram are found by token identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.probes.filler_text import read_text
from workbench.probes.known_answers import Probe, make_probe, octave
from workbench.probes.registry import probe
from workbench.probes.token_ids import HasVocabulary, check_sizes, why_no_tokenizer


def text(source: HasVocabulary, content: str, *, name: str = "text") -> Probe:
    """One sequence: the text as the model's own tokenizer reads it, special tokens as the tokenizer adds them.

    Raises:
        WorkbenchError: if the model has no tokenizer, or the text has fewer than two tokens.
    """
    ids = _encode(source, content)
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

    The file is tokenized once; each window starts with the beginning-of-sequence token if the tokenizer adds one.

    Raises:
        WorkbenchError: if the file cannot be read as UTF-8, is too short, the model has no tokenizer, or the length
            exceeds its context.
    """
    check_sizes(source, length=length, n_sequences=n_sequences)
    windows = _cut_windows(source, path, length, n_sequences, seed=seed)
    return token_sequences(windows.tokens, name=name)


def token_sequences(
    tokens: Int[Tensor, "b t"], attention_mask: Bool[Tensor, "b t"] | None = None, *, name: str = "tokens"
) -> Probe:
    """Token sequences as a probe: each valid row with a valid next token predicts it. Classes: the row's position."""
    valid = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
    sequence, row = (valid[:, :-1] & valid[:, 1:]).nonzero(as_tuple=True)
    return make_probe(
        name,
        tokens,
        attention_mask=attention_mask,
        answer_rows=torch.stack([sequence, row], -1),
        classes=row - valid.int().argmax(-1)[sequence],
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
    ids = _encode(source, read_text(path))
    lead = _encode(source, "")
    body = ids[len(lead) :] if len(lead) and torch.equal(ids[: len(lead)], lead) else ids
    lead = lead if len(body) < len(ids) else lead[:0]
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


def _encode(source: HasVocabulary, content: str) -> Int[Tensor, " t"]:
    tokenizer = getattr(source, "tokenizer", None)  # a Vocabulary has none
    if tokenizer is None:
        raise WorkbenchError(
            f"this model has no tokenizer{why_no_tokenizer(source)}; name one with tokenizer= of open_model "
            "(--tokenizer), or pass token ids to probes.token_sequences(tokens)"
        )
    ids = tokenizer(content, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


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
