"""Attention weighted by value norms, for heads that attend to a token whose value is small.

Reference:
    Gu et al. 2024, When Attention Sink Emerges in Language Models, section 3 (the first token's value is small);
    Kobayashi et al. 2020, Attention is Not Only a Weight, eq. 5, with the norm of v before the output projection.
"""

from __future__ import annotations

import torch

from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording


@detector(
    "value_drain",
    needs={"sink_mass", "value_norm_seeing_first", "first_value_norm"},
    version=2,
    direction="none",
    units="share",
    by_default=False,
)
def value_drain(recording: Recording) -> PerSequence:
    """Share of the moved values that is not the first token's, 1 − Σ A[i, 0] ‖v_0‖ / Σ A[i, j] ‖v_j‖; softmax heads.

    Rows are those that see the first token.

    A sink head with a drained value scores near 1 although nearly all of its attention is on the first token.
    """
    moved, first = recording["value_norm_seeing_first"].total, recording["first_value_norm"]
    of_first = recording["sink_mass"].total * first.total
    has_rows = (first.rows > 0) & (moved > 0)
    return PerSequence(torch.where(has_rows, 1 - of_first / moved, torch.nan), has_rows.long())


@detector("output_norm", needs={"output_norm"}, direction="none", units="of the layer's mean head", by_default=False)
def output_norm(recording: Recording) -> PerSequence:
    """Norm of the head's output before the output projection, over the layer's mean: near 0 for inactive heads."""
    measured = recording["output_norm"]
    mean = (measured.total / measured.rows).nanmean(-1, keepdim=True)
    return PerSequence(measured.total / mean, measured.rows)
