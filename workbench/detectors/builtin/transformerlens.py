"""The measures of TransformerLens' `detect_head`, number for number, to compare with published ones.

`mul` divides the attention on a head type's cells by all attention of the sequence, so that rows without such a cell
count against the head: a perfect induction head on two copies of n tokens reaches n / (2n + 1). `abs` is 1 minus the
summed absolute difference to a pattern of ones on these cells, per row, which the original rounds to three decimals.
Thresholds do not carry over between them, nor to `previous_token`, `duplicate_token` and `induction`.

Reference:
    TransformerLens 4.3, `transformer_lens.head_detector.detect_head`, without `exclude_bos` and
    `exclude_current_token`.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording

_ALL = frozenset({"current_token", "learned_sink_mass"})


def _register(kind: Literal["previous_token", "duplicate_token", "induction"], cells: str) -> None:
    def mul(recording: Recording) -> PerSequence:
        attended, on_cells, _, rows = _sums(recording, kind)
        return _whole(on_cells / attended, rows)

    def absolute(recording: Recording) -> PerSequence:
        attended, on_cells, n_cells, rows = _sums(recording, kind)
        difference = attended + n_cells - 2 * on_cells
        return _whole(1 - torch.round(difference / rows.clamp(min=1), decimals=3), rows)

    mul.__doc__ = f"Share of all attention that goes to {cells}: `mul` of TransformerLens' detect_head."
    absolute.__doc__ = f"1 less the distance per row to attention on all of {cells}: `abs` of detect_head."
    for measure, function, units in (("mul", mul, "probability"), ("abs", absolute, "1 − summed difference")):
        function.__qualname__ = f"tl_{kind}_{measure}"
        direction = "low" if kind == "previous_token" else "high"
        detector(f"tl_{kind}_{measure}", needs={*_ALL, kind}, direction=direction, units=units, by_default=False)(
            function
        )


def _sums(
    recording: Recording, kind: str
) -> tuple[
    Float[Tensor, "n n_layers max_heads"],
    Float[Tensor, "n n_layers max_heads"],
    Int[Tensor, "n 1 1"],
    Int[Tensor, "n n_layers max_heads"],
]:
    """Of each sequence: all attention, attention on the cells, number of cells, number of rows (0 in linear layers)."""
    rows = recording["current_token"].rows.clone()
    for layer_slot, layer in enumerate(recording.layers):
        if layer.kind == "linear":
            rows[:, layer_slot] = 0
    attended = rows - recording["learned_sink_mass"].total.nan_to_num()
    on_cells = recording[kind].total.nan_to_num()
    return attended, on_cells, recording.cells[kind][:, None, None], rows


def _whole(value: Float[Tensor, "n n_layers max_heads"], rows: Int[Tensor, "n n_layers max_heads"]) -> PerSequence:
    """A value per sequence that is not a mean over rows."""
    return PerSequence(torch.where(rows > 0, value * rows, torch.nan), rows)


_register("previous_token", "the token before")
_register("duplicate_token", "earlier occurrences of the same token")
_register("induction", "the tokens that followed earlier occurrences of this token")
