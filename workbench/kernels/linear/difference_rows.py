"""Rows of differential attention: the difference of two softmaxes of a head, which is signed and sums to 1 − λ.

Row i of head h is softmax(q¹_i · K¹) − λ softmax(q²_i · K²). float32; tested to 1e-5 of float64.

Reference:
    Ye et al. 2024, Differential Transformer, arXiv 2410.05258, eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.kernels.linear.signed_rows import RowMaker
from workbench.kernels.tiles import Scratch


@dataclass(frozen=True, slots=True)
class DifferenceRows:
    """The rows of heads with two softmaxes each over the same keys' positions.

    `q`, `k`: of the first and the second softmax, along the first axis; heads share keys in groups. `lam`: λ.
    `scale`: of q · k. `valid` is False on padding, whose keys have no weight.
    """

    q: Float[Tensor, "2 b n_heads t d"]
    k: Float[Tensor, "2 b n_kv_heads t d"]
    lam: float
    scale: float
    valid: Bool[Tensor, "b t"] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        _, n_sequences, n_heads, n_tokens, _ = self.q.shape
        return n_sequences, n_heads, n_tokens

    @property
    def device(self) -> torch.device:
        return self.q.device

    def prepare(self, batch: slice, heads: slice) -> RowMaker:
        group = self.q.shape[2] // self.k.shape[2]
        of_heads = torch.arange(self.q.shape[2], device=self.device)[heads] // group
        q = self.q[:, batch, heads].float() * self.scale
        k = rearrange(self.k[:, batch][:, :, of_heads].float(), "two b h t d -> two b h d t")
        hidden = None if self.valid is None else rearrange(~self.valid[batch], "b t -> b 1 1 t")

        def softmax(which: int, rows: Int[Tensor, " q"], buffer: Tensor) -> Tensor:
            """One softmax on keys 0 … last row, in place; a row that sees no key is 0."""
            first, n_keys = int(rows[0]), int(rows[-1]) + 1
            scores = torch.matmul(q[which][:, :, rows], k[which][..., :n_keys], out=buffer)
            ahead = torch.arange(first + 1, n_keys, device=rows.device)
            scores[..., first + 1 :].masked_fill_(ahead > rows[:, None], -torch.inf)
            if hidden is not None:
                scores.masked_fill_(hidden[..., :n_keys], -torch.inf)
            scores -= scores.amax(-1, keepdim=True).nan_to_num_(neginf=0)
            scores.exp_()
            return scores.div_(scores.sum(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).tiny))

        def make_rows(rows: Int[Tensor, " q"], scratch: Scratch) -> Float[Tensor, "b h q k2"]:
            shape = (*q.shape[1:3], len(rows), int(rows[-1]) + 1)
            signed = softmax(0, rows, scratch.take(0, shape))
            signed -= self.lam * softmax(1, rows, scratch.second(signed))
            return signed

        return make_rows
