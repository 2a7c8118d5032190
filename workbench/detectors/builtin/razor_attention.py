"""RazorAttention's echo and induction heads: attention on the same token before, and on the token after it.

The official score is the mean over earlier copies, so that a head that attends to the last copy alone scores at most
1/2 on four copies. The sums over copies are the same heads' whole attention.

Reference:
    Tang et al. 2024, RazorAttention, in Huawei's implementation (msmodelslim, `ra_compress`): 4 copies of 2500 tokens,
    the 14 % of key/value groups that induce most and the 1 % that echo most. There queries and keys are taken before
    the rotary embedding; here the probabilities are the model's own.
"""

from __future__ import annotations

from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording


@detector("echo_razor", needs={"duplicate_token"}, by_default=False)
def echo_razor(recording: Recording) -> PerSequence:
    """Attention on an earlier occurrence of the same token, averaged over all occurrences."""
    return _mean_over_cells(recording, "duplicate_token")


@detector("induction_razor", needs={"induction"}, by_default=False)
def induction_razor(recording: Recording) -> PerSequence:
    """Attention on a token that followed an earlier occurrence of this one, averaged over all occurrences."""
    return _mean_over_cells(recording, "induction")


@detector("echo_razor_sum", needs={"duplicate_token"}, by_default=False)
def echo_razor_sum(recording: Recording) -> PerSequence:
    """Attention on all earlier occurrences of the same token together; on any tokens equal to `duplicate_token`."""
    return recording["duplicate_token"]


@detector("induction_razor_sum", needs={"induction"}, by_default=False)
def induction_razor_sum(recording: Recording) -> PerSequence:
    """Attention on what followed all earlier occurrences of this token together; equal to `induction`."""
    return recording["induction"]


def _mean_over_cells(recording: Recording, need: str) -> PerSequence:
    mass = recording[need]
    share = mass.rows / recording.cells[need].clamp(min=1)[:, None, None]
    error = None if mass.row_error is None else mass.row_error * share
    return PerSequence(mass.total * share, mass.rows, error)
