"""A Recording: what was asked of every head, summed per sequence while the model ran.

Every need is a sum over rows of one statistic per row. A layer's rows are reduced inside its tap; only `…_per_row`
needs outlive it, because somebody asked for them by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import LayerInfo, WorkbenchError
from workbench.hooks.cells import CELL_RULES, CellSum, Sequences, merge, on_rows, on_valid, rows_of
from workbench.kernels import Cells, Far, Request, RowStatistics

ROW_NEEDS = ("learned_sink_mass", "entropy", "mean_distance", "far_mass")
PER_ROW_NEEDS = (
    "lse_per_row",
    "mass_per_row",
    "entropy_per_row",
    "mean_distance_per_row",
    "far_mass_per_row",
)
NEEDS = (*CELL_RULES, "answer_top1", *ROW_NEEDS, *PER_ROW_NEEDS)
Need = str | CellSum


@dataclass(frozen=True, slots=True)
class PerSequence:
    """One measurement of every head on every sequence: the sum over rows, and how many rows it summed.

    Axes: sequence, layer (as in `Recording.layers`), query head. NaN and 0 where a layer has no such head.
    """

    total: Float[Tensor, "b n_layers max_heads"]
    rows: Int[Tensor, "b n_layers max_heads"]


@dataclass(frozen=True, slots=True)
class Answers:
    """How the model did on the rows that predict an answer: (sequence, row), loss in nats, whether it was right."""

    at: Int[Tensor, "n_rows 2"]
    loss_nats: Float[Tensor, " n_rows"]
    is_right: Bool[Tensor, " n_rows"]


@dataclass(frozen=True, slots=True)
class Recording:
    """Statistics of one forward pass over a batch of sequences, by need. Nothing in it is T × T.

    `far`: the window and sink that `far_mass` used.
    """

    layers: tuple[LayerInfo, ...]
    sums: Mapping[str, PerSequence]
    per_row: Mapping[str, Float[Tensor, "b n_layers max_heads t"]]
    far: Far
    answers: Answers | None

    def __getitem__(self, need: str) -> PerSequence:
        """The measurement recorded for `need`.

        Raises:
            WorkbenchError: if it was not asked for.
        """
        if need not in self.sums:
            raise WorkbenchError(f"{need!r} was not recorded; recorded: {sorted(self.sums)}. Pass it in needs=")
        return self.sums[need]


def check_needs(needs: Iterable[Need]) -> tuple[tuple[CellSum, ...], frozenset[str]]:
    """Split needs into the cell sums and the names of the others.

    Raises:
        WorkbenchError: for a name that is not a need.
    """
    cell_sums: dict[str, CellSum] = {}
    names: set[str] = set()
    for need in needs:
        if isinstance(need, CellSum):
            if need.name in NEEDS or cell_sums.get(need.name, need) != need:
                raise WorkbenchError(f"two needs are called {need.name!r}; rename the CellSum")
            cell_sums[need.name] = need
        elif need in CELL_RULES:
            cell_sums[need] = CellSum(need, CELL_RULES[need])
        elif need in NEEDS:
            names.add(need)
        else:
            raise WorkbenchError(f"unknown need {need!r}; expected a CellSum or one of {', '.join(NEEDS)}")
    return tuple(sorted(cell_sums.values(), key=lambda c: c.name)), frozenset(names)


class Reduction:
    """One recording in the making: the kernels' request, and the sums that grow layer by layer."""

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
        self._cell_sums, self._names = check_needs(needs)
        n_tokens = batch.tokens.shape[1]
        every = torch.arange(n_tokens, device=batch.tokens.device)
        self._sampled = every if rows is None else rows
        # Sampling thins the rows of every statistic but the answers': those are few and asked for one by one.
        self._picked = self._sampled
        if rows is not None and batch.targets is not None:
            self._picked = torch.unique(torch.cat([rows, batch.targets[:, 1]]))
        self._is_sampled = torch.isin(self._picked, self._sampled)
        self._sets = [self._visible(c.cells(batch), c.name) for c in self._cell_sums]
        self._set_rows = [rows_of(cells) for cells in self._sets]
        self._top_rows = torch.zeros(0, 2, dtype=torch.long, device=batch.tokens.device)
        if "answer_top1" in self._names and batch.targets is not None:
            self._top_rows = rows_of(self._visible(batch.targets, "answer_top1"))
        self._cells, self._member = (
            merge(self._sets, n_tokens) if self._sets else (self._top_rows.new_zeros(0, 3), self._top_rows[:, 0])
        )
        self._request = self._make_request()
        shape = (len(batch.tokens), len(layers), max(layer.n_heads for layer in layers))
        names = [c.name for c in self._cell_sums] + [n for n in self._names if not n.endswith("_per_row")]
        self._sums = {
            name: PerSequence(torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.long)) for name in names
        }
        self._per_row = {
            name: torch.full((*shape, n_tokens), torch.nan) for name in self._names if name.endswith("_per_row")
        }

    def _visible(self, cells: Int[Tensor, "n_cells 3"], need: str) -> Int[Tensor, "m 3"]:
        cells = on_valid(cells, self._batch.valid)
        is_thinned = len(self._sampled) < self._batch.tokens.shape[1] and not need.startswith("answer_")
        return on_rows(cells, self._sampled) if is_thinned else cells

    def _make_request(self) -> Request:
        def wanted(name: str) -> bool:
            return name in self._names or f"{name}_per_row" in self._names

        return Request(
            entropy=wanted("entropy"),
            distance=wanted("mean_distance"),
            far=self._far if wanted("far_mass") else None,
            first=self._batch.first,
            cells=Cells(*self._cells.unbind(-1)) if len(self._cells) else None,
            top_rows=self._top_rows if len(self._top_rows) else None,
            rows=self._picked if len(self._picked) < self._batch.tokens.shape[1] else None,
        )

    @property
    def request(self) -> Request:
        """What the kernels are to compute for every layer."""
        return self._request

    def take(self, place: int, statistics: RowStatistics) -> None:
        """Reduce the rows of the layer at `place` in the list of layers."""
        layer = self._layers[place]
        valid = self._batch.valid[:, self._picked] & self._is_sampled
        position = self._picked - self._batch.first[:, None]
        # A softmax row always sees itself; a linear row may be empty (Σ|A| = 0) and then counts nowhere.
        is_seen = self._batch.valid[:, None, self._picked] & ~torch.isneginf(statistics.lse)
        by_row = {
            "entropy": (statistics.entropy, valid),
            "mean_distance": (statistics.mean_distance, valid),
            "far_mass": (statistics.far_mass, valid & (position >= self._far.window)),
        }
        if layer.has_sinks and "learned_sink_mass" in self._names:
            by_row["learned_sink_mass"] = (1 - statistics.mass, valid)
        for name, (values, keep) in by_row.items():
            if name in self._sums and values is not None:
                counted = keep[:, None] & is_seen
                self._store(name, place, torch.where(counted, values, 0).sum(-1), counted.sum(-1))
        self._take_cells(place, statistics, is_seen)
        self._take_top(place, statistics, is_seen)
        self._keep_rows(place, statistics, is_seen)

    def _take_cells(self, place: int, statistics: RowStatistics, is_seen: Bool[Tensor, "b h r"]) -> None:
        n_sequences, n_heads = is_seen.shape[:2]
        n_sets = len(self._sets)
        totals = is_seen.new_zeros(n_sets * n_sequences, n_heads, dtype=torch.float64)
        if statistics.cells is not None:
            at = self._member * n_sequences + self._cells[:, 0]
            totals.index_add_(0, at, statistics.cells.double())
        for s, (cell_sum, rows) in enumerate(zip(self._cell_sums, self._set_rows, strict=True)):
            total = totals[s * n_sequences : (s + 1) * n_sequences]
            self._store(cell_sum.name, place, total, self._count(rows, is_seen))

    def _take_top(self, place: int, statistics: RowStatistics, is_seen: Bool[Tensor, "b h r"]) -> None:
        if "answer_top1" not in self._names:
            return
        total = is_seen.new_zeros(*is_seen.shape[:2], dtype=torch.float64)
        if statistics.top_key is not None and self._batch.targets is not None:
            n_tokens = self._batch.tokens.shape[1]
            row_code = self._top_rows[:, 0] * n_tokens + self._top_rows[:, 1]
            targets = self._batch.targets
            target_code = (targets[:, 0] * n_tokens + targets[:, 1]) * n_tokens + targets[:, 2]
            is_hit = torch.isin(row_code[:, None] * n_tokens + statistics.top_key, target_code)
            total.index_add_(0, self._top_rows[:, 0], is_hit.double())
        self._store("answer_top1", place, total, self._count(self._top_rows, is_seen))

    def _count(self, rows: Int[Tensor, "n 2"], is_seen: Bool[Tensor, "b h r"]) -> Int[Tensor, "b h"]:
        count = is_seen.new_zeros(*is_seen.shape[:2], dtype=torch.long)
        at = torch.searchsorted(self._picked, rows[:, 1].contiguous())
        return count.index_add_(0, rows[:, 0], is_seen[rows[:, 0], :, at].long())

    def _store(self, name: str, place: int, total: Float[Tensor, "b h"], rows: Int[Tensor, "b h"]) -> None:
        n_heads = total.shape[1]
        self._sums[name].total[:, place, :n_heads] = total.float().cpu()
        self._sums[name].rows[:, place, :n_heads] = rows.cpu()

    def _keep_rows(self, place: int, statistics: RowStatistics, is_seen: Bool[Tensor, "b h r"]) -> None:
        for name, kept in self._per_row.items():
            values = getattr(statistics, name.removesuffix("_per_row"))
            values = torch.where(is_seen, values, torch.nan)
            kept[:, place, : values.shape[1], self._picked.cpu()] = values.float().cpu()

    def finish(self, answers: Answers | None) -> Recording:
        return Recording(layers=self._layers, sums=self._sums, per_row=self._per_row, far=self._far, answers=answers)
