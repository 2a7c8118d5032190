"""Requests for statistics of one attention layer's rows, and their results: the types that every backend shares.

There are two results. `RowStatistics` has what recording reads, single cells and sums over rows included, beside an
output in the model's own layout. `AttentionProfile` has what one pass of a kernel writes for every row, the output with
its gradients included. As one type, each backend would leave half of the fields empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels.tiles import Scratch


@dataclass(frozen=True, slots=True)
class Cells:
    """A list of single cells of the attention matrix, sorted by (sequence, row).

    `row` and `key` are indices into the layer's queries and keys.
    """

    sequence: Int[Tensor, " n_cells"]
    row: Int[Tensor, " n_cells"]
    key: Int[Tensor, " n_cells"]


@dataclass(frozen=True, slots=True)
class Far:
    """Far mass: the attention of row i on keys first + `sink` <= j <= i − `window` (in tokens).

    Raises:
        WorkbenchError: for a window below 1 or a sink below 0, or what is no whole number.
    """

    window: int
    sink: int = 0

    def __post_init__(self) -> None:
        sizes: tuple[Any, ...] = (self.window, self.sink)
        is_other = any(isinstance(size, bool) or not isinstance(size, Integral) for size in sizes)
        if is_other or self.window < 1 or self.sink < 0:
            raise WorkbenchError(
                f"far mass with window {self.window!r} and sink {self.sink!r}: expected a window of at least 1 token "
                "and a sink of at least 0, whole numbers"
            )


@dataclass(frozen=True, slots=True)
class Request:
    """Statistics to compute besides the layer's output. What is absent is not computed and costs nothing.

    Row statistics and profiles have `entropy`, `distance` and `windows`: far mass for each of these windows, in tokens,
    with no sink left out.

    Row statistics alone have:
    `far`, with `first`: each sequence's first valid key, from which `far.sink` counts (0 where absent).
    `cells`: cells whose probability is read. `top_rows`: (sequence, row) pairs whose arg-max key is read.
    `rows`: the query rows to compute (all where absent), sorted; cells and top rows lie on them.
    `squares`: Σ A² of a row, from which its effective support 1 / Σ A² follows.
    `features`: numbers on keys; gives their attention-weighted sums, Σ_j A[i, j] f_j for each.
    `row_weights`: the weight of each query row in column sums, Σ_i w_i A[i, j] for each key.
    `value_norms`: Σ_j A[i, j] · ‖v_j‖, the output's norm ‖o_i‖, and the first key's ‖v‖; softmax layers only.

    Profiles alone have:
    `top`: the arg-max key of every row and its probability.
    `query_tags`, `key_tags`: gives the mass on keys whose tag equals the query's (same token, token after the same
    token, needle, document, class of tokens).
    """

    entropy: bool = False
    distance: bool = False
    far: Far | None = None
    first: Int[Tensor, " b"] | None = None
    cells: Cells | None = None
    top_rows: Int[Tensor, "n_top 2"] | None = None
    rows: Int[Tensor, " q"] | None = None
    windows: tuple[int, ...] = ()
    squares: bool = False
    features: Float[Tensor, "b k f"] | None = None
    row_weights: Float[Tensor, "b queries"] | None = None
    value_norms: bool = False
    top: bool = False
    query_tags: Integer[Tensor, "#b q_tags"] | None = None
    key_tags: Integer[Tensor, "#b k"] | None = None
    # What the tiles of this request share in all layers, by mask and shape, once it was found, and their buffers,
    # by device and thread.
    runs: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    scratches: dict[tuple[torch.device, int], Scratch] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Raises:
        WorkbenchError: for cells, top rows or rows that are not sorted: the kernels look them up by halving.
        """
        pairs = {
            "cells": None if self.cells is None else (self.cells.sequence, self.cells.row),
            "top_rows": None if self.top_rows is None else self.top_rows.unbind(-1),
            "rows": None if self.rows is None else (torch.zeros_like(self.rows), self.rows),
        }
        for name, pair in pairs.items():
            if pair is not None and not _is_sorted(*pair):
                order = "rows" if name == "rows" else "(sequence, row)"
                raise WorkbenchError(
                    f"the request's {name} are not sorted by {order}; expected them in order: sort them"
                )

    def of_rows(self, rows: Int[Tensor, " q"]) -> Request:
        """A request of other rows and no statistics besides those that are always there, in the same buffers."""
        request = Request(rows=rows)
        object.__setattr__(request, "scratches", self.scratches)
        return request

    @property
    def is_of_profile(self) -> bool:
        """True if a profile holds all of it."""
        tensors = (self.first, self.top_rows, self.rows, self.features, self.row_weights)
        is_read = self.far is not None or self.cells is not None or any(x is not None for x in tensors)
        return not (is_read or self.squares or self.value_norms)

    @property
    def is_of_rows(self) -> bool:
        """True if row statistics hold all of it."""
        return not self.top and self.query_tags is None and self.key_tags is None


def _is_sorted(sequence: Int[Tensor, " n"], row: Int[Tensor, " n"]) -> bool:
    later = sequence.diff()
    return not bool(((later < 0) | ((later == 0) & (row.diff() < 0))).any())


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Exact statistics of each requested query row, float32 whatever the model's dtype (float64 in the reference).

    With A the attention probabilities (learned sink not renormalised away; for linear layers A is signed and
    `weights` below are |A| / Σ|A|, for softmax layers `weights` are A):

    `lse`: ln of the softmax denominator, learned sink included; for linear layers ln Σ|A| (−inf: empty row).
    `mass`: Σ_j weights: 1 minus the learned sink's share. `entropy` in nats, the learned sink one outcome.
    `mean_distance`: Σ_j weights · (i − j) in tokens. `far_mass` as `Far` defines it.
    `cells`: the probability at each requested cell; for linear layers the signed A / Σ|A|.
    `top_key`: the arg-max key of each requested row, of |A| for linear layers.
    `beyond`: far mass for each of `Request.windows`. `squares`: Σ weights². `features`: for linear layers with the
    signed A / Σ|A|. `columns`: with weights. `value_norm`, `output_norm`, `first_value_norm` as in `Request`.
    """

    lse: Float[Tensor, "b n_heads q"]
    mass: Float[Tensor, "b n_heads q"]
    entropy: Float[Tensor, "b n_heads q"] | None
    mean_distance: Float[Tensor, "b n_heads q"] | None
    far_mass: Float[Tensor, "b n_heads q"] | None
    cells: Float[Tensor, "n_cells n_heads"] | None
    top_key: Int[Tensor, "n_top n_heads"] | None
    beyond: Float[Tensor, "b n_heads q n_windows"] | None = None
    squares: Float[Tensor, "b n_heads q"] | None = None
    features: Float[Tensor, "b n_heads q f"] | None = None
    columns: Float[Tensor, "b n_heads k"] | None = None
    value_norm: Float[Tensor, "b n_heads q"] | None = None
    output_norm: Float[Tensor, "b n_heads q"] | None = None
    first_value_norm: Float[Tensor, "b n_heads 1"] | None = None


@dataclass(frozen=True, slots=True)
class AttentionProfile:
    """Output and row statistics of one softmax layer; statistics are float32 (float64 in the reference).

    `lse`: ln of the softmax denominator, the learned sink included (−inf: a row without keys and sink).
    `entropy` in nats, the sink one outcome. `top_key`, `top_mass`: the likeliest key and its probability (−1 and 0 if
    there is none). `mean_distance`: Σ p · (i − j) in tokens. `beyond`: mass at distance >= each window.
    `tag_mass`: mass on keys with the query's tag. `sink_mass`: mass on the learned sink.
    """

    out: Float[Tensor, "b n_heads q d_v"] | None
    lse: Float[Tensor, "b n_heads q"]
    entropy: Float[Tensor, "b n_heads q"] | None
    top_key: Int[Tensor, "b n_heads q"] | None
    top_mass: Float[Tensor, "b n_heads q"] | None
    mean_distance: Float[Tensor, "b n_heads q"] | None
    beyond: Float[Tensor, "b n_heads q windows"] | None
    tag_mass: Float[Tensor, "b n_heads q"] | None
    sink_mass: Float[Tensor, "b n_heads q"] | None


def beyond_a_profile(request: Request) -> list[str]:
    """The row statistics of a request that cannot be read off a profile, by name."""
    names = {
        "a ladder of windows": bool(request.windows),
        "squares": request.squares,
        "features": request.features is not None,
        "column sums": request.row_weights is not None,
        "value norms": request.value_norms,
    }
    return [name for name, is_requested in names.items() if is_requested]
