"""Measure a model's weights: one reading for all detectors together, rows of scores out, under the probe `weights`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from workbench.detectors.registry import PerHead, WeightDetector
from workbench.heads import LayerInfo, Row
from workbench.hooks import HookedModel
from workbench.hooks.weights import read_weights

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
    return [
        Row(
            layer=info.index,
            head=head,
            kv_head=info.kv_head(head),
            kind=info.kind,
            window=info.window,
            detector=detector.name,
            version=detector.version,
            probe=WEIGHTS,
            score=float(measured.score[place, head]),
            half_a=math.nan,
            half_b=math.nan,
            sd_seq=math.nan,
            n_seq=0,
            n=int(measured.n[place, head]),
            ci_lo=math.nan,
            ci_hi=math.nan,
        )
        for place, info in enumerate(layers)
        for head in range(info.n_heads)
    ]
