"""Head scores: registered functions over one Recording, and the framework that averages, counts and bootstraps."""

from workbench.detectors.baselines import layer_matched, untrained, untrained_scores
from workbench.detectors.builtin.massive_activations import massive_activations
from workbench.detectors.builtin.sinks import gu_sink
from workbench.detectors.builtin.weight_circuits import composition
from workbench.detectors.decoded_probes import Decoding, Said, decode, decoded
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
from workbench.detectors.sketches import token_sketch
from workbench.detectors.split_half import reliability
from workbench.detectors.thresholds import THRESHOLDS, Threshold, claims
from workbench.detectors.weight_measuring import WEIGHTS, measure_weights

__all__ = [
    "THRESHOLDS",
    "WEIGHTS",
    "AnyDetector",
    "Decoding",
    "Detector",
    "Measured",
    "PerHead",
    "Said",
    "Threshold",
    "WeightDetector",
    "all_detectors",
    "claims",
    "composition",
    "decode",
    "decoded",
    "detector",
    "find_detectors",
    "gu_sink",
    "layer_matched",
    "massive_activations",
    "measure",
    "measure_weights",
    "reliability",
    "score",
    "series_far",
    "token_sketch",
    "untrained",
    "untrained_scores",
    "weight_detector",
]
