"""Head scores: registered functions over one Recording, and the framework that averages, counts and bootstraps."""

from workbench.detectors.measuring import Measured, measure, score, series_far
from workbench.detectors.registry import Detector, all_detectors, detector, find_detectors

__all__ = [
    "Detector",
    "Measured",
    "all_detectors",
    "detector",
    "find_detectors",
    "measure",
    "score",
    "series_far",
]
