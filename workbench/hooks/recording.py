"""A Recording: what was asked of every head, summed per sequence while the model ran.

Every need is a sum over rows of one statistic per row; only `…_per_row` needs keep the rows, because somebody asked for
them by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import LayerInfo, WorkbenchError
from workbench.hooks.cells import CELL_RULES, CellSum
from workbench.hooks.readings import Reading, RowReading
from workbench.kernels import Far

ROW_NEEDS = ("learned_sink_mass", "entropy", "mean_distance", "far_mass")
PER_ROW_NEEDS = (
    "lse_per_row",
    "mass_per_row",
    "entropy_per_row",
    "mean_distance_per_row",
    "far_mass_per_row",
)
NEEDS = (*CELL_RULES, "answer_top1", *ROW_NEEDS, *PER_ROW_NEEDS)
Need = str | CellSum | RowReading


@dataclass(frozen=True, slots=True)
class PerSequence:
    """One measurement of every head on every sequence: the sum over rows, and how many rows it summed.

    Axes: sequence (document, where several are packed into a sequence), layer (as in `Recording.layers`), query head.
    NaN and 0 where a layer has no such head.
    `row_error`: the standard error of total / rows as an estimate over all of the sequence's rows, where only some were
    recorded; NaN for fewer than two. None where all were.
    """

    total: Float[Tensor, "n n_layers max_heads"]
    rows: Int[Tensor, "n n_layers max_heads"]
    row_error: Float[Tensor, "n n_layers max_heads"] | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """How the model did on the rows that predict an answer: (sequence, row), loss in nats, whether it was right."""

    at: Int[Tensor, "n_rows 2"]
    loss_nats: Float[Tensor, " n_rows"]
    is_right: Bool[Tensor, " n_rows"]


@dataclass(frozen=True, slots=True)
class Recording:
    """Statistics of one forward pass over a batch of sequences, by need. Nothing in it is T × T.

    `far`: the window and sink that `far_mass` used. `cells`: of each cell sum, how many cells of each sequence it
    summed; a linear row with Σ|A| = 0 is no row, and its cells are counted all the same. `readings`: of each
    `RowReading`, what it read.
    """

    layers: tuple[LayerInfo, ...]
    sums: Mapping[str, PerSequence]
    per_row: Mapping[str, Float[Tensor, "b n_layers max_heads t"]]
    far: Far
    answers: Answers | None
    cells: Mapping[str, Int[Tensor, " n"]] = field(default_factory=dict[str, Tensor])
    readings: Mapping[str, Reading] = field(default_factory=dict[str, Reading])

    def __getitem__(self, need: str) -> PerSequence:
        """The measurement recorded for `need`.

        Raises:
            WorkbenchError: if it was not asked for.
        """
        if need not in self.sums:
            raise WorkbenchError(f"{need!r} was not recorded; recorded: {sorted(self.sums)}. Pass it in needs=")
        return self.sums[need]


def check_needs(needs: Iterable[Need]) -> tuple[tuple[CellSum, ...], frozenset[str]]:
    """Split needs into the cell sums and the names of the others; those that read rows are checked and left out.

    Raises:
        WorkbenchError: for a name that is not a need.
    """
    cell_sums: dict[str, CellSum] = {}
    names: set[str] = set()
    readings: dict[str, RowReading] = {}
    for need in needs:
        if isinstance(need, RowReading):
            if readings.setdefault(need.name, need) != need:
                raise WorkbenchError(f"two needs are called {need.name!r}; rename the RowReading")
            continue
        if isinstance(need, CellSum):
            if need.name in NEEDS or cell_sums.get(need.name, need) != need:
                raise WorkbenchError(f"two needs are called {need.name!r}; rename the CellSum")
            cell_sums[need.name] = need
        elif need in CELL_RULES:
            cell_sums[need] = CellSum(need, CELL_RULES[need])
        elif need in NEEDS:
            names.add(need)
        else:
            raise WorkbenchError(
                f"unknown need {need!r}; expected a CellSum, a RowReading or one of {', '.join(NEEDS)}"
            )
    return tuple(sorted(cell_sums.values(), key=lambda c: c.name)), frozenset(names)
