"""Attention that goes nowhere: on the first token, and on a learned sink logit.

Reference:
    Gu et al. 2024, When Attention Sink Emerges in Language Models, equation of α for k = 0, before its threshold.
"""

from __future__ import annotations

from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording


@detector("sink", needs={"sink_mass"}, direction="none")
def sink(recording: Recording) -> PerSequence:
    """Attention on the first token, Σ_i A[i, 0] / T."""
    return recording["sink_mass"]


@detector("learned_sink", needs={"learned_sink_mass"}, direction="none")
def learned_sink(recording: Recording) -> PerSequence:
    """Share of the softmax that the learned sink logit takes, sigmoid(s − lse); no row in layers without one."""
    return recording["learned_sink_mass"]
