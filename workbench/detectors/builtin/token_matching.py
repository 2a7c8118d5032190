"""Heads that attend by position or token identity: previous, current and duplicate token, induction.

Reference:
    Olsson et al. 2022, In-context Learning and Induction Heads, "prefix matching score". Here the target cells
    are computed from the tokens, so that the score is defined on any sequence, and no row is dropped.
"""

from __future__ import annotations

from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording


@detector("previous_token", needs={"previous_token"}, direction="low")
def previous_token(recording: Recording) -> PerSequence:
    """Attention on the token before: A[i, i−1], rows i ≥ 1."""
    return recording["previous_token"]


@detector("current_token", needs={"current_token"}, direction="low")
def current_token(recording: Recording) -> PerSequence:
    """Attention on the token itself: A[i, i], all rows."""
    return recording["current_token"]


@detector("duplicate_token", needs={"duplicate_token"})
def duplicate_token(recording: Recording) -> PerSequence:
    """Attention on earlier occurrences of the same token, rows that have one."""
    return recording["duplicate_token"]


@detector("induction", needs={"induction"})
def induction(recording: Recording) -> PerSequence:
    """Attention on the tokens that followed earlier occurrences of this token, rows that have one."""
    return recording["induction"]
