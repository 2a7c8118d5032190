"""Needs, which name the statistics of a recording, and the Recording that holds them.

A need is a sum over rows of one statistic per row and head, per sequence. Only `…_per_row` needs keep the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import LayerInfo, WorkbenchError
from workbench.hooks.recording.cells import CELL_RULES, SEEN_ONLY, CellSum, Sequences
from workbench.hooks.recording.row_readings import Reading, RowReading
from workbench.hooks.recording.selected_keys import SELECTION_NEEDS
from workbench.kernels import Far

ROW_NEEDS = (
    "learned_sink_mass",
    "entropy",
    "normalized_entropy",
    "mean_distance",
    "far_mass",
    "effective_support",
    "window_saturation",
    "output_norm",
    "value_norm",
    "learned_sink_mass_seeing_first",
    "value_norm_seeing_first",
)
# Row needs on the rows that see the first token of their document.
SEEING_FIRST = frozenset({"learned_sink_mass_seeing_first", "value_norm_seeing_first"})
# One number per sequence, which counts as one row.
SEQUENCE_NEEDS = ("first_value_norm",)
PER_KEY_NEEDS = ("column_mass_per_key",)
PER_ROW_NEEDS = (
    "lse_per_row",
    "mass_per_row",
    "entropy_per_row",
    "mean_distance_per_row",
    "far_mass_per_row",
)
NEEDS = (
    *(*CELL_RULES, "answer_top1", *ROW_NEEDS, *SELECTION_NEEDS, *SEQUENCE_NEEDS),
    *(*PER_ROW_NEEDS, *PER_KEY_NEEDS),
)


@dataclass(frozen=True, slots=True)
class FarSum:
    """A need of one's own: per row, the attention `window` or more tokens back, on rows with as many before them.

    Several windows in one recording cost one pass over the weights.
    """

    name: str
    window: int


@dataclass(frozen=True, slots=True)
class FeatureSum:
    """A need of one's own: per row i, Σ_f readout[i, f] · Σ_j A[i, j] features[j, f], over all rows.

    With one-hot features of a class and its one-hot readout this is the attention on keys of the row's class, without
    a list of cells; with random signs it is an estimate of it in fewer features (a count-sketch).
    """

    name: str
    features: Callable[[Sequences], Float[Tensor, "b t f"]]
    readout: Callable[[Sequences], Float[Tensor, "b t f"]]


Need = str | CellSum | FarSum | FeatureSum | RowReading


@dataclass(frozen=True, slots=True)
class PerSequence:
    """One measurement of every head on every sequence: the sum over rows, and how many rows it summed.

    Axes: sequence (document, where several are packed into a sequence), layer (as in `Recording.layers`), query head.
    NaN and 0 where a layer has no such head.
    `row_error`: where only some rows were recorded, the standard error of total / rows as an estimate for all rows of
    the sequence; NaN for fewer than two rows. None where all were recorded.
    """

    total: Float[Tensor, "n n_layers max_heads"]
    rows: Int[Tensor, "n n_layers max_heads"]
    row_error: Float[Tensor, "n n_layers max_heads"] | None = None

    def __repr__(self) -> str:
        n, n_layers, n_heads = self.total.shape
        error = "" if self.row_error is None else ", .row_error"
        return f"PerSequence({n} sequences × {n_layers} layers × {n_heads} heads; .total, .rows{error})"


@dataclass(frozen=True, slots=True)
class Answers:
    """The rows that predict an answer, as (sequence, row), with the model's loss in nats and whether it was right."""

    at: Int[Tensor, "n_rows 2"]
    loss_nats: Float[Tensor, " n_rows"]
    is_right: Bool[Tensor, " n_rows"]

    @property
    def loss(self) -> float:
        """The mean loss of the answers, in nats; NaN without one."""
        return float(self.loss_nats.mean())

    @property
    def accuracy(self) -> float:
        """The share of answers that are the model's arg-max; NaN without one."""
        return float(self.is_right.float().mean())

    def __repr__(self) -> str:
        if not len(self.at):
            return "Answers(none)"
        totals = f"{self.loss:.3f} nats, {self.accuracy:.3f} right"
        return f"Answers({len(self.at)}: {totals}; .at, .loss_nats, .is_right, .loss, .accuracy)"


@dataclass(frozen=True, slots=True)
class Recording:
    """Statistics of one forward pass over a batch of sequences, by need. Nothing in it is T × T.

    `per_row`, `per_key`: statistics kept for every query, or summed over queries for every key. `far`: the window and
    sink of `far_mass`. `cells`: the number of cells in each cell sum by sequence; a linear row with Σ|A| = 0 does not
    count as a row, but its cells count here. `readings`: by the name of each `RowReading`.
    """

    layers: tuple[LayerInfo, ...]
    sums: Mapping[str, PerSequence]
    per_row: Mapping[str, Float[Tensor, "b n_layers max_heads t"]]
    per_key: Mapping[str, Float[Tensor, "b n_layers max_heads t"]]
    far: Far
    answers: Answers | None
    cells: Mapping[str, Int[Tensor, " n"]] = field(default_factory=dict[str, Tensor])
    readings: Mapping[str, Reading] = field(default_factory=dict[str, Reading])

    def __repr__(self) -> str:
        by_kind = {"sums": self.sums, "per_row": self.per_row, "per_key": self.per_key, "readings": self.readings}
        names = "; ".join(f"{name} {', '.join(sorted(values))}" for name, values in by_kind.items() if values)
        answers = "" if self.answers is None else f"; {self.answers!r}"
        return f"Recording({len(self.layers)} layers; {names or 'nothing recorded'}{answers})"

    def __getitem__(self, need: str) -> PerSequence:
        """The measurement recorded for `need`.

        Raises:
            WorkbenchError: if the recording has no such need.
        """
        if need not in self.sums:
            raise WorkbenchError(f"{need!r} was not recorded; recorded: {sorted(self.sums)}. Pass it in needs=")
        return self.sums[need]

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Recording has no attribute {name!r}; statistics are read by name: recording[{name!r}]")


@dataclass(frozen=True, slots=True)
class Needs:
    """Needs by kind: sums of one's own in order of their names, and the names of built-in needs."""

    cells: tuple[CellSum, ...]
    fars: tuple[FarSum, ...]
    features: tuple[FeatureSum, ...]
    names: frozenset[str]

    @property
    def sums(self) -> list[str]:
        """The names of all needs that are summed over rows."""
        own = [need.name for need in (*self.cells, *self.fars, *self.features)]
        return own + sorted(self.names - {*PER_ROW_NEEDS, *PER_KEY_NEEDS})


def check_needs(needs: Iterable[Need]) -> Needs:
    """Sort needs by kind; row readings are checked and left out.

    Raises:
        WorkbenchError: for a name that is not a need, two needs of one name, or a window shorter than one token.
    """
    own: dict[str, CellSum | FarSum | FeatureSum] = {}
    names: set[str] = set()
    readings: dict[str, RowReading] = {}
    for need in needs:
        if isinstance(need, RowReading):
            if readings.setdefault(need.name, need) != need:
                raise WorkbenchError(f"two needs are called {need.name!r}; rename the RowReading")
        elif isinstance(need, CellSum | FarSum | FeatureSum):
            if need.name in NEEDS or own.get(need.name, need) != need:
                raise WorkbenchError(f"two needs are called {need.name!r}; rename the {type(need).__name__}")
            own[need.name] = need
        elif need in CELL_RULES:
            own[need] = CellSum(need, CELL_RULES[need], seen_only=need in SEEN_ONLY)
        elif need in NEEDS:
            names.add(need)
        else:
            raise WorkbenchError(
                f"unknown need {need!r}; expected a CellSum, FarSum, FeatureSum, RowReading or one of "
                f"{', '.join(NEEDS)}"
            )
    ordered = [own[name] for name in sorted(own)]
    fars = tuple(need for need in ordered if isinstance(need, FarSum))
    short = next((need for need in fars if need.window < 1), None)
    if short is not None:
        raise WorkbenchError(f"{short.name!r} has a window of {short.window} tokens; expected at least 1")
    return Needs(
        cells=tuple(need for need in ordered if isinstance(need, CellSum)),
        fars=fars,
        features=tuple(need for need in ordered if isinstance(need, FeatureSum)),
        names=frozenset(names),
    )
