"""Query-focused retrieval heads (QRHead): attention of a question on its document, less that of an empty question.

Reference:
    Zhang et al. 2025, Query-Focused Retrieval Heads Improve Long-Context Reasoning and Re-ranking (QRHead), its
    `attn_retriever.py`: the sum over the document's tokens, which grows with their number, less those more than two
    standard deviations below their mean. There a head is ranked by the mean over questions (`detect_qrhead_lme.py`), or
    by how well its scores rank the documents (`detect_qrhead_beir.py`). There rows have a full causal mask, here the
    layer's own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.detectors.registry import detector
from workbench.heads import WorkbenchError
from workbench.hooks import PerSequence, Recording, RowReading, Sequences

_DEVIATIONS = 2
_DEEPEST_RANK = 10  # of nDCG@10


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


def document_columns(
    pattern: Float[Tensor, "r keys"], rows: Int[Tensor, "r 2"], batch: Sequences
) -> Float[Tensor, " n"]:
    """`gold_columns` of every document, the gold one first, each followed by one NaN."""
    if batch.documents is None:
        raise WorkbenchError("documents are ranked where the probe lists them; pass probes=probes.gold_document(m)")
    gold = gold_columns(pattern, rows, batch)
    end = gold.new_full((1,), torch.nan)
    assert batch.answers is not None
    assert batch.needles is not None
    gold_start = int(batch.needles[batch.answers[:, 0] == rows[0, 0]][0, 0])
    spans = batch.documents[batch.documents[:, 0] == rows[0, 0]][:, 1:].tolist()
    others = [pattern[:, start:stop].sum(0) for start, stop in spans if start != gold_start]
    return torch.cat([piece for columns in (gold, *others) for piece in (columns, end)])


_DOCUMENTS = RowReading("document_columns", question_rows, document_columns)


@detector("qr_head_ndcg", needs={_DOCUMENTS}, needs_pairs=True, units="nDCG@10")
def qr_head_ndcg(recording: Recording) -> PerSequence:
    """nDCG@10 of the documents ranked by `qr_head`: 1 if the gold one is first, 0 if it is beyond the tenth."""
    reading = recording.readings[_DOCUMENTS.name]
    attention = reading.values / reading.rows[..., None]
    gained = attention[0::2] - attention[1::2]
    rows = reading.rows[0::2] * (reading.rows[1::2] > 0)
    ndcg = torch.stack([_ndcg(of_question) for of_question in gained]) if len(gained) else rows.double()
    return PerSequence(torch.where(rows > 0, ndcg * rows, torch.nan), rows)


def _ndcg(gained: Float[Tensor, "n_layers max_heads n"]) -> Float[Tensor, "n_layers max_heads"]:
    """Of one question: 1 / log2(1 + rank of the gold document); equal scores share the mean of their ranks."""
    is_token = gained.isfinite().any(0).any(0)
    last = int(is_token.nonzero().max()) + 1 if bool(is_token.any()) else 0
    ends = (~is_token[: last + 1]).nonzero()[:, 0].tolist()
    starts = [0, *(end + 1 for end in ends)]
    scores = torch.stack([_without_outliers(gained[..., a:b]).sum(-1) for a, b in zip(starts, ends, strict=False)], -1)
    gold, others = scores[..., :1], scores[..., 1:]
    rank = 1 + (others > gold).sum(-1) + (others == gold).sum(-1) / 2
    return torch.where(rank <= _DEEPEST_RANK, 1 / torch.log2(1 + rank), 0)


def _without_outliers(gained: Float[Tensor, "*b n_tokens"]) -> Float[Tensor, "*b n_tokens"]:
    """0 in place of tokens more than two deviations below the mean; NaN stays."""
    n = gained.isfinite().sum(-1, keepdim=True)
    mean = gained.nansum(-1, keepdim=True) / n
    deviation = ((gained - mean).square().nansum(-1, keepdim=True) / (n - 1)).sqrt()
    without = torch.where(gained > mean - _DEVIATIONS * deviation, gained, 0)
    return torch.where(gained.isfinite(), without, torch.nan)


def _gained(
    recording: Recording,
) -> tuple[Float[Tensor, "n n_layers max_heads n_tokens"], Int[Tensor, "n n_layers max_heads"]]:
    """Of each question, the gain of each token of its document; 0 if more than two deviations below the mean."""
    reading = recording.readings[_GOLD.name]
    attention = reading.values / reading.rows[..., None]
    return _without_outliers(attention[0::2] - attention[1::2]), reading.rows[0::2] * (reading.rows[1::2] > 0)
