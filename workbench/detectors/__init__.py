"""Head scores: registered functions of one Recording, and the framework that averages, counts and bootstraps them."""

from workbench.detectors.baselines import layer_matched, untrained, untrained_scores
from workbench.detectors.builtin.massive_activations import massive_activations
from workbench.detectors.builtin.sinks import gu_sink
from workbench.detectors.builtin.weight_circuits import composition
from workbench.detectors.decoded_probes import DecodedInstance, Decoding, decode, decoded
from workbench.detectors.describing import Description, describe
from workbench.detectors.measuring import WEIGHTS, Measured, measure, measure_weights, score, series_far
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
from workbench.detectors.unscored import UnscoredWarning
from workbench.emergence.thresholds import THRESHOLDS, Threshold, claims

__all__ = [
    "THRESHOLDS",
    "WEIGHTS",
    "AnyDetector",
    "DecodedInstance",
    "Decoding",
    "Description",
    "Detector",
    "Measured",
    "PerHead",
    "Threshold",
    "UnscoredWarning",
    "WeightDetector",
    "all_detectors",
    "claims",
    "composition",
    "decode",
    "decoded",
    "describe",
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
