"""What indexers select in each row, while their layer runs: how much attention it covers, and how far it reaches.

A row counts if it has more tokens before it than its layer selects: of fewer, everything is selected. The keys of a row
are looked up as a tile of a block of rows, so that nothing here is T × T.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import LayerInfo
from workbench.hooks.interventions.windows import Interventions, intervened_statistics
from workbench.hooks.recording.cells import Sequences
from workbench.hooks.taps.attention_call import AttentionCall, LazyMask
from workbench.kernels import Far, Request
from workbench.kernels.masks import visible_tile

COVERAGE, DISTANCE, FAR, OVERLAP = "selection_coverage", "selection_distance", "selection_far", "selection_overlap"
ANSWER, PERSISTENCE = "answer_selected", "selection_persistence"
SELECTION_NEEDS = (COVERAGE, DISTANCE, FAR, OVERLAP, ANSWER, PERSISTENCE)
# Cells of a tile of keys that is looked up at a time, and its rows at most.
_CELLS, _ROWS = 1 << 17, 128

# Values of rows of each group of heads that selects keys for itself, by need, and the rows that have one.
_OfGroups = dict[str, tuple[Float[Tensor, "b g r"], Bool[Tensor, "b r"]]]
# Values of rows by need, and the rows that have one.
RowValues = dict[str, tuple[Float[Tensor, "b h r"], Bool[Tensor, "b r"]]]


@dataclass(frozen=True, slots=True)
class PickedRows:
    """The rows of a run of queries to read.

    `queries`: the run; `picked`: rows of it; `is_sampled`: not for answers. `request`: whose buffers are used again.
    """

    queries: slice
    picked: Int[Tensor, " r"]
    is_sampled: Bool[Tensor, " r"]
    request: Request = field(default_factory=Request)

    @property
    def of_run(self) -> Int[Tensor, " r"]:
        """The rows numbered from the first of the run."""
        return self.picked - self.queries.start


class Selections:
    """The selections of one recording, layer by layer and run by run of queries."""

    def __init__(self, batch: Sequences, names: Collection[str], layers: tuple[LayerInfo, ...], far: Far):
        self._batch, self._layers, self._far = batch, layers, far
        self._names = [name for name in SELECTION_NEEDS if name in names]
        self._before: LazyMask | None = None
        # By layer, what the last row of the run before this one sees, for each group of heads.
        self._last: dict[int, list[Bool[Tensor, "b 1 k"]]] = {}

    def start(self) -> None:
        """Start a run of queries, which then passes through all layers."""
        self._before = None

    def read(
        self,
        layer_slot: int,
        call: AttentionCall,
        interventions: Interventions,
        rows: PickedRows,
        lse: Float[Tensor, "b h r"],
    ) -> RowValues:
        """The values of a layer that selects keys, none for another.

        `lse`: of the picked rows, under the interventions in force.
        """
        n_selected = self._layers[layer_slot].n_selected
        if not self._names or n_selected is None or call.mask.selected is None:
            return {}
        before, self._before = self._before, call.mask if OVERLAP in self._names else None
        last = self._pass(layer_slot, call.mask)
        batch, n_heads = self._batch, call.q.shape[1]
        position = rows.picked - batch.first[:, rows.picked]
        has_more = batch.valid[:, rows.picked] & (position >= n_selected)
        counted = has_more & rows.is_sampled
        values: RowValues = {}
        if COVERAGE in self._names and bool(counted.any()):
            values[COVERAGE] = _coverage(call, interventions, rows.request.of_rows(rows.of_run), lse), counted
        shares = self._shares(call, before, rows, counted) if bool(counted.any()) else {}
        if PERSISTENCE in self._names and bool(counted.any()):
            both_leave_out = counted & (position > n_selected)
            shares[PERSISTENCE] = self._persistence(call.mask, last, rows, both_leave_out)
        if ANSWER in self._names and batch.targets is not None:
            is_selected, has_answer = self._answers(call.mask, rows)
            shares[ANSWER] = is_selected, has_answer & has_more
        for name, (of_groups, keep) in shares.items():
            heads = n_heads // of_groups.shape[1]
            values[name] = repeat(of_groups, "b g r -> b (g h) r", h=heads), keep
        return values

    def pass_by(self, layer_slot: int, call: AttentionCall) -> None:
        """Note the last row of a run of which no row is read, for the first row of the next one."""
        if self._layers[layer_slot].n_selected is not None and call.mask.selected is not None:
            self._pass(layer_slot, call.mask)

    def _pass(self, layer_slot: int, mask: LazyMask) -> list[Bool[Tensor, "b 1 k"]] | None:
        """What the row before this run sees, None for the first run; and keep what the last row of this run sees."""
        if PERSISTENCE not in self._names:
            return None
        before, row = self._last.get(layer_slot), torch.tensor([mask.n_queries - 1], device=self._batch.tokens.device)
        n_sequences = len(self._batch.tokens)
        self._last[layer_slot] = [_tile(mask, group, row, n_sequences) for group in range(mask.n_groups)]
        return before

    def _persistence(
        self,
        mask: LazyMask,
        last: list[Bool[Tensor, "b 1 k"]] | None,
        rows: PickedRows,
        counted: Bool[Tensor, "b r"],
    ) -> tuple[Float[Tensor, "b g r"], Bool[Tensor, "b r"]]:
        """The share of each row's selected keys but itself that the row before selected, and the rows with such keys.

        `last`: what the row before the run sees.
        """
        n_sequences, ahead = len(counted), mask.query_offset - mask.key_offset
        shares = torch.zeros(n_sequences, mask.n_groups, len(rows.picked), device=counted.device)
        has_keys = torch.ones_like(counted)
        for span, block in _blocks(rows.of_run, mask.n_keys):
            for group in range(mask.n_groups):
                tile = _tile(mask, group, block, n_sequences)
                tile[:, torch.arange(len(block)), block + ahead] = False  # the row before could not select it
                before = _tile(mask, group, (block - 1).clamp_min(0), n_sequences)
                if int(block[0]) == 0 and last is not None:
                    of_last = last[min(group, len(last) - 1)][:, 0]
                    before[:, 0] = False
                    before[:, 0, : of_last.shape[-1]] = of_last
                n_keys = tile.sum(-1)
                shares[:, group, span] = (tile & before).sum(-1) / n_keys.clamp_min(1).float()
                has_keys[:, span] &= n_keys > 0
        return shares, counted & has_keys

    def _shares(
        self, call: AttentionCall, before: LazyMask | None, rows: PickedRows, counted: Bool[Tensor, "b r"]
    ) -> _OfGroups:
        """What depends on the selected keys alone."""
        mask, n_sequences = call.mask, len(counted)
        names = [n for n in self._names if n in (DISTANCE, FAR) or (n == OVERLAP and before is not None)]
        by_name = {n: torch.zeros(n_sequences, mask.n_groups, len(rows.picked), device=counted.device) for n in names}
        ahead = mask.query_offset - mask.key_offset
        key = torch.arange(mask.n_keys, dtype=torch.int32, device=counted.device)
        sinks = self._batch.first[:, : mask.n_keys] + self._far.sink
        for span, block in _blocks(rows.of_run, mask.n_keys) if names else ():
            distance = (block.int() + ahead)[:, None] - key
            for group in range(mask.n_groups):
                tile = _tile(mask, group, block, n_sequences)
                n_keys = tile.sum(-1).clamp_min(1).float()
                if DISTANCE in by_name:
                    by_name[DISTANCE][:, group, span] = ((tile * distance).sum(-1).double() / n_keys).float()
                if FAR in by_name:
                    is_far = tile & (distance >= self._far.window) & (key >= sinks)[:, None]
                    by_name[FAR][:, group, span] = is_far.sum(-1) / n_keys
                if OVERLAP in by_name and before is not None:
                    also = tile & _tile(before, min(group, before.n_groups - 1), block, n_sequences)
                    by_name[OVERLAP][:, group, span] = also.sum(-1) / n_keys
        is_long = rows.picked - self._batch.first[:, rows.picked] >= self._far.window
        return {name: (values, counted & is_long if name == FAR else counted) for name, values in by_name.items()}

    def _answers(self, mask: LazyMask, rows: PickedRows) -> tuple[Float[Tensor, "b g r"], Bool[Tensor, "b r"]]:
        """The share of each row's target cells that are selected, and which rows have any."""
        targets, n_sequences = self._batch.targets, len(self._batch.tokens)
        assert targets is not None
        inside = (targets[:, 1] >= rows.queries.start) & (targets[:, 1] < rows.queries.stop)
        sequence, row, key = targets[inside].unbind(-1)
        at = torch.searchsorted(rows.picked, row.contiguous())  # answer rows are always picked
        n_selected = torch.zeros(n_sequences, mask.n_groups, len(rows.picked), device=targets.device)
        n_cells = torch.zeros_like(n_selected[:, 0])
        n_cells.index_put_((sequence, at), torch.ones_like(row, dtype=n_cells.dtype), accumulate=True)
        n_rows = _rows_at_a_time(mask.n_keys)
        for start in range(0, len(row), n_rows):
            piece = slice(start, start + n_rows)
            block, of_block = torch.unique(row[piece] - rows.queries.start, return_inverse=True)
            for group in range(mask.n_groups):
                tile = _tile(mask, group, block, n_sequences)[sequence[piece], of_block, key[piece]]
                n_selected[:, group].index_put_((sequence[piece], at[piece]), tile.float(), accumulate=True)
        return n_selected / n_cells.clamp_min(1)[:, None], n_cells > 0


def _coverage(
    call: AttentionCall, interventions: Interventions, request: Request, lse: Float[Tensor, "b h r"]
) -> Float[Tensor, "b h r"]:
    """The share of the attention to all keys, from the same queries and keys, that the selected ones have.

    A learned sink is no key and takes part in neither.
    """
    if call.sinks is not None:
        call = replace(call, sinks=None)
        lse = intervened_statistics(call, interventions, request)[1].lse
    dense = replace(call, mask=call.mask.unselected())
    of_all = intervened_statistics(dense, interventions, request)[1].lse
    return torch.exp(lse - of_all).clamp_max(1)  # rounding alone makes it larger


def _blocks(rows: Int[Tensor, " r"], n_keys: int) -> Iterator[tuple[slice, Int[Tensor, " q"]]]:
    n_rows = _rows_at_a_time(n_keys)
    for start in range(0, len(rows), n_rows):
        yield slice(start, start + n_rows), rows[start : start + n_rows]


def _rows_at_a_time(n_keys: int) -> int:
    return max(1, min(_ROWS, _CELLS // n_keys))


def _tile(mask: LazyMask, group: int, rows: Int[Tensor, " q"], n_sequences: int) -> Bool[Tensor, "b q k"]:
    """Which keys a group of heads sees from some rows: the selected ones that the layer's own mask leaves."""
    return visible_tile(mask.of_group(group).simplest(), slice(0, n_sequences), rows, mask.n_keys)
