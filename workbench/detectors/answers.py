"""Retrieval on known answers, teacher-forced: does the row that predicts an answer look at the answer's source?

Reference:
    Wu et al. 2024, Retrieval Head Mechanistically Explains Long-Context Factuality. Here the source is known from where
    the probe put it and the answer is forced, so that the score exists for checkpoints that cannot answer yet.
"""

from __future__ import annotations

from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording


@detector("retrieval", needs={"answer_mass"}, needs_answers=True)
def retrieval(recording: Recording) -> PerSequence:
    """Attention of the row that predicts an answer token on the cell that holds that token."""
    return recording["answer_mass"]


@detector("retrieval_top1", needs={"answer_top1"}, needs_answers=True)
def retrieval_top1(recording: Recording) -> PerSequence:
    """1 where that cell is the row's arg-max, else 0."""
    return recording["answer_top1"]
