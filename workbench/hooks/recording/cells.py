"""Cells of the attention matrix that a measurement sums: lists computed from the tokens, never a T × T mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.heads import WorkbenchError, brief


@dataclass(frozen=True, slots=True)
class Sequences:
    """The tokens of one recording, and which document each of them belongs to.

    A sequence is one document unless several were packed into it. `valid` is False on padding. `document` numbers the
    documents through the batch, -1 on padding; `first` is the position of the document's first token in its sequence
    (on padding, of the sequence's first valid token).
    `targets`: (sequence, row, key) of the cells that hold the answers, sorted; `answers`: (sequence, row) of the rows
    that predict them. Both are None where there are no answers.
    `needles`, `is_paired`, `documents`: as in `Probe`.
    """

    tokens: Int[Tensor, "b t"]
    valid: Bool[Tensor, "b t"]
    document: Int[Tensor, "b t"]
    first: Int[Tensor, "b t"]
    n_documents: int
    answers: Int[Tensor, "n_rows 2"] | None = None
    targets: Int[Tensor, "n_cells 3"] | None = None
    needles: Int[Tensor, "n_rows 2"] | None = None
    is_paired: bool = False
    documents: Int[Tensor, "n_spans 3"] | None = None

    def __repr__(self) -> str:
        return brief(self)

    @property
    def is_packed(self) -> bool:
        """True if some sequence holds more than one document."""
        return self.n_documents > len(self.tokens)

    @property
    def is_left_padded(self) -> bool:
        """True if some sequence begins with padding."""
        return not bool(self.valid[:, 0].all())

    def positions(self) -> Int[Tensor, "b t"]:
        """Each token's position in its document; a run of padding counts as a document of its own."""
        position = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.document)
        is_start = torch.ones_like(self.valid)
        is_start[:, 1:] = self.document.diff(dim=-1) != 0
        return position - torch.where(is_start, position, 0).cummax(-1).values

    def lengths(self) -> Int[Tensor, "b t"]:
        """The number of tokens of each token's document; on padding that of its sequence's first one."""
        first = self.document.gather(1, self.valid.int().argmax(-1, keepdim=True))
        document = torch.where(self.valid, self.document, first)
        return torch.bincount(self.document[self.valid], minlength=self.n_documents)[document]


CellRule = Callable[[Sequences], Int[Tensor, "n_cells 3"]]


@dataclass(frozen=True, slots=True)
class CellSum:
    """A need of one's own: per row, the attention on the (sequence, row, key) cells that `cells` lists.

    Rows are those with at least one cell. Cells on padding or across packed documents do not count. `cells` may list
    them in any order and more than once: each cell counts once. Cells outside the sequences are refused; attention on a
    cell in the future of its row is 0.
    `seen_only`: a head's rows are those that see one of their cells at least, under its mask and the interventions in
    force: in a layer with a window, those whose window reaches back to a cell. Otherwise rows that see none count as 0.
    """

    name: str
    cells: CellRule
    seen_only: bool = False


def sequences(tokens: Int[Tensor, "b t"], attention_mask: Tensor | None = None) -> Sequences:
    """Sequences from tokens and a mask of padding or documents.

    `attention_mask`: 0 on padding, and 1 elsewhere or, where several documents are packed into a sequence, the
    document's number: every run of one number is a document.

    Raises:
        WorkbenchError: if the mask has another shape, a sequence has no valid token, or there is padding between valid
            tokens; it may be left or right of them.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(tokens)
    if attention_mask.shape != tokens.shape:
        raise WorkbenchError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected the tokens' {tuple(tokens.shape)}"
        )
    number = attention_mask.to(tokens.device).long()
    valid = number != 0
    runs = (valid[:, 1:] & ~valid[:, :-1]).sum(-1) + valid[:, 0]
    if bool((runs != 1).any()):
        bad = int((runs != 1).nonzero()[0, 0])
        raise WorkbenchError(
            f"sequence {bad} has {int(runs[bad])} runs of valid tokens; expected one, with padding left or right of it"
        )
    is_start = valid.clone()
    is_start[:, 1:] &= number.diff(dim=-1) != 0
    position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    number_in_batch = rearrange(rearrange(is_start, "b t -> (b t)").cumsum(0) - 1, "(b t) -> b t", b=len(tokens))
    start = torch.where(is_start, position, -1).cummax(-1).values
    first_valid = valid.int().argmax(-1, keepdim=True)
    return Sequences(
        tokens=tokens,
        valid=valid,
        document=torch.where(valid, number_in_batch, -1),
        first=torch.where(valid, start, first_valid),
        n_documents=int(is_start.sum()),
    )


def counted_cells(cells: Tensor, tokens: Int[Tensor, "b t"], *, source: str) -> Int[Tensor, "n_distinct 3"]:
    """The distinct cells, sorted by (sequence, row, key).

    Raises:
        WorkbenchError: naming `source`, for a list of another shape or type, or a cell outside the sequences.
    """
    _check_list(cells, ("sequence", "row", "key"), source)
    _check_inside(cells, (*tokens.shape, tokens.shape[1]), source)
    return _distinct(cells.to(tokens.device).long(), tokens.shape[1])


def counted_rows(rows: Tensor, batch: Sequences, *, source: str) -> Int[Tensor, "n_distinct 2"]:
    """The distinct rows that are no padding, sorted by (sequence, row).

    Raises:
        WorkbenchError: naming `source`, for a list of another shape or type, or a row outside the sequences.
    """
    _check_list(rows, ("sequence", "row"), source)
    _check_inside(rows, tuple(batch.tokens.shape), source)
    rows = _distinct(rows.to(batch.tokens.device).long(), batch.tokens.shape[1])
    return rows[batch.valid[rows[:, 0], rows[:, 1]]]


def _check_list(entries: Tensor, names: tuple[str, ...], source: str) -> None:
    is_whole = not (entries.is_floating_point() or entries.is_complex() or entries.dtype == torch.bool)
    if entries.ndim != 2 or entries.shape[1] != len(names) or not is_whole:
        raise WorkbenchError(
            f"{source} gives {entries.dtype} of shape {tuple(entries.shape)}; expected whole numbers of shape "
            f"(n, {len(names)}), the columns {', '.join(names)}: stack them along the last axis"
        )


def _check_inside(entries: Int[Tensor, "n w"], sizes: tuple[int, ...], source: str) -> None:
    is_outside = ((entries < 0) | (entries >= entries.new_tensor(sizes))).any(-1)
    if bool(is_outside.any()):
        raise WorkbenchError(
            f"{source} lists {tuple(entries[is_outside][0].tolist())}, outside of the {sizes[0]} sequences of "
            f"{sizes[1]} tokens; expected sequences 0 to {sizes[0] - 1} and tokens 0 to {sizes[1] - 1}: leave the "
            "others out"
        )


def _distinct(entries: Int[Tensor, "n w"], n_tokens: int) -> Int[Tensor, "m w"]:
    code = entries[:, 0]
    for column in entries.unbind(-1)[1:]:
        code = code * n_tokens + column
    if bool((code.diff() > 0).all()):  # most lists are sorted already
        return entries
    code, order = torch.sort(code)
    is_new = torch.ones_like(code, dtype=torch.bool)
    is_new[1:] = code.diff() != 0
    return entries[order[is_new]]


def previous_token(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """(i, i − 1) for every row but the first."""
    is_followed = batch.valid[:, :-1] & (batch.document[:, 1:] == batch.document[:, :-1])
    b, i = is_followed.nonzero(as_tuple=True)
    return torch.stack([b, i + 1, i], -1)


def current_token(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """(i, i)."""
    b, i = batch.valid.nonzero(as_tuple=True)
    return torch.stack([b, i, i], -1)


def sink_token(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """(i, first token of the document)."""
    b, i = batch.valid.nonzero(as_tuple=True)
    return torch.stack([b, i, batch.first[b, i]], -1)


def duplicate_token(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """(i, j) with j < i and x_j = x_i."""
    pairs = _equal_pairs(batch)
    return pairs[pairs[:, 2] < pairs[:, 1]]


def induction(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """(i, j) with j ≤ i and x_{j−1} = x_i, j − 1 < i: the tokens that followed this one before."""
    cells = duplicate_token(batch)
    after = cells[:, 2] + 1
    return torch.stack([cells[:, 0], cells[:, 1], after], -1)


def answer_token(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """The probe's own target cells."""
    if batch.targets is None:
        return torch.zeros(0, 3, dtype=torch.long, device=batch.tokens.device)
    return batch.targets


# Built-in cell sums that only rows count in which see a cell.
SEEN_ONLY = frozenset({"sink_mass"})
CELL_RULES: dict[str, CellRule] = {
    "previous_token": previous_token,
    "current_token": current_token,
    "sink_mass": sink_token,
    "duplicate_token": duplicate_token,
    "induction": induction,
    "answer_mass": answer_token,
}


def _equal_pairs(batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    """Every (sequence, i, j), j ≤ i, with equal tokens in one document; found by sorting, not by comparing pairs."""
    n_tokens = batch.tokens.shape[1]
    b, i = batch.valid.nonzero(as_tuple=True)
    vocabulary = int(batch.tokens.max()) + 1
    key = batch.document[b, i] * vocabulary + batch.tokens[b, i]
    order = torch.argsort(key, stable=True)
    _, counts = torch.unique_consecutive(key[order], return_counts=True)
    # In a group of equal tokens in order of position, number m has m + 1 partners: itself and the earlier ones.
    start = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - start.repeat_interleave(counts)
    row = torch.arange(len(order), device=order.device).repeat_interleave(rank + 1)
    ends = (rank + 1).cumsum(0)
    offset = torch.arange(len(row), device=order.device) - (ends - rank - 1).repeat_interleave(rank + 1)
    partner = row - rank[row] + offset
    cells = torch.stack([b[order[row]], i[order[row]], i[order[partner]]], -1)
    return cells[((cells[:, 0] * n_tokens + cells[:, 1]) * n_tokens + cells[:, 2]).argsort()]


def rows_of(cells: Int[Tensor, "n_cells 3"]) -> Int[Tensor, "n_rows 2"]:
    """The distinct (sequence, row) pairs of a sorted list of cells."""
    return cells[row_starts(cells), :2]


def row_starts(cells: Int[Tensor, "n_cells w"]) -> Bool[Tensor, " n_cells"]:
    """Whether each cell of a sorted list is the first of its (sequence, row)."""
    # torch.unique_consecutive says the same, and takes a hundred times as long where it compares pairs.
    starts = torch.ones(len(cells), dtype=torch.bool, device=cells.device)
    starts[1:] = (cells[1:, :2] != cells[:-1, :2]).any(-1)
    return starts


def merge(sets: list[Int[Tensor, "_ 3"]], n_tokens: int) -> tuple[Int[Tensor, "n_cells 3"], Int[Tensor, " n_cells"]]:
    """All sets as one list sorted by (sequence, row), and for each cell the set it belongs to."""
    cells = torch.cat(sets)
    lengths = torch.tensor([len(s) for s in sets], device=cells.device)
    member = torch.arange(len(sets), device=cells.device).repeat_interleave(lengths)
    order = (cells[:, 0] * n_tokens + cells[:, 1]).argsort(stable=True)
    return cells[order], member[order]


def on_rows(cells: Int[Tensor, "n_cells w"], rows: Int[Tensor, " r"]) -> Int[Tensor, "m w"]:
    """The cells that lie on some rows; `cells` carries (sequence, row, …)."""
    return cells[torch.isin(cells[:, 1], rows)]


def within_documents(cells: Int[Tensor, "n_cells 3"], batch: Sequences) -> Int[Tensor, "m 3"]:
    """The cells whose row and key are tokens of one document, not padding."""
    b, i, j = rearrange(cells, "n three -> three n")
    return cells[batch.valid[b, i] & (batch.document[b, i] == batch.document[b, j])]
