"""Implied rows of a linear layer whose state only decays, one rate per head and token: lightning attention, Mamba-2.

A[i, j] = (q_i · k_j) strength_j exp(G_i − G_j) with G the running sum of the log decay, plus a skip on the diagonal.
One matrix product per block of rows. Reads per block: k once; writes 4 bytes per query row, head and key, passed over
once more for the decay where it cannot be folded into q and k. float32, G in float64; tested to 5e-6 relative of
float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.kernels.linear.signed_rows import RowMaker
from workbench.kernels.tiles import Scratch

# Largest decay (in nats) over a block that is folded into q and k: factors stay within e^±30.
_FOLDABLE = 60.0
# exp is exactly 0 in float32 beyond this many nats.
_GONE = 104.0


@dataclass(frozen=True, slots=True)
class DecayRows:
    """The rows (q_i · k_j) strength_j exp(G_i − G_j), j ≤ i, with `skip` added at j = i.

    Heads share the queries and keys of their group. `log_decay` is per token, at most 0. `valid` is False on padding,
    whose keys have no weight.
    """

    q: Float[Tensor, "b n_kv_heads t d"]
    k: Float[Tensor, "b n_kv_heads t d"]
    log_decay: Float[Tensor, "#b n_heads t"]
    strength: Float[Tensor, "b n_heads t"] | None = None
    skip: Float[Tensor, " n_heads"] | None = None
    valid: Bool[Tensor, "b t"] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.q), self.log_decay.shape[1], self.q.shape[2]

    @property
    def device(self) -> torch.device:
        return self.q.device

    def prepare(self, batch: slice, heads: slice) -> RowMaker:
        q, k = (of_heads(x, batch, heads, self.log_decay.shape[1]) for x in (self.q, self.k))
        if self.strength is not None:
            k = k * self.strength[batch, heads, :, None]
        if self.valid is not None:
            k = torch.where(rearrange(self.valid[batch], "b t -> b 1 t 1"), k, 0)
        log_decay = self.log_decay if len(self.log_decay) == 1 else self.log_decay[batch]
        total = log_decay[:, heads].double().cumsum(-1)
        skip = self._skip(batch, heads)

        def make_rows(rows: Int[Tensor, " q"], scratch: Scratch) -> Float[Tensor, "b h q k2"]:
            signed = _decayed_products(q, k, total, rows, scratch)
            first, n_keys = int(rows[0]), signed.shape[-1]
            ahead = torch.arange(first + 1, n_keys, device=rows.device)
            signed[..., first + 1 :].masked_fill_(ahead > rows[:, None], 0)
            if skip is not None:
                signed[:, :, torch.arange(len(rows), device=rows.device), rows] += skip[:, :, rows]
            return signed

        return make_rows

    def _skip(self, batch: slice, heads: slice) -> Float[Tensor, "#b h t"] | None:
        if self.skip is None:
            return None
        everywhere = self.skip.float()[None, heads, None].expand(-1, -1, self.q.shape[2])
        return everywhere if self.valid is None else everywhere * self.valid[batch, None]


def of_heads(
    x: Float[Tensor, "b n_kv_heads t d"], batch: slice, heads: slice, n_heads: int
) -> Float[Tensor, "b2 h t d"]:
    """The queries or keys that some heads read, those of their groups, in float32."""
    group = n_heads // x.shape[1]
    return x[batch][:, torch.arange(heads.start, heads.stop, device=x.device) // group].float()


def _decayed_products(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    total: Float[Tensor, "#b h t"],
    rows: Int[Tensor, " q"],
    scratch: Scratch,
) -> Float[Tensor, "b h q k2"]:
    """(q_i · k_j) exp(G_i − G_j) on keys 0 … last row; finite and unspecified for j > i.

    The decay is folded into q and k, exp(G_i − G_m) and exp(G_m − G_j), which saves a pass over the tile. Where it is
    too steep for that, it multiplies the few keys that it has not extinguished.
    """
    first, n_keys = int(rows[0]), int(rows[-1]) + 1
    begin, end = total[..., first, None], total[..., n_keys - 1, None]
    tile = scratch.take(0, (*q.shape[:2], len(rows), n_keys))
    flat = rearrange(tile, "b h q k -> (b h) q k")
    queries, keys = q[:, :, rows], k[:, :, :n_keys]
    if float((begin - end).max()) < _FOLDABLE:
        middle = (begin + end) / 2
        queries = queries * torch.exp(total[..., rows] - middle)[..., None].float()
        keys = keys * torch.exp(middle - total[..., :n_keys])[..., None].float()
        _products(queries, keys, flat)
        return tile
    is_alive = (total[..., :n_keys] - begin < _GONE).flatten(0, 1).any(0)
    alive = int(is_alive.int().argmax())
    tile[..., :alive] = 0
    _products(queries, keys[:, :, alive:], flat[..., alive:])
    between = total[..., rows, None] - total[..., None, alive:n_keys]
    tile[..., alive:] *= torch.exp(between.clamp_max_(0)).float()
    return tile


def _products(q: Float[Tensor, "b h q d"], k: Float[Tensor, "b h k d"], out: Float[Tensor, "bh q k"]) -> None:
    q, k = rearrange(q, "b h q d -> (b h) q d"), rearrange(k, "b h k d -> (b h) d k")
    if out.is_contiguous():
        torch.bmm(q, k, out=out)
    else:
        out.copy_(torch.bmm(q, k))
