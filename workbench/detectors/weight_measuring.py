"""Measure a model's weights: one reading for all detectors together, rows of scores out, under the probe `weights`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.detectors.registry import PerHead, WeightDetector
from workbench.detectors.scoring import table_rows
from workbench.heads import LayerInfo, Row
from workbench.hooks import HookedModel
from workbench.hooks.head_weights import read_weights

# What stands where other scores have the name of their probe.
WEIGHTS = "weights"


def measure_weights(m: HookedModel, detectors: Sequence[WeightDetector]) -> dict[str, list[Row]]:
    """The scores of every head by detector name; the weights are read once.

    Raises:
        WorkbenchError: if TransformerLens cannot open the model or gives no weights per head.
    """
    if not detectors:
        return {}
    weights = read_weights(m)
    return {d.name: _rows(d, d.function(weights), m.layers) for d in detectors}


def _rows(detector: WeightDetector, measured: PerHead, layers: Sequence[LayerInfo]) -> list[Row]:
    """One Row per query head; without sequences there are no halves, no spread and no interval."""
    n = measured.n.numpy()
    return table_rows(
        layers,
        {"score": measured.score.double().numpy()},
        n,
        np.zeros_like(n),
        detector=detector.name,
        version=detector.version,
        probe=WEIGHTS,
    )
