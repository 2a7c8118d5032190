"""Rare n-grams that natural text repeats: tokens that can be foreseen by looking them up, found by token identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from workbench.heads import WorkbenchError
from workbench.probes.known_answers import Probe, make_probe, octave
from workbench.probes.natural_text import cut_windows
from workbench.probes.token_ids import HasVocabulary, check_sizes


def repeated_ngrams(
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
    """Natural text where a rare n-gram comes again: is its last token foreseen, compared with the first time?

    Windows as in `text_file`. Rare are n-grams that stand at most `at_most` times in the whole text; repeated ones
    stand at least twice in a window.

    Answers: the last token of every repeated rare n-gram, the first time included. Target cells: of later times, the
    same token of all earlier ones. Classes: the distance to the nearest of them, at least 1, rounded down to a power of
    two; 0 is the first time, to compare with. The pooled number holds both.

    Args:
        path: a text file; default: the documentation that Python carries.

    Raises:
        WorkbenchError: as `text_file`; or if n < 2, or nothing repeats.
    """
    check_sizes(source, length=length, n_sequences=n_sequences, at_most=at_most)
    if n < 2:
        raise WorkbenchError(f"n is {n}; expected at least 2: a token, and one to foresee it by")
    cut = cut_windows(source, path, length, n_sequences, seed=seed)
    ngrams = _identify(cut.body.numpy(), n)
    is_rare = np.bincount(ngrams) <= at_most
    answers: list[tuple[int, int, int]] = []
    cells: list[tuple[int, int, int]] = []
    for i, start in enumerate(cut.starts):
        inside = ngrams[start : start + length - cut.n_lead - n + 1]
        for places in _repeated(inside, is_rare):
            ends = [cut.n_lead + place + n - 1 for place in places]
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
        cut.tokens,
        answer_rows=rows[:, :2],
        target_cells=torch.tensor(cells),
        classes=torch.where(distance == 0, 0, octave(distance.clamp(min=1))),
        metric="copy_accuracy",
    )


def _identify(body: Int[np.ndarray, " t"], n: int) -> Int[np.ndarray, " places"]:
    """A number for the n-gram that starts at each place; equal n-grams have equal numbers."""
    size = int(body.max()) + 1
    found = body
    for k in range(1, n):
        _, found = np.unique(found[:-1] * size + body[k:], return_inverse=True)
    return found


def _repeated(ngrams: Int[np.ndarray, " places"], is_rare: np.ndarray) -> list[list[int]]:
    """The places of each rare n-gram that occurs more than once, ascending."""
    order = np.argsort(ngrams, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(ngrams[order])) + 1)
    return [group.tolist() for group in groups if len(group) > 1 and is_rare[ngrams[group[0]]]]
