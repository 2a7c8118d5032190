"""All scores of one detector as small integers, sent once, so that another checkpoint needs no server."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from workbench.emergence.head_trajectories import Trajectories, short_count
from workbench.figures.axis import AxisUnit, TrainingAxis, amount_of, training_axis
from workbench.figures.style import LETTERS
from workbench.figures.trajectories import RunLike, score_scale, trajectories

THRESHOLD = 0.3
# From so many scores on they are sent in 8 bits and without intervals, so that a page stays below 1 MB.
MANY = 150_000


def planes(runs: Sequence[RunLike], detector: str, probe: str, *, x: AxisUnit = "tokens") -> dict[str, Any]:
    """The scores of all runs at all checkpoints, and the positions in training that the slider stops at.

    Scores and intervals are unsigned integers of `bits` over their range, the highest for none: an error below 1e-5 of
    it with 16 bits, below 0.2 % with 8, and then without intervals (""). `threshold` is null for detectors with a unit
    of their own, whose heads are not counted.
    """
    each = [trajectories(run, detector, probe) for run in runs]
    axis = training_axis([found.checkpoints for found in each], x)
    scale = score_scale(detector, [found.score for found in each])
    bits = 8 if sum(found.score.size for found in each) > MANY else 16
    stops = sorted({amount_of(at, axis.unit) for found in each for at in found.checkpoints})
    return {
        "detector": detector,
        "version": _version(runs, detector, probe),
        "unit": scale.unit,
        "threshold": None if scale.unit else THRESHOLD,
        "stops": [_stop(amount, axis) for amount in stops],
        "runs": {
            run.name: _plane(run, found, stops, axis=axis, bits=bits) for run, found in zip(runs, each, strict=True)
        },
    }


def stop_of(data: dict[str, Any], step: int | None) -> int:
    """The slider position of a step of the first run, the last position for None or an unknown later step."""
    first = next(iter(data["runs"].values()), None)
    last = len(data["stops"]) - 1
    if first is None or step is None:
        return last
    for position, column in enumerate(first["columns"]):
        if column >= 0 and first["steps"][column] >= step:
            return position
    return last


def _version(runs: Sequence[RunLike], detector: str, probe: str) -> str:
    """The detector with the versions that its last scores come from."""
    last = [run.scores(detector=detector, probe=probe, step="last", columns=("version",)) for run in runs]
    versions = sorted({int(version) for table in last for version in table.loc[:, "version"].unique()})
    return f"{detector}@{','.join(map(str, versions))}"


def _stop(amount: float | int, axis: TrainingAxis) -> dict[str, Any]:
    return {
        "x": amount if amount > 0 else axis.zero,
        "label": _amount(amount, axis),
    }


def _amount(amount: float | int, axis: TrainingAxis) -> str:
    return f"{short_count(amount)} tokens" if axis.unit == "tokens" else f"step {int(amount):,}"


def _plane(
    run: RunLike, found: Trajectories, stops: Sequence[float], *, axis: TrainingAxis, bits: int
) -> dict[str, Any]:
    arrays = found.score, found.ci_lo, found.ci_hi
    low = min((float(np.nanmin(a)) for a in arrays if not np.isnan(a).all()), default=0.0)
    high = max((float(np.nanmax(a)) for a in arrays if not np.isnan(a).all()), default=1.0)
    onsets = run.onsets(found.detector, probe=found.probe).loc[
        :, "onset_tokens" if axis.unit == "tokens" else "onset_step"
    ]
    amounts = np.array([amount_of(at, axis.unit) for at in found.checkpoints])
    return {
        "low": low,
        "high": high,
        "bits": bits,
        "score": _packed(found.score, low, high, bits=bits),
        "ci_lo": "" if bits == 8 else _packed(found.ci_lo, low, high, bits=bits),
        "ci_hi": "" if bits == 8 else _packed(found.ci_hi, low, high, bits=bits),
        "n": found.n.max(1).tolist(),
        "heads": [str(head) for head in found.heads],
        "cells": [[place, head[1]] for place, head in zip(found.layer_slots, found.heads, strict=True)],
        "width": found.width,
        "kinds": [found.layer_of(row).kind for row in range(len(found.heads))],
        "layers": _layers_in_words(found),
        "checkpoints": [str(at) for at in found.checkpoints],
        "names": [at.name for at in found.checkpoints],
        "steps": [at.step if at.step_total is None else at.step_total for at in found.checkpoints],
        # at every stop the last checkpoint so far; -1 before the first
        "columns": (np.searchsorted(amounts, stops, side="right") - 1).tolist(),
        "first_onset": "" if onsets.isna().all() else _amount(float(onsets.min()), axis),
    }


def _packed(values: Float[np.ndarray, "heads ckpts"], low: float | int, high: float | int, *, bits: int) -> str:
    """By checkpoint, then head; little-endian."""
    missing = 2**bits - 1
    levels = np.where(np.isnan(values), missing, np.round((values - low) / ((high - low) or 1.0) * (missing - 1)))
    return base64.b64encode(levels.T.astype(f"<u{bits // 8}").tobytes()).decode()


def _layers_in_words(found: Trajectories) -> str:
    kinds = [layer.kind for layer in found.layers]
    return " · ".join(f"{kinds.count(kind)} {LETTERS[kind]}" for kind in LETTERS if kind in kinds)
