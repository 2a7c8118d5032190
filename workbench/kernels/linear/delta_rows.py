"""Implied rows of a linear layer that erases what it overwrites: gated delta rule (decay per head), KDA (per channel).

A row is made by carrying its query back in time, A[i, j] = b_j r·k_j and r ← a_j ∘ (r − b_j (r·k_j) k_j), a whole chunk
of tokens per step. For a chunk with keys K, in-chunk running decay G and L = tril(diag(b) KKᵀ ∘ decay, −1):

    rows after the chunk:  A = r M with M = (K ∘ e^{G_end − G})ᵀ (I + L)⁻¹ diag(b);  r ← e^{G_end} ∘ r − A (K ∘ e^G)
    rows of the chunk:     A = tril(QKᵀ ∘ decay) (I + L)⁻¹ diag(b);                  r = e^{G_i} ∘ q_i − A (K ∘ e^G)

Only non-positive exponents occur. Cost: two matrix products of width d per row and key, twice those of a decaying
layer; writes 4 bytes per query row, head and key. float32, running decay in float64; tested to 5e-6 relative of
float64.

Reference:
    Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule over Sequence Length, section 3; here for
    the rows of the implied pattern instead of the output. Kimi Team 2025, Kimi Linear, for decay by channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from workbench.kernels.linear.decay_rows import of_heads
from workbench.kernels.linear.signed_rows import RowMaker
from workbench.kernels.tiles import Scratch

# Tokens per chunk. By channel the in-chunk products cost a pass per column, not one matrix product.
_CHUNK, _CHUNK_BY_CHANNEL = 64, 32


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """The rows of S_t = (I − b_t k_t k_tᵀ) diag(exp(log_decay_t)) S_{t−1} + b_t k_t v_tᵀ, read by q_t; b is `strength`.

    Heads share the queries and keys of their group. `log_decay` is per token, at most 0, with one rate per head or one
    per key channel. `valid` is False on padding, which writes nothing.
    """

    q: Float[Tensor, "b n_kv_heads t d"]
    k: Float[Tensor, "b n_kv_heads t d"]
    log_decay: Float[Tensor, "b n_heads t rates"]
    strength: Float[Tensor, "b n_heads t"]
    valid: Bool[Tensor, "b t"] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.q), self.log_decay.shape[1], self.q.shape[2]

    @property
    def device(self) -> torch.device:
        return self.q.device

    def prepare(self, batch: slice, heads: slice) -> RowMaker:
        n_heads = self.log_decay.shape[1]
        strength = self.strength[batch, heads].float()
        if self.valid is not None:
            strength = strength * self.valid[batch, None]
        q, k = (of_heads(x, batch, heads, n_heads) for x in (self.q, self.k))
        return _Chunks.of(q, k, self.log_decay[batch, heads].double(), strength).make_rows


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Per chunk: weights of its own rows, their carried queries, and its effect on the queries of later rows."""

    own: Float[Tensor, "b h n c c"]
    start: Float[Tensor, "b h n c d"]
    weigh: Float[Tensor, "b h n d c"]
    erase: Float[Tensor, "b h n c d"]
    fade: Float[Tensor, "b h n rates"]

    @classmethod
    def of(
        cls,
        q: Float[Tensor, "b h t d"],
        k: Float[Tensor, "b h t d"],
        log_decay: Float[Tensor, "b h t rates"],
        strength: Float[Tensor, "b h t"],
    ) -> _Chunks:
        size = _CHUNK if log_decay.shape[-1] == 1 else _CHUNK_BY_CHANNEL
        q, k, log_decay, b = (_cut(x, size) for x in (q, k, log_decay, strength[..., None]))
        total = log_decay.cumsum(-2)
        end = total[..., -1:, :]
        faded_k = k * torch.exp(total).float()
        qk, kk = _products_by_head(q, k, total) if total.shape[-1] == 1 else _products_by_channel(q, k, total)
        to_end = rearrange(k * torch.exp(end - total).float(), "b h n c d -> b h n d c")
        # X (I + L) = B for the rows of the chunk and for those after it, together.
        solved = torch.linalg.solve_triangular(
            (b * kk).tril(-1), torch.cat([qk.tril(), to_end], -2), upper=False, left=False, unitriangular=True
        ) * rearrange(b, "b h n c 1 -> b h n 1 c")
        own, weigh = solved[..., :size, :], solved[..., size:, :]
        start = q * torch.exp(total).float() - own @ faded_k
        return cls(own, start, weigh, faded_k, torch.exp(end[..., 0, :]).float())

    def make_rows(self, rows: Int[Tensor, " q"], scratch: Scratch) -> Float[Tensor, "b h q k2"]:
        """Signed rows on keys 0 … last row, chunk by chunk from the latest to the first."""
        size, n_keys = self.own.shape[-1], int(rows[-1]) + 1
        n_chunks = -(-n_keys // size)
        tile = scratch.take(0, (*self.own.shape[:2], len(rows), n_chunks * size))
        carried = self.start[:, :, rows // size, rows % size]
        bounds = torch.searchsorted(rows, size * torch.arange(n_chunks + 1, device=rows.device)).tolist()
        for c in reversed(range(n_chunks)):
            first, after = bounds[c], bounds[c + 1]
            columns = tile[..., c * size : (c + 1) * size]
            columns[:, :, :first] = 0
            columns[:, :, first:after] = self.own[:, :, c, rows[first:after] - c * size]
            if after < len(rows):
                later = carried[:, :, after:]
                weights = later @ self.weigh[:, :, c]
                columns[:, :, after:] = weights
                later *= self.fade[:, :, c, None]
                later -= weights @ self.erase[:, :, c]
        return tile[..., :n_keys]


def _cut(x: Float[Tensor, "b h t d"], size: int) -> Float[Tensor, "b h n c d"]:
    """Cut into chunks; tokens after the end neither decay nor write."""
    padded = pad(x, (0, 0, 0, -x.shape[2] % size))
    return rearrange(padded, "b h (n c) d -> b h n c d", c=size)


def _products_by_head(
    q: Float[Tensor, "b h n c d"], k: Float[Tensor, "b h n c d"], total: Float[Tensor, "b h n c 1"]
) -> tuple[Float[Tensor, "b h n c c"], Float[Tensor, "b h n c c"]]:
    """(q_i · k_j) and (k_i · k_j) with the decay from j to i; right for j ≤ i, finite elsewhere."""
    decay = torch.exp((total - rearrange(total, "b h n c 1 -> b h n 1 c")).clamp_max_(0)).float()
    k_t = rearrange(k, "b h n c d -> b h n d c")
    return (q @ k_t) * decay, (k @ k_t) * decay


def _products_by_channel(
    q: Float[Tensor, "b h n c d"], k: Float[Tensor, "b h n c d"], total: Float[Tensor, "b h n c d"]
) -> tuple[Float[Tensor, "b h n c c"], Float[Tensor, "b h n c c"]]:
    """The same with a decay per channel, one key of each chunk at a time: all at once would take c times the memory."""
    both = torch.stack([q, k])
    columns: list[Tensor] = []
    for j in range(k.shape[-2]):
        faded = torch.exp((total - total[..., j : j + 1, :]).clamp_max_(0)).float() * k[..., j : j + 1, :]
        columns.append(einsum(both, faded, "two b h n c d, b h n c d -> two b h n c"))
    qk, kk = torch.stack(columns, -1)
    return qk, kk
