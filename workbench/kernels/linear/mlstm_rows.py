"""Implied rows of an mLSTM: exponential input gates, a forget gate per head and token, and a normaliser.

    A[i, j] = S[i, j] / (max(|Σ_j S[i, j]|, exp(−m_i)) + eps),  S[i, j] = (q_i · k_j) exp(F_i − F_j + I_j − m_i)

with F the running sum of the log forget gate, I the log input gate, and m_i = max(F_i, max_{j ≤ i} F_i − F_j + I_j) the
state's own scale, which cancels but for eps. With u_j = I_j − F_j, the exponent is u_j − max(0, max_{j ≤ i} u_j), never
above 0. One matrix product and one pass of exp per block of rows; a row's sum is over float64. float32, F in float64;
tested to 5e-6 relative of float64 where a row's terms do not cancel. Where they do, the divisor loses as many digits as
Σ_j |A[i, j]| is large, in the model's own float32 too.

Reference:
    Beck et al. 2024, xLSTM, eq. 19 to 27; eps is that of the implementation in transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.linear.signed_rows import RowMaker
from workbench.kernels.tiles import Scratch


@dataclass(frozen=True, slots=True)
class MlstmRows:
    """The rows of heads that start from an empty state. `q` has its scale in it; log gates are in nats."""

    q: Float[Tensor, "b n_heads t d"]
    k: Float[Tensor, "b n_heads t d"]
    log_forget: Float[Tensor, "b n_heads t"]
    log_input: Float[Tensor, "b n_heads t"]
    eps: float

    @property
    def shape(self) -> tuple[int, int, int]:
        n_sequences, n_heads, n_tokens, _ = self.q.shape
        return n_sequences, n_heads, n_tokens

    @property
    def device(self) -> torch.device:
        return self.q.device

    def prepare(self, batch: slice, heads: slice) -> RowMaker:
        q, k = self.q[batch, heads].float(), self.k[batch, heads].float()
        forgotten = self.log_forget[batch, heads].double().cumsum(-1)
        written = self.log_input[batch, heads].double() - forgotten
        highest = written.cummax(-1).values.clamp_min(0)
        floor = torch.exp(-(forgotten + highest))

        def make_rows(rows: Int[Tensor, " q"], scratch: Scratch) -> Float[Tensor, "b h q k2"]:
            first, n_keys = int(rows[0]), int(rows[-1]) + 1
            products = q[:, :, rows] @ rearrange(k[:, :, :n_keys], "b h k d -> b h d k")
            signed = scratch.take(0, tuple(products.shape)).copy_(products)
            # The difference is over float64: both sides grow with the sequence, and rounded they would lose digits.
            decay = torch.sub(written[..., None, :n_keys], highest[..., rows, None], out=scratch.second(signed))
            signed *= decay.clamp_max_(0).exp_()
            ahead = torch.arange(first + 1, n_keys, device=rows.device)
            signed[..., first + 1 :].masked_fill_(ahead > rows[:, None], 0)
            total = signed.sum(-1, dtype=torch.float64).abs()
            signed /= (torch.maximum(total, floor[..., rows]) + self.eps)[..., None].float()
            return signed

        return make_rows
