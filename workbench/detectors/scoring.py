"""From totals per sequence to a score: the mean over sequences, its halves, spread and interval.

The interval is the bootstrap over sequences. Where only some rows were recorded, it is widened by the error of that
sample. All sequences share their rows, so this error does not average out over sequences. It is added as if it were the
same in all of them, which is never too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from workbench.detectors.bootstrap import bootstrap
from workbench.heads import LayerInfo, Row
from workbench.hooks import PerSequence

_NORMAL = 1.959964  # standard errors in half of a 95 % interval


@dataclass(frozen=True, slots=True)
class ScoreLabel:
    """The detector of a score, its version, and the probe."""

    detector: str
    version: int
    probe: str


def concatenate(batches: Sequence[PerSequence]) -> PerSequence:
    """The measurements of several batches as one, in their order."""
    errors = [batch.row_error for batch in batches if batch.row_error is not None]
    return PerSequence(
        torch.cat([batch.total for batch in batches]),
        torch.cat([batch.rows for batch in batches]),
        torch.cat(errors) if len(errors) == len(batches) else None,
    )


def score_rows(
    measured: PerSequence, layers: Sequence[LayerInfo], label: ScoreLabel, *, seed: int, flags: str = ""
) -> list[Row]:
    """One Row per query head.

    A sequence's value is its total over its rows; sequences without a row do not count. Nor do those whose value is no
    number, as in a model that was opened with NaN in its weights; where others are left, the flags hold `not_finite`,
    how many of how many.
    The bootstrap resamples sequences with `seed`, 1000 times; a head's interval depends on its own values alone. Where
    rows were sampled, the flags hold `row_error`, the standard error of the score from that sample; the interval
    contains it.
    """
    total = measured.total.double().numpy()
    rows = measured.rows.numpy()
    value = np.where(rows > 0, total / np.maximum(rows, 1), np.nan)
    has_rows = (rows > 0) & np.isfinite(value)
    n_lost = ((rows > 0) & ~has_rows).sum(0)
    n_seq = has_rows.sum(0)
    mean, sd = _mean(value, has_rows), _spread(value, has_rows)
    half_a, half_b = _mean(value[0::2], has_rows[0::2]), _mean(value[1::2], has_rows[1::2])
    low, high = bootstrap(value, has_rows, seed=seed)
    row_error = None if measured.row_error is None else _shared_error(measured.row_error.double().numpy(), has_rows)
    if row_error is not None:
        low = mean - np.hypot(mean - low, _NORMAL * row_error)
        high = mean + np.hypot(high - mean, _NORMAL * row_error)
    per_head = {"score": mean, "half_a": half_a, "half_b": half_b, "sd_seq": sd, "ci_lo": low, "ci_hi": high}
    slots = [(layer_slot, head) for layer_slot, info in enumerate(layers) for head in range(info.n_heads)]
    of_heads = [
        _joined(
            flags,
            f"not_finite={n_lost[at]}/{n_seq[at] + n_lost[at]}" if n_lost[at] and n_seq[at] else "",
            "" if row_error is None else f"row_error={row_error[at]:.2g}",
        )
        for at in slots
    ]
    return table_rows(layers, per_head, label, n=np.where(has_rows, rows, 0).sum(0), n_seq=n_seq, flags=of_heads)


def table_rows(
    layers: Sequence[LayerInfo],
    per_head: Mapping[str, Float[np.ndarray, "n_layers max_heads"]],
    label: ScoreLabel,
    *,
    n: Int[np.ndarray, "n_layers max_heads"],
    n_seq: Int[np.ndarray, "n_layers max_heads"],
    flags: Sequence[str] | None = None,
) -> list[Row]:
    """One Row per query head; of `score`, halves, spread and interval, those absent from `per_head` are NaN.

    `flags`: of each row, in order.
    """
    names = ("score", "half_a", "half_b", "sd_seq", "ci_lo", "ci_hi")
    # Lists of Python numbers: to read an array number by number takes five times as long.
    columns = {name: per_head[name].tolist() if name in per_head else None for name in names}
    rows, sequences = n.tolist(), n_seq.tolist()
    flag = iter(flags or repeat(""))
    return [
        Row(
            layer=info.index,
            head=head,
            kv_head=info.kv_head(head),
            kind=info.kind,
            window=info.window,
            detector=label.detector,
            version=label.version,
            probe=label.probe,
            n_seq=int(sequences[layer_slot][head]),
            n=int(rows[layer_slot][head]),
            flags=next(flag),
            **{name: np.nan if x is None else float(x[layer_slot][head]) for name, x in columns.items()},
        )
        for layer_slot, info in enumerate(layers)
        for head in range(info.n_heads)
    ]


def _shared_error(
    row_error: Float[np.ndarray, "n n_layers heads"], counted: Bool[np.ndarray, "n n_layers heads"]
) -> Float[np.ndarray, "n_layers heads"]:
    """The root mean square over sequences; NaN where none has two rows."""
    known = counted & ~np.isnan(row_error)
    return np.sqrt(_mean(np.where(known, row_error, 0) ** 2, known))


def _joined(*flags: str) -> str:
    return ";".join(flag for flag in flags if flag)


def _mean(value: Float[np.ndarray, "n ..."], counted: Bool[np.ndarray, "n ..."]) -> Float[np.ndarray, "..."]:
    n = counted.sum(0)
    return np.where(n > 0, np.where(counted, value, 0).sum(0) / np.maximum(n, 1), np.nan)


def _spread(value: Float[np.ndarray, "n ..."], counted: Bool[np.ndarray, "n ..."]) -> Float[np.ndarray, "..."]:
    n = counted.sum(0)
    squares = np.where(counted, (value - _mean(value, counted)) ** 2, 0).sum(0)
    return np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)
