"""Head scores: registered functions over one Recording, and the framework that averages, counts and bootstraps."""

from workbench.detectors.circuits import composition
from workbench.detectors.measuring import Measured, measure, score, series_far
from workbench.detectors.registry import (
    AnyDetector,
    Detector,
    PerHead,
    WeightDetector,
    all_detectors,
    detector,
    find_detectors,
    weight_detector,
)
from workbench.detectors.weights import WEIGHTS, measure_weights

__all__ = [
    "WEIGHTS",
    "AnyDetector",
    "Detector",
    "Measured",
    "PerHead",
    "WeightDetector",
    "all_detectors",
    "composition",
    "detector",
    "find_detectors",
    "measure",
    "measure_weights",
    "score",
    "series_far",
    "weight_detector",
]
