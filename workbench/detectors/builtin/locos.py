"""LOCOS, logit contribution of heads: what the needle adds to the logit of the answer, above the rest of the text.

Reference:
    LOCOS (arXiv 2607.01002), `aryopg/locos`, `logit_contrib.py`, without its tuned lens: φ_tj = A_tj u · W_O v_j, u the
    unembedding of the decoded token; S = Σ_needle φ − |needle| / |rest| Σ_rest φ, averaged over the steps that decode
    the answer. φ is the direct path: the final norm and later layers are left out. There an instance whose reply does
    not contain the answer in one piece scores 0; here it has no row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.detectors.decoded_probes import Decoding
from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording, RowReading, Sequences


def spelling_rows(batch: Sequences) -> Int[Tensor, "n_rows 2"]:
    """The rows that predict the needle, token by token, at its first occurrence in the reply."""
    none = torch.zeros(0, 2, dtype=torch.long, device=batch.tokens.device)
    if batch.answers is None or batch.needles is None:
        return none
    spelling = [none]
    for b in torch.unique(batch.answers[:, 0]).tolist():
        in_sequence = batch.answers[:, 0] == b
        rows, (start, stop) = batch.answers[in_sequence], batch.needles[in_sequence][0].tolist()
        reply, needle = batch.tokens[b, rows[:, 1] + 1], batch.tokens[b, start:stop]
        if len(reply) >= len(needle):
            matches = (reply.unfold(0, len(needle), 1) == needle).all(-1).nonzero()
            spelling += [rows[int(first) : int(first) + len(needle)] for first in matches[:1]]
    return torch.cat(spelling)


def from_needle(logits: Float[Tensor, "r keys"], rows: Int[Tensor, "r 2"], batch: Sequences) -> Float[Tensor, " 1"]:
    """Σ_needle φ − |needle| / |rest| Σ_rest φ, summed over rows; the rest is all other keys up to the row."""
    assert batch.answers is not None
    assert batch.needles is not None
    start, stop = batch.needles[batch.answers[:, 0] == rows[0, 0]][0].tolist()
    first = batch.first[rows[0, 0], rows[0, 1]]
    n_rest = rows[:, 1] + 1 - first - (stop - start)
    on_needle = logits[:, start:stop].sum(-1)
    return (on_needle - (logits.sum(-1) - on_needle) * (stop - start) / n_rest).sum().reshape(1)


@detector(
    "locos",
    needs={RowReading("locos", spelling_rows, from_needle, of="logit")},
    decoding=Decoding("recall", "offsets"),
    units="logits",
)
def locos(recording: Recording) -> PerSequence:
    """Direct contribution to the logit of the decoded token: from the needle, less from as much other text."""
    reading = recording.readings["locos"]
    if reading.values.shape[-1] == 0:
        return PerSequence(torch.full(reading.rows.shape, torch.nan), reading.rows)
    return PerSequence(reading.values[..., 0], reading.rows)
