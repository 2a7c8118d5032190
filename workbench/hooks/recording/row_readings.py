"""Row readings: whole rows of the pattern, exact, handed to a function while their layer runs, and not kept.

They serve measurements that are no sum over cells, such as the mass of the k most attended keys. Rows may also be read
as logits: each weight times what its value adds to the logit of the next token, through W_O and the unembedding. A row
costs as much as a row of the layer, and one head's rows of one sequence are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from workbench.heads import LayerInfo, WorkbenchError, brief
from workbench.hooks.interventions.windows import Interventions, one_head
from workbench.hooks.recording.cells import Sequences, counted_rows
from workbench.hooks.recording.contributions import Projection, shares
from workbench.hooks.recording.unreadable_needs import reading
from workbench.hooks.taps.attention_call import AttentionCall, LazyMask
from workbench.hooks.taps.linear import LinearCall

RowRule = Callable[[Sequences], Int[Tensor, "n_rows 2"]]
# (pattern of some rows of one head on one sequence, those rows as (sequence, row), the batch) → numbers of that head.
RowReader = Callable[[Float[Tensor, "r keys"], Int[Tensor, "r 2"], Sequences], Float[Tensor, " n"]]
_ROWS = 128
# What a bridge raises where it has no weight per head.
_NO_HEAD_WEIGHTS = (AttributeError, NotImplementedError, ValueError, IndexError)


@dataclass(frozen=True, slots=True)
class RowReading:
    """A need of one's own that reads whole rows, those that `rows` lists: each once, sorted, without padding.

    `rows` may list them in any order and more than once; rows outside the sequences are refused.

    `read` turns the rows of one head on one sequence into any number of numbers; those of several pieces of a sequence
    are added. Columns are keys from the start of the sequence; linear layers give A / Σ|A|.
    `of`: the probabilities, or what each key adds through the head to the logit of the row's next token, for softmax
    layers only (see `Writing`) and rows that have a next token; or the share of what the row's keys add through W_O,
    in norm, for softmax layers only (see `Projection`): pieces of 128 rows.
    """

    name: str
    rows: RowRule
    read: RowReader
    of: Literal["probability", "logit", "contribution"] = "probability"


@dataclass(frozen=True, slots=True)
class Reading:
    """Numbers of every head on every sequence, filled up with NaN, and how many rows they are read from.

    NaN and 0 where a layer has no such head, or a sequence no such row.
    """

    values: Float[Tensor, "b n_layers max_heads n"]
    rows: Int[Tensor, "b n_layers max_heads"]

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True)
class Writing:
    """W_O of every head by layer slot (index into `HookedModel.layers`), None for linear layers, and the unembedding.

    Norms are left out: those before the unembedding and behind the attention only scale what arrives, and no gain is
    folded in.
    """

    o: tuple[Float[Tensor, "n_heads d_value d_model"] | None, ...]
    unembed: Float[Tensor, "d_model vocab"]

    def logits(
        self, layer_slot: int, head: int, v: Float[Tensor, "keys d_value"], tokens: Int[Tensor, " r"]
    ) -> Float[Tensor, "r keys"]:
        """What a head that attends to one key alone adds to the logit of each token, u · W_O v, float32."""
        o = self.o[layer_slot]
        assert o is not None
        directions = einsum(o[head], self.unembed[:, tokens], "d m, m r -> r d")
        return einsum(directions, v.float(), "r d, keys d -> r keys")


def read_writing(bridge: Any, layers: tuple[LayerInfo, ...]) -> Writing:
    """The output weights of a model through its TransformerBridge.

    Raises:
        WorkbenchError: if TransformerLens gives no W_O per head for one of its softmax layers.
    """
    output_weights: list[Tensor | None] = []
    with torch.no_grad():
        for info in layers:
            try:
                o = bridge.blocks[info.index].attn.W_O.detach().float() if info.mixer == "softmax" else None
            except _NO_HEAD_WEIGHTS as error:
                raise WorkbenchError(
                    f"TransformerLens gives no W_O per head for layer {info.index}: {str(error)[:200]}. Scores of "
                    "attention alone do not need it"
                ) from error
            output_weights.append(o)
        return Writing(tuple(output_weights), bridge.W_U.detach().float())


class Readings:
    """The row readings of one recording, growing layer by layer and run by run of queries."""

    def __init__(
        self,
        batch: Sequences,
        needs: Iterable[object],
        layers: tuple[LayerInfo, ...],
        *,
        writing: Callable[[], Writing],
        projections: Callable[[], Mapping[int, Projection]],
    ):
        self._batch, self._layers = batch, layers
        self._needs = [need for need in needs if isinstance(need, RowReading)]
        self._writing: Writing | None = None
        self._projections: Mapping[int, Projection] = {}
        self._rows: dict[str, Int[Tensor, "n_rows 2"]] = {}
        for need in self._needs:
            with reading(need.name):
                self._rows[need.name] = _rows_of(need, batch)
        if names := self._names("logit"):
            with reading(*names):
                self._writing = writing()
        if names := self._names("contribution"):
            with reading(*names):
                self._projections = projections()
        self._queries = slice(0, 0)
        self._values: dict[tuple[str, int, int, int], Tensor] = {}
        shape = (len(batch.tokens), len(layers), max(layer.n_heads for layer in layers))
        self._n_rows = {need.name: torch.zeros(shape, dtype=torch.long) for need in self._needs}

    def _names(self, of: str) -> list[str]:
        """The needs that read rows as `of`."""
        return [need.name for need in self._needs if need.of == of]

    def start(self, queries: slice) -> None:
        """Start a run of queries, which then passes through all layers."""
        self._queries = queries

    def read_softmax(self, layer_slot: int, call: AttentionCall, interventions: Interventions) -> None:
        """Read the rows of a softmax layer; `layer_slot` is its index into the layers."""
        for need, b, all_rows in self._rows_of_run():
            sequence_call = _one_sequence(call, b)
            pieces = all_rows.split(_ROWS) if need.of == "contribution" else [all_rows]
            keys = torch.arange(call.k.shape[2], device=all_rows.device)
            for head in range(self._layers[layer_slot].n_heads):
                head_call, mask = one_head(sequence_call, interventions, head)
                for rows in pieces:
                    pattern = head_call.crop(mask, rows[:, 1] - self._queries.start, keys)
                    if need.of == "logit":
                        assert self._writing is not None
                        next_tokens = self._batch.tokens[b, rows[:, 1] + 1]
                        pattern = pattern * self._writing.logits(layer_slot, head, head_call.v[0, 0], next_tokens)
                    elif need.of == "contribution":
                        projection = self._projections[call.layer]
                        pattern = shares(pattern, projection.norms(head, head_call.v[0, 0], rows))
                    self._add(need, (b, layer_slot, head), pattern, rows)

    def read_linear(self, layer_slot: int, call: LinearCall) -> None:
        """Read the implied rows of a linear layer; a row with Σ|A| = 0 counts nowhere."""
        for need, b, rows in self._rows_of_run():
            if need.of != "probability":
                continue
            keys = torch.arange(self._batch.tokens.shape[1], device=rows.device)
            for head in range(self._layers[layer_slot].n_heads):
                weights = call.crop(head, rows[:, 1], keys, sequence=b)
                size = weights.abs().sum(-1, keepdim=True)
                is_seen = size[:, 0] > 0
                self._add(need, (b, layer_slot, head), (weights / size)[is_seen], rows[is_seen])

    def finish(self) -> Mapping[str, Reading]:
        """All readings by the names of their needs."""
        return {need.name: Reading(self._padded(need.name), self._n_rows[need.name]) for need in self._needs}

    def _rows_of_run(self) -> Iterable[tuple[RowReading, int, Int[Tensor, "r 2"]]]:
        """Every need with its rows among the queries of this run, sequence by sequence."""
        for need in self._needs:
            rows = self._rows[need.name]
            rows = rows[(rows[:, 1] >= self._queries.start) & (rows[:, 1] < self._queries.stop)]
            for b in torch.unique(rows[:, 0]).tolist():
                yield need, b, rows[rows[:, 0] == b]

    def _add(self, need: RowReading, key: tuple[int, int, int], pattern: Tensor, rows: Int[Tensor, "r 2"]) -> None:
        """Add what a need reads off some rows; `key`: (sequence, layer slot, head)."""
        if len(rows) == 0:
            return
        with reading(need.name):
            values = need.read(pattern, rows, self._batch).double().cpu()
        before = self._values.get((need.name, *key))
        self._values[need.name, *key] = values if before is None else before + values
        self._n_rows[need.name][key] += len(rows)

    def _padded(self, name: str) -> Float[Tensor, "b n_layers max_heads n"]:
        by_head = {key[1:]: values for key, values in self._values.items() if key[0] == name}
        longest = max((len(values) for values in by_head.values()), default=0)
        padded = torch.full((*self._n_rows[name].shape, longest), torch.nan)
        for key, values in by_head.items():
            padded[key][: len(values)] = values.float()
        return padded


def _rows_of(need: RowReading, batch: Sequences) -> Int[Tensor, "n_rows 2"]:
    """The rows that a need reads.

    Raises:
        WorkbenchError: in packed documents, or for rows that it cannot have.
    """
    if batch.is_packed:
        raise WorkbenchError(f"{need.name!r} reads rows of sequences; pass packed documents one by one")
    rows = counted_rows(need.rows(batch), batch, source=f"the RowReading {need.name!r}")
    if need.of == "logit":
        _check_next_tokens(rows, batch, need.name)
    return rows


def _check_next_tokens(rows: Int[Tensor, "r 2"], batch: Sequences, name: str) -> None:
    b, row = rows.unbind(-1)
    n_tokens = batch.tokens.shape[1]
    has_next = (row + 1 < n_tokens) & batch.valid[b, (row + 1).clamp(max=n_tokens - 1)]
    if not bool(has_next.all()):
        last = tuple(rows[~has_next][0].tolist())
        raise WorkbenchError(
            f"the RowReading {name!r} reads logits of the next token, and its row {last} is the last token of its "
            "sequence; expected rows with a token behind them: leave it out"
        )


def _one_sequence(call: AttentionCall, b: int) -> AttentionCall:
    """The call of sequence b alone."""
    at_b = slice(b, b + 1)
    return replace(call, q=call.q[at_b], k=call.k[at_b], v=call.v[at_b], mask=_mask_of(call.mask, b), positions=None)


def _mask_of(mask: LazyMask, b: int) -> LazyMask:
    function = mask.function
    if function is not causal_mask_function:  # another function may depend on the index of the sequence in the batch

        def shifted(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return function(batch + b, head, q, k)

        mask = replace(mask, function=shifted)
    return replace(
        mask,
        valid=None if mask.valid is None else mask.valid[b : b + 1],
        earlier=None if mask.earlier is None else mask.earlier[b : b + 1],
        selected=None if mask.selected is None else mask.selected[b : b + 1],
    )
