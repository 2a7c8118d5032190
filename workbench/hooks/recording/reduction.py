"""The reduction of rows to sums per document while their layer runs; rows are not kept.

The queries of a pass may come in several runs, as in prefilling a cache piece by piece. Each run has its own rows, and
the sums grow run by run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import LayerInfo
from workbench.hooks.recording.cells import (
    CellSum,
    Sequences,
    counted_cells,
    merge,
    on_rows,
    row_starts,
    rows_of,
    sink_token,
    within_documents,
)
from workbench.hooks.recording.needs import (
    PER_KEY_NEEDS,
    PER_ROW_NEEDS,
    SEEING_FIRST,
    SEQUENCE_NEEDS,
    Answers,
    Need,
    PerSequence,
    Recording,
    check_needs,
)
from workbench.hooks.recording.row_readings import Reading
from workbench.hooks.recording.seen_cells import Sees
from workbench.hooks.recording.selected_keys import PERSISTENCE, SELECTION_NEEDS, PickedRows, RowValues
from workbench.hooks.recording.unreadable_needs import reading
from workbench.kernels import Cells, Far, Request, RowStatistics

# From the number of a cell sum, and the rows of it that each head sees (None: all), to their number by document.
Count = Callable[[int, Bool[Tensor, "n h"] | None], Int[Tensor, "d h"]]
_VALUE_NORMS = ("output_norm", "value_norm", "value_norm_seeing_first", "first_value_norm")


@dataclass(frozen=True, slots=True)
class _RowsOfCells:
    """Sorted cells and their rows, the same for every layer. `of_run`: cells, rows numbered from the run's first."""

    of_run: Int[Tensor, "n_cells 3"]
    rows: Int[Tensor, "n_rows 2"]
    row_of_cell: Int[Tensor, " n_cells"]

    @classmethod
    def of(cls, cells: Int[Tensor, "n_cells 3"], queries: slice) -> _RowsOfCells:
        """Group the cells of a run of queries by row."""
        of_run = cells.clone()
        of_run[:, 1] -= queries.start
        starts = row_starts(cells)
        return cls(of_run, cells[starts, :2], starts.cumsum(0) - 1)

    def seen(self, sees: Sees | None) -> Bool[Tensor, "n_rows h"] | None:
        """Whether each head sees one of the cells of each row; None: all heads do."""
        if sees is None:
            return None
        seen = sees(self.of_run)
        n_seen = seen.new_zeros(len(self.rows), seen.shape[1], dtype=torch.long)
        return n_seen.index_add_(0, self.row_of_cell, seen.long()) > 0


@dataclass(frozen=True, slots=True)
class RowRequest:
    """The rows and cells to reduce in one run of queries, numbered from the first query of the pass.

    `queries`: the run. `picked`: the rows to reduce; `is_sampled`: False on rows picked only for answers. `cells`: of
    all cell sums, and `member` the index of each cell's sum. `set_rows`: the rows of each cell sum. `seen_sets`: of
    those that count only rows that see a cell, by index. `first`: the first tokens, for needs of rows that see them.
    `top_rows`: the rows whose most attended key is needed. `request`: the same for the kernels, which number rows from
    the first query of the run. `group`: of each cell, its sum and document as one number. `counts`: by document, the
    rows of each cell sum and, at last, the top rows, of a head that has them all.
    """

    queries: slice
    picked: Int[Tensor, " r"]
    is_sampled: Bool[Tensor, " r"]
    cells: Int[Tensor, "n_cells 3"]
    member: Int[Tensor, " n_cells"]
    set_rows: tuple[Int[Tensor, "_ 2"], ...]
    seen_sets: Mapping[int, _RowsOfCells]
    first: _RowsOfCells | None
    top_rows: Int[Tensor, "n_top 2"]
    request: Request
    group: Int[Tensor, " n_cells"]
    counts: tuple[Int[Tensor, " d"], ...]

    @property
    def rows(self) -> PickedRows:
        """The rows alone."""
        return PickedRows(self.queries, self.picked, self.is_sampled, self.request)


class Reduction:
    """The sums of one recording, growing layer by layer and run by run.

    `rows`: the sampled query rows; None: all. Answer rows are few and always reduced.
    """

    def __init__(
        self,
        batch: Sequences,
        needs: Iterable[Need],
        *,
        layers: tuple[LayerInfo, ...],
        far: Far,
        rows: Int[Tensor, " r"] | None,
    ):
        self._batch, self._layers, self._far = batch, layers, far
        self._needs = check_needs(needs)
        self._cell_sums, self._names = self._needs.cells, self._needs.names
        n_tokens, device = batch.tokens.shape[1], batch.tokens.device
        self._is_thinned = rows is not None and len(rows) < n_tokens
        self._sampled = torch.arange(n_tokens, device=device) if rows is None else rows
        self._picked = self._sampled
        if batch.targets is not None:
            self._picked = torch.unique(torch.cat([self._sampled, batch.targets[:, 1]]))
        all_cells = [_cells_of(cell_sum, batch) for cell_sum in self._cell_sums]
        self._sets = [
            on_rows(cells, self._sampled) if self._is_thinned and not _is_whole(c.name) else cells
            for c, cells in zip(self._cell_sums, all_cells, strict=True)
        ]
        self._top_rows = torch.zeros(0, 2, dtype=torch.long, device=device)
        if "answer_top1" in self._names and batch.targets is not None:
            self._top_rows = rows_of(within_documents(batch.targets, batch))
        sums = self._needs.sums
        shape = (batch.n_documents, len(layers), max(layer.n_heads for layer in layers))
        self._totals = {name: torch.full(shape, torch.nan, dtype=torch.float64) for name in sums}
        self._squares = {
            name: torch.zeros(shape, dtype=torch.float64) for name in sums if self._is_thinned and not _is_whole(name)
        }
        self._rows = {name: torch.zeros(shape, dtype=torch.long) for name in sums}
        self._added: set[tuple[str, int]] = set()
        self._first_cells = sink_token(batch) if self._names & SEEING_FIRST else None
        self._n_rows = self._rows_in_all(all_cells) if self._is_thinned else {}
        # Cells of all rows, for the sums whose rows are known only when their layer's mask is.
        self._of_all_rows: dict[str, Int[Tensor, "_ 3"]] = {}
        if self._is_thinned:
            pairs = zip(self._cell_sums, all_cells, strict=True)
            self._of_all_rows = {c.name: cells for c, cells in pairs if c.seen_only}
            if self._first_cells is not None:
                self._of_all_rows |= dict.fromkeys(self._names & SEEING_FIRST, self._first_cells)
            self._n_rows |= {name: torch.zeros(shape, dtype=torch.long) for name in self._of_all_rows}
        row_shape = (len(batch.tokens), *shape[1:], n_tokens)
        self._per_row = {name: torch.full(row_shape, torch.nan) for name in self._names if name in PER_ROW_NEEDS}
        self._per_key = {name: torch.full(row_shape, torch.nan) for name in self._names if name in PER_KEY_NEEDS}
        self._windows = self._all_windows()
        self._features: list[Float[Tensor, "b t f"]] = []
        self._readouts: list[Float[Tensor, "b t f"]] = []
        for need in self._needs.features:
            with reading(need.name):
                self._features.append(need.features(batch).float())
                self._readouts.append(need.readout(batch).float())

    def request_rows(self, queries: slice) -> RowRequest:
        """The rows and cells to reduce among the queries from `queries.start` to `queries.stop`."""

        def inside(cells: Int[Tensor, "n w"]) -> Int[Tensor, "m w"]:
            return cells[(cells[:, 1] >= queries.start) & (cells[:, 1] < queries.stop)]

        def shifted(cells: Int[Tensor, "n w"]) -> Int[Tensor, "n w"]:
            cells = cells.clone()
            cells[:, 1] -= queries.start
            return cells

        picked = self._picked[(self._picked >= queries.start) & (self._picked < queries.stop)]
        sets, top_rows = [inside(cells) for cells in self._sets], inside(self._top_rows)
        cells, member = (
            merge(sets, self._batch.tokens.shape[1]) if sets else (top_rows.new_zeros(0, 3), top_rows.new_zeros(0))
        )
        is_whole = len(picked) == queries.stop - queries.start
        set_rows = tuple(rows_of(c) for c in sets)
        documents = [self._batch.document[rows[:, 0], rows[:, 1]] for rows in (*set_rows, top_rows)]
        return RowRequest(
            queries=queries,
            picked=picked,
            is_sampled=torch.isin(picked, self._sampled),
            cells=cells,
            member=member,
            set_rows=set_rows,
            seen_sets={
                s: _RowsOfCells.of(cells[member == s], queries) for s, c in enumerate(self._cell_sums) if c.seen_only
            },
            first=None if self._first_cells is None else _RowsOfCells.of(on_rows(self._first_cells, picked), queries),
            top_rows=top_rows,
            request=Request(
                entropy=self._wants("entropy") or self._wants("normalized_entropy"),
                distance=self._wants("mean_distance"),
                far=self._far if self._wants("far_mass") else None,
                first=self._batch.first[:, 0],
                cells=Cells(*shifted(cells).unbind(-1)) if len(cells) else None,
                top_rows=shifted(top_rows) if len(top_rows) else None,
                rows=None if is_whole else picked - queries.start,
                windows=self._windows,
                squares=self._wants("effective_support"),
                features=torch.cat(self._features, -1)[:, : queries.stop] if self._features else None,
                row_weights=self._counted_rows(queries) if self._per_key else None,
                value_norms=any(self._wants(name) for name in _VALUE_NORMS),
            ),
            group=member * self._batch.n_documents + self._batch.document[cells[:, 0], cells[:, 1]],
            counts=tuple(torch.bincount(document, minlength=self._batch.n_documents) for document in documents),
        )

    def count_rows(self, layer_slot: int, rows: RowRequest, sees: Sees | None) -> None:
        """Count the rows of a run that see a cell, the rows included that are not sampled."""
        for name, cells in self._of_all_rows.items():
            here = cells[(cells[:, 1] >= rows.queries.start) & (cells[:, 1] < rows.queries.stop)]
            of_run = _RowsOfCells.of(here, rows.queries)
            seen = of_run.seen(sees)
            if seen is None:
                seen = here.new_ones(len(of_run.rows), self._layers[layer_slot].n_heads, dtype=torch.bool)
            count = seen.new_zeros(self._batch.n_documents, seen.shape[1], dtype=torch.long)
            count.index_add_(0, self._batch.document[tuple(of_run.rows.unbind(-1))], seen.long())
            self._n_rows[name][:, layer_slot, : seen.shape[1]] += count.cpu()

    def add(
        self,
        layer_slot: int,
        statistics: RowStatistics,
        rows: RowRequest,
        sees: Sees | None,
        selected: RowValues | None = None,
    ) -> None:
        """Reduce the rows of a layer and add them to its sums; `layer_slot` is its index into the layers.

        `selected`: what was read of the keys that the layer selects.
        """
        layer, picked = self._layers[layer_slot], rows.picked
        valid = self._batch.valid[:, picked] & rows.is_sampled
        position = picked - self._batch.first[:, picked]
        # A softmax row always sees itself; a linear row may be empty (Σ|A| = 0) and then counts nowhere.
        is_seen = self._batch.valid[:, None, picked] & ~torch.isneginf(statistics.lse)
        has_all = bool((is_seen == self._batch.valid[:, None, picked]).all())
        count = partial(self._count, rows, is_seen, has_all)
        by_row = {
            "entropy": (statistics.entropy, valid),
            "mean_distance": (statistics.mean_distance, valid),
            "far_mass": (statistics.far_mass, valid & (position >= self._far.window)),
            "output_norm": (statistics.output_norm, valid),
            "value_norm": (statistics.value_norm, valid),
            "value_norm_seeing_first": (statistics.value_norm, valid),
            **self._own_rows(statistics, layer, valid=valid, position=position, picked=picked),
            **(selected or {}),
        }
        sees_first = None if rows.first is None else self._sees_first(rows.first, rows, sees)
        for name, (values, keep) in by_row.items():
            if name in self._totals and values is not None:
                counted = keep[:, None] & is_seen
                if name in SEEING_FIRST and sees_first is not None:
                    counted = counted & sees_first
                values = torch.where(counted, values, 0).double()
                squares = self._by_document(values**2, picked) if name in self._squares else None
                total, n_rows = self._by_document(values, picked), self._by_document(counted.long(), picked)
                self._add_sums(name, layer_slot, total, rows=n_rows, squares=squares)
        self._add_cells(layer_slot, statistics, rows, count, sees)
        self._add_top_keys(layer_slot, statistics, rows, count)
        self._keep_rows(layer_slot, statistics, rows, is_seen)
        self._keep_keys(layer_slot, statistics)
        # The kernels give it for a sequence's first key only, so that packed documents have none.
        is_new = ("first_value_norm", layer_slot) not in self._added and not self._batch.is_packed
        if "first_value_norm" in self._names and statistics.first_value_norm is not None and is_new:
            norms = statistics.first_value_norm[..., 0]
            self._add_sums("first_value_norm", layer_slot, norms, rows=torch.ones_like(norms, dtype=torch.long))

    def _own_rows(
        self,
        statistics: RowStatistics,
        layer: LayerInfo,
        *,
        valid: Bool[Tensor, "b r"],
        position: Int[Tensor, "b r"],
        picked: Int[Tensor, " r"],
    ) -> dict[str, tuple[Tensor | None, Bool[Tensor, "b r"]]]:
        """Row values that depend on the layer's kind or on a need of one's own, with the rows they are defined on."""
        by_row: dict[str, tuple[Tensor | None, Bool[Tensor, "b r"]]] = {}
        if layer.has_sinks:
            for name in self._names & {"learned_sink_mass", "learned_sink_mass_seeing_first"}:
                by_row[name] = (1 - statistics.mass, valid)
        if "normalized_entropy" in self._names and statistics.entropy is not None:
            most = torch.log((position + 1).clamp_min(2).float())
            by_row["normalized_entropy"] = (statistics.entropy / most[:, None], valid & (position >= 1))
        if "effective_support" in self._names and statistics.squares is not None:
            # The learned sink counts as one more key, as it does in the entropy.
            by_row["effective_support"] = (1 / (statistics.squares + (1 - statistics.mass) ** 2), valid)
        windows = [(need.name, need.window) for need in self._needs.fars]
        if layer.window is not None and "window_saturation" in self._names:
            windows.append(("window_saturation", _saturating(layer.window)))
        for name, window in windows:
            assert statistics.beyond is not None
            mass = statistics.beyond[..., self._windows.index(window)]
            by_row[name] = (mass, valid & (position >= (layer.window or 0 if name == "window_saturation" else window)))
        start = 0
        for need, readout in zip(self._needs.features, self._readouts, strict=True):
            assert statistics.features is not None
            features = statistics.features[..., start : start + readout.shape[-1]]
            by_row[need.name] = (einsum(features, readout[:, picked], "b h r f, b r f -> b h r"), valid)
            start += readout.shape[-1]
        return by_row

    def finish(self, answers: Answers | None, readings: Mapping[str, Reading]) -> Recording:
        """The recording of all sums."""
        sums = {
            name: PerSequence(total.float(), self._rows[name], self._row_error(name))
            for name, total in self._totals.items()
        }
        return Recording(
            layers=self._layers,
            sums=sums,
            per_row=self._per_row,
            per_key=self._per_key,
            far=self._far,
            answers=answers,
            cells={
                c.name: torch.bincount(
                    self._batch.document[cells[:, 0], cells[:, 1]], minlength=self._batch.n_documents
                ).cpu()
                for c, cells in zip(self._cell_sums, self._sets, strict=True)
            },
            readings=readings,
        )

    def _wants(self, name: str) -> bool:
        return name in self._names or f"{name}_per_row" in self._names

    def _add_cells(
        self,
        layer_slot: int,
        statistics: RowStatistics,
        rows: RowRequest,
        count: Count,
        sees: Sees | None,
    ) -> None:
        n_documents, n_heads = self._batch.n_documents, statistics.lse.shape[1]
        totals = statistics.lse.new_zeros(n_heads, len(self._sets) * n_documents, dtype=torch.float64)
        squares = torch.zeros_like(totals)
        if statistics.cells is not None:
            values = statistics.cells.mT.double()
            totals.scatter_add_(1, rows.group.expand(n_heads, -1), values)
            if self._is_thinned:
                row = rows.cells[:, 0] * self._batch.tokens.shape[1] + rows.cells[:, 1]
                distinct, of_row = torch.unique(torch.stack([rows.group, row], -1), dim=0, return_inverse=True)
                in_row = totals.new_zeros(n_heads, len(distinct)).index_add_(1, of_row, values)
                squares.index_add_(1, distinct[:, 0], in_row**2)
        for s, cell_sum in enumerate(self._cell_sums):
            of_set = slice(s * n_documents, (s + 1) * n_documents)
            seen = rows.seen_sets[s].seen(sees) if s in rows.seen_sets else None
            self._add_sums(
                cell_sum.name, layer_slot, totals[:, of_set].mT, rows=count(s, seen), squares=squares[:, of_set].mT
            )

    def _add_top_keys(self, layer_slot: int, statistics: RowStatistics, request: RowRequest, count: Count) -> None:
        if "answer_top1" not in self._names:
            return
        n_heads = statistics.lse.shape[1]
        total = statistics.lse.new_zeros(self._batch.n_documents, n_heads, dtype=torch.float64)
        if statistics.top_key is not None and self._batch.targets is not None:
            n_tokens, (sequence, row) = self._batch.tokens.shape[1], request.top_rows.unbind(-1)
            targets = self._batch.targets
            target_code = (targets[:, 0] * n_tokens + targets[:, 1]) * n_tokens + targets[:, 2]
            code = (sequence * n_tokens + row)[:, None] * n_tokens + statistics.top_key
            total.index_add_(0, self._batch.document[sequence, row], torch.isin(code, target_code).double())
        self._add_sums("answer_top1", layer_slot, total, rows=count(-1, None))

    def _keep_rows(
        self, layer_slot: int, statistics: RowStatistics, request: RowRequest, is_seen: Bool[Tensor, "b h r"]
    ) -> None:
        for name, per_row in self._per_row.items():
            values = getattr(statistics, name.removesuffix("_per_row"))
            values = torch.where(is_seen, values, torch.nan)
            per_row[:, layer_slot, : values.shape[1], request.picked.cpu()] = values.float().cpu()

    def _keep_keys(self, layer_slot: int, statistics: RowStatistics) -> None:
        """Add column sums, which grow with every run of queries: later queries see the keys of earlier runs."""
        for per_key in self._per_key.values():
            assert statistics.columns is not None
            n_heads, n_keys = statistics.columns.shape[1:]
            per_key[:, layer_slot, :n_heads] = per_key[:, layer_slot, :n_heads].nan_to_num(0)
            per_key[:, layer_slot, :n_heads, :n_keys] += statistics.columns.cpu()

    def _counted_rows(self, queries: slice) -> Float[Tensor, "b q"]:
        rows = torch.arange(queries.start, queries.stop, device=self._sampled.device)
        return (self._batch.valid[:, queries] & torch.isin(rows, self._sampled)).float()

    def _all_windows(self) -> tuple[int, ...]:
        windows = {need.window for need in self._needs.fars}
        if "window_saturation" in self._names:
            windows |= {_saturating(layer.window) for layer in self._layers if layer.window is not None}
        return tuple(sorted(windows))

    def _by_document(self, values: Tensor, picked: Int[Tensor, " r"]) -> Tensor:
        """Sums over rows, "b h r" to "n h"."""
        if not self._batch.is_packed:
            return values.sum(-1)
        document = rearrange(self._batch.document[:, picked], "b r -> (b r)")
        sums = values.new_zeros(self._batch.n_documents + 1, values.shape[1])  # the last one takes the padding
        return sums.index_add_(0, document % len(sums), rearrange(values, "b h r -> (b r) h"))[:-1]

    def _count(
        self,
        request: RowRequest,
        is_seen: Bool[Tensor, "b h r"],
        has_all: bool,
        which: int,
        sees: Bool[Tensor, "n h"] | None,
    ) -> Int[Tensor, "d h"]:
        """How many rows each head has in each document, of the cell sum `which`, or of the top rows, the last one.

        `has_all`: every head sees some key from every row. `sees` leaves some rows out.
        """
        if has_all and sees is None:
            return request.counts[which][:, None].expand(-1, is_seen.shape[1])
        rows = (*request.set_rows, request.top_rows)[which]
        count = is_seen.new_zeros(self._batch.n_documents, is_seen.shape[1], dtype=torch.long)
        index = torch.searchsorted(request.picked, rows[:, 1].contiguous())
        document = self._batch.document[rows[:, 0], rows[:, 1]]
        counted = is_seen[rows[:, 0], :, index]
        return count.index_add_(0, document, (counted if sees is None else counted & sees).long())

    def _sees_first(self, first: _RowsOfCells, request: RowRequest, sees: Sees | None) -> Bool[Tensor, "b h r"] | None:
        """Whether each head sees the first token of the document, by picked row; None: all do, from every row."""
        at, seen = first.rows, first.seen(sees)
        if seen is None:
            return None
        sees_first = seen.new_zeros(len(self._batch.tokens), seen.shape[1], len(request.picked))
        sees_first[at[:, 0], :, torch.searchsorted(request.picked, at[:, 1].contiguous())] = seen
        return sees_first

    def _add_sums(
        self, name: str, layer_slot: int, total: Tensor, *, rows: Tensor, squares: Tensor | None = None
    ) -> None:
        """Add sums over rows, "n h" each, to those of a layer."""
        index = (slice(None), layer_slot, slice(total.shape[1]))
        before = self._totals[name][index] if (name, layer_slot) in self._added else 0
        self._totals[name][index] = before + total.double().cpu()
        self._added.add((name, layer_slot))
        self._rows[name][index] += rows.cpu()
        if squares is not None and name in self._squares:
            self._squares[name][index] += squares.cpu()

    def _rows_in_all(self, all_cells: list[Int[Tensor, "_ 3"]]) -> dict[str, Int[Tensor, "n *layers_heads"]]:
        """How many rows each sum would have per document if all rows were reduced."""
        batch = self._batch
        position = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) - batch.first

        def count(document: Tensor) -> Int[Tensor, " n"]:
            return torch.bincount(document.flatten(), minlength=batch.n_documents).cpu()

        counts = {
            c.name: count(batch.document[tuple(rows_of(cells).unbind(-1))])
            for c, cells in zip(self._cell_sums, all_cells, strict=True)
        }

        def beyond(window: int) -> Int[Tensor, " n"]:
            return count(batch.document[batch.valid & (position >= window)])

        for need in self._needs.fars:
            counts[need.name] = beyond(need.window)
        least = {"far_mass": self._far.window, "normalized_entropy": 1}
        names = [*self._names, *(need.name for need in self._needs.features)]
        counts |= {name: beyond(least.get(name, 0)) for name in names}
        for name in self._names & set(SELECTION_NEEDS):
            counts[name] = self._beyond_selection(
                beyond, least=self._far.window if name == "selection_far" else 0, more=name == PERSISTENCE
            )
        return counts

    def _beyond_selection(
        self, beyond: Callable[[int], Int[Tensor, " n"]], *, least: int, more: int
    ) -> Int[Tensor, "n n_layers 1"]:
        """How many rows of each document have `least` tokens before them, and `more` than leaves each layer's first
        key out.
        """
        none = torch.zeros(self._batch.n_documents, dtype=torch.long)
        selected = [layer.n_selected for layer in self._layers]
        return torch.stack([none if n is None else beyond(max(least, n + more)) for n in selected], -1)[..., None]

    def _row_error(self, name: str) -> Float[Tensor, "n n_layers max_heads"] | None:
        if name not in self._squares:
            return None
        rows, in_all = self._rows[name].double(), self._n_rows[name].double()
        in_all = in_all if in_all.ndim > 1 else in_all[:, None, None]
        mean = self._totals[name] / rows
        variance = (self._squares[name] / rows - mean**2).clamp_min(0) * rows / (rows - 1)
        not_sampled = (1 - rows / in_all).clamp_min(0)  # rows are drawn without replacement
        return torch.where(rows > 1, (variance / rows * not_sampled).sqrt(), torch.nan).float()


def _cells_of(cell_sum: CellSum, batch: Sequences) -> Int[Tensor, "n_cells 3"]:
    with reading(cell_sum.name):
        cells = counted_cells(cell_sum.cells(batch), batch.tokens, source=f"the CellSum {cell_sum.name!r}")
    return within_documents(cells, batch)


def _is_whole(need: str) -> bool:
    return need.startswith("answer_") or need in SEQUENCE_NEEDS


def _saturating(window: int) -> int:
    """How many tokens back the last tenth of a window begins."""
    return max(1, window - max(1, round(window / 10)))
