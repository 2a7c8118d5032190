"""Whole rows of the pattern, a few of them, read by the one who asked: exact, and gone when their layer is done.

For what no sum over cells says, such as the mass of the k most attended keys. A row costs what a row of the layer
costs, and one head's rows of one sequence are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from workbench.heads import LayerInfo, WorkbenchError
from workbench.hooks.interventions.windows import Interventions, one_head
from workbench.hooks.recording.cells import Sequences
from workbench.hooks.recording.written_logits import Writing
from workbench.hooks.taps.attention_call import AttentionCall, LazyMask
from workbench.hooks.taps.linear import LinearCall

RowRule = Callable[[Sequences], Int[Tensor, "n_rows 2"]]
# (pattern of some rows of one head on one sequence, those rows as (sequence, row), the batch) → numbers of that head.
RowReader = Callable[[Float[Tensor, "r keys"], Int[Tensor, "r 2"], Sequences], Float[Tensor, " n"]]


@dataclass(frozen=True, slots=True)
class RowReading:
    """A need of one's own that reads whole rows, those that `rows` lists, sorted.

    `read` makes numbers of the rows of one head on one sequence, as many as it likes; what it makes of several pieces
    of a sequence adds up. Columns are keys from the start of the sequence; linear layers give A / Σ|A|.
    `of`: the probabilities, or what each key adds by way of the head to the logit of the row's next token, of softmax
    layers alone (see `workbench.hooks.recording.written_logits`).
    """

    name: str
    rows: RowRule
    read: RowReader
    of: Literal["probability", "logit"] = "probability"


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read: numbers of every head on every sequence, NaN behind the last one, and how many rows there were.

    NaN and 0 where a layer has no such head, or a sequence no such row.
    """

    values: Float[Tensor, "b n_layers max_heads n"]
    rows: Int[Tensor, "b n_layers max_heads"]


class Readings:
    """The row readings of one recording, growing layer by layer and run by run of queries."""

    def __init__(
        self,
        batch: Sequences,
        needs: Iterable[object],
        layers: tuple[LayerInfo, ...],
        *,
        writing: Callable[[], Writing],
    ):
        self._batch, self._layers = batch, layers
        self._needs = [need for need in needs if isinstance(need, RowReading)]
        if self._needs and batch.is_packed:
            raise WorkbenchError(f"{self._needs[0].name!r} reads rows of sequences; pass packed documents one by one")
        self._writing = writing() if any(need.of == "logit" for need in self._needs) else None
        self._rows = {need.name: need.rows(batch) for need in self._needs}
        self._queries = slice(0, 0)
        self._values: dict[tuple[str, int, int, int], Tensor] = {}
        shape = (len(batch.tokens), len(layers), max(layer.n_heads for layer in layers))
        self._n_rows = {need.name: torch.zeros(shape, dtype=torch.long) for need in self._needs}

    def ask(self, queries: slice) -> None:
        """The next queries of all layers."""
        self._queries = queries

    def softmax(self, place: int, call: AttentionCall, interventions: Interventions) -> None:
        """Read the rows of a softmax layer, the one at `place` in the list of layers."""
        for need, b, rows in self._mine():
            alone = _one_sequence(call, b)
            keys = torch.arange(call.k.shape[2], device=rows.device)
            for head in range(self._layers[place].n_heads):
                part, mask = one_head(alone, interventions, head)
                pattern = part.crop(mask, rows[:, 1] - self._queries.start, keys)
                if need.of == "logit":
                    assert self._writing is not None
                    said = self._batch.tokens[b, rows[:, 1] + 1]
                    pattern = pattern * self._writing.logits(place, head, part.v[0, 0], said)
                self._add(need, (b, place, head), pattern, rows)

    def linear(self, place: int, call: LinearCall) -> None:
        """Read the implied rows of a linear layer; a row with Σ|A| = 0 counts nowhere."""
        for need, b, rows in self._mine():
            if need.of == "logit":
                continue
            keys = torch.arange(self._batch.tokens.shape[1], device=rows.device)
            for head in range(self._layers[place].n_heads):
                weights = call.crop(head, rows[:, 1], keys, sequence=b)
                size = weights.abs().sum(-1, keepdim=True)
                is_seen = size[:, 0] > 0
                self._add(need, (b, place, head), (weights / size)[is_seen], rows[is_seen])

    def finish(self) -> Mapping[str, Reading]:
        """Everything that was read, by name."""
        return {need.name: Reading(self._padded(need.name), self._n_rows[need.name]) for need in self._needs}

    def _mine(self) -> Iterable[tuple[RowReading, int, Int[Tensor, "r 2"]]]:
        for need in self._needs:
            rows = self._rows[need.name]
            rows = rows[(rows[:, 1] >= self._queries.start) & (rows[:, 1] < self._queries.stop)]
            for b in torch.unique(rows[:, 0]).tolist():
                yield need, b, rows[rows[:, 0] == b]

    def _add(self, need: RowReading, at: tuple[int, int, int], pattern: Tensor, rows: Int[Tensor, "r 2"]) -> None:
        if len(rows) == 0:
            return
        values = need.read(pattern, rows, self._batch).double().cpu()
        before = self._values.get((need.name, *at))
        self._values[need.name, *at] = values if before is None else before + values
        self._n_rows[need.name][at] += len(rows)

    def _padded(self, name: str) -> Float[Tensor, "b n_layers max_heads n"]:
        mine = {key[1:]: values for key, values in self._values.items() if key[0] == name}
        longest = max((len(values) for values in mine.values()), default=0)
        padded = torch.full((*self._n_rows[name].shape, longest), torch.nan)
        for at, values in mine.items():
            padded[at][: len(values)] = values.float()
        return padded


def _one_sequence(call: AttentionCall, b: int) -> AttentionCall:
    """The call of sequence b alone."""
    mine = slice(b, b + 1)
    return replace(call, q=call.q[mine], k=call.k[mine], v=call.v[mine], mask=_mask_of(call.mask, b), positions=None)


def _mask_of(mask: LazyMask, b: int) -> LazyMask:
    function = mask.function
    if function is not causal_mask_function:  # another one may ask which sequence of the batch this is

        def of_this(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return function(batch + b, head, q, k)

        mask = replace(mask, function=of_this)
    return replace(
        mask,
        valid=None if mask.valid is None else mask.valid[b : b + 1],
        earlier=None if mask.earlier is None else mask.earlier[b : b + 1],
    )
