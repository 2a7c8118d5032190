"""The shape of a head's rows, whatever they attend to: how spread, how far back, how much beyond a window."""

from __future__ import annotations

from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording


@detector("entropy", needs={"entropy"}, direction="none", units="nats")
def entropy(recording: Recording) -> PerSequence:
    """Entropy of the row, −Σ A ln A, the learned sink counted as one outcome."""
    return recording["entropy"]


@detector("mean_distance", needs={"mean_distance"}, units="tokens")
def mean_distance(recording: Recording) -> PerSequence:
    """How far back the row looks on average, Σ_j A[i, j] · (i − j)."""
    return recording["mean_distance"]


@detector("far_mass", needs={"far_mass"})
def far_mass(recording: Recording) -> PerSequence:
    """Attention beyond the last w keys, Σ_{S ≤ j ≤ i−w} A[i, j], rows i ≥ w; S = 0 and w = 256 unless given."""
    return recording["far_mass"]


@detector("normalized_entropy", needs={"normalized_entropy"}, direction="none", units="share of ln(i + 1)")
def normalized_entropy(recording: Recording) -> PerSequence:
    """Entropy of the row over that of a uniform one, rows i ≥ 1: 1 is uniform, 0 a single key."""
    return recording["normalized_entropy"]


@detector("effective_support", needs={"effective_support"}, units="tokens", by_default=False)
def effective_support(recording: Recording) -> PerSequence:
    """How many keys the row spreads over, 1 / Σ A²."""
    return recording["effective_support"]


@detector("window_saturation", needs={"window_saturation"}, by_default=False)
def window_saturation(recording: Recording) -> PerSequence:
    """Attention on the last tenth of a sliding layer's own window, rows i ≥ window: would it like to see farther?"""
    return recording["window_saturation"]
