"""A sequence as it is written, piece by piece, and several of them as a probe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Int

from workbench.probes.known_answers import Probe, make_probe

Ids = Int[np.ndarray, " _"]  # token ids, each array of a length of its own


class Draft:
    """One sequence: tokens written so far, answers, and where each answer can be read."""

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


def in_order(pieces: Sequence[Ids], order: Int[np.ndarray, " n_places"]) -> tuple[Ids, Int[np.ndarray, " n_places"]]:
    """Pieces one after the other in the order of their numbers: the tokens, and where each place starts."""
    ends = np.cumsum(np.array([len(piece) for piece in pieces])[order])
    return np.concatenate([pieces[i] for i in order.tolist()]), np.concatenate([[0], ends[:-1]])


def assemble(name: str, drafts: Sequence[Draft], *, class_name: str, metric: str = "recall") -> Probe:
    """Drafts as a probe, shorter ones padded on the right."""
    longest = max(draft.n_tokens for draft in drafts)
    tokens = np.zeros((len(drafts), longest), dtype=np.int64)
    for row, draft in zip(tokens, drafts, strict=True):
        row[: draft.n_tokens] = np.concatenate(draft.pieces)
        row[draft.n_tokens :] = row[0]
    lengths = torch.tensor([draft.n_tokens for draft in drafts])
    is_valid = torch.arange(longest) < lengths[:, None]
    answer_rows = [(i, row) for i, draft in enumerate(drafts) for row in draft.rows]
    cells = [(i, *cell) for i, draft in enumerate(drafts) for cell in draft.cells]
    return make_probe(
        name,
        torch.from_numpy(tokens),
        attention_mask=None if bool(is_valid.all()) else is_valid,
        answer_rows=torch.tensor(answer_rows),
        target_cells=torch.tensor(cells),
        classes=torch.tensor([label for draft in drafts for label in draft.labels]),
        class_name=class_name,
        metric=metric,
    )
