"""Heads that look from a question at the document that answers it, and not from an empty question.

Reference:
    Zhang et al. 2025, Query-Focused Retrieval Heads Improve Long-Context Reasoning and Re-ranking (QRHead), its
    `attn_retriever.py`: the sum over the document's tokens, which grows with their number, less those more than two
    standard deviations below their mean. There a head is ranked by the mean over questions; rows see what a full causal
    mask lets them, here what the layer's own does.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.detectors.registry import detector
from workbench.heads import WorkbenchError
from workbench.hooks import PerSequence, Recording, RowReading, Sequences

_DEVIATIONS = 2


def question_rows(batch: Sequences) -> Int[Tensor, "n_rows 2"]:
    """The rows of all questions, empty ones included.

    Raises:
        WorkbenchError: if the sequences are no pairs.
    """
    if not batch.is_paired or batch.answers is None or batch.needles is None:
        raise WorkbenchError("query-focused scores need pairs of sequences; pass probes=probes.gold_document(m)")
    return batch.answers


def gold_columns(pattern: Float[Tensor, "r keys"], rows: Int[Tensor, "r 2"], batch: Sequences) -> Float[Tensor, " n"]:
    """Attention on each token of the gold document, summed over rows."""
    assert batch.answers is not None
    assert batch.needles is not None
    start, stop = batch.needles[batch.answers[:, 0] == rows[0, 0]][0].tolist()
    return pattern[:, start:stop].sum(0)


_GOLD = RowReading("gold_columns", question_rows, gold_columns)


@detector("qr_head", needs={_GOLD}, needs_pairs=True)
def qr_head(recording: Recording) -> PerSequence:
    """Attention of the question on its document less that of an empty question, summed over the document's tokens."""
    gained, rows = _gained(recording)
    return PerSequence(gained.nansum(-1) * rows, rows)


@detector("qr_head_mean", needs={_GOLD}, needs_pairs=True)
def qr_head_mean(recording: Recording) -> PerSequence:
    """`qr_head` per token of the document, so that long documents do not score higher for their length."""
    gained, rows = _gained(recording)
    n_tokens = gained.isfinite().sum(-1).clamp(min=1)
    return PerSequence(gained.nansum(-1) / n_tokens * rows, rows)


def _gained(
    recording: Recording,
) -> tuple[Float[Tensor, "n n_layers max_heads n_tokens"], Int[Tensor, "n n_layers max_heads"]]:
    """Of each question, what each token of its document gains; 0 if more than two deviations below the mean."""
    reading = recording.readings[_GOLD.name]
    attention = reading.values / reading.rows[..., None]
    gained = attention[0::2] - attention[1::2]
    is_token = gained.isfinite()
    n = is_token.sum(-1, keepdim=True)
    mean = gained.nansum(-1, keepdim=True) / n
    deviation = ((gained - mean).square().nansum(-1, keepdim=True) / (n - 1)).sqrt()
    kept = torch.where(gained > mean - _DEVIATIONS * deviation, gained, 0)
    return torch.where(is_token, kept, torch.nan), reading.rows[0::2] * (reading.rows[1::2] > 0)
