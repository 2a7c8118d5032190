"""The shape of a head's rows: entropy and support, mean distance, and the mass beyond windows.

`far_mass_16` to `far_mass_4096` describe the distance distribution: 1 − far_mass_w is its distribution function at w.
The mass beyond a model's own window is the attention that this window removes.

Reference:
    Mass beyond a window = 1 − exp(lse within − lse), for any mask and learned sink.
"""

from __future__ import annotations

from workbench.detectors.registry import detector
from workbench.hooks import FarSum, PerSequence, Recording

WINDOWS = (16, 64, 256, 1024, 4096)


@detector("entropy", needs={"entropy"}, direction="none", units="nats")
def entropy(recording: Recording) -> PerSequence:
    """Entropy of the row, −Σ A ln A, the learned sink counted as one outcome."""
    return recording["entropy"]


@detector("mean_distance", needs={"mean_distance"}, units="tokens")
def mean_distance(recording: Recording) -> PerSequence:
    """Mean attention distance of the row, Σ_j A[i, j] · (i − j)."""
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
    """Effective number of keys that the row attends to, 1 / Σ A²."""
    return recording["effective_support"]


@detector("window_saturation", needs={"window_saturation"}, by_default=False)
def window_saturation(recording: Recording) -> PerSequence:
    """Attention on the last tenth of a sliding layer's own window, rows i ≥ window."""
    return recording["window_saturation"]


def _far_mass_beyond(window: int) -> None:
    name = f"far_mass_{window}"

    @detector(name, needs={FarSum(name, window)}, by_default=False)
    def far_mass_beyond(recording: Recording) -> PerSequence:
        """Attention a given number of tokens back or more, on rows with as many tokens before them."""
        return recording[name]


for _window in WINDOWS:
    _far_mass_beyond(_window)
