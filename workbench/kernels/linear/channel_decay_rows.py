"""Implied rows of a linear layer whose channels each forget at rates of their own: Mamba-1, RG-LRU, RWKV-4.

P_c[i, j] = read_i[c] (Σ_n q_i[n] k_j[n] exp(rates[c, n] (G_i[c] − G_j[c]))) strength_j[c], with G the running sum of
the log decay, plus a skip on the diagonal. A head is a run of channels, and its row the mean of its channels' rows.

1. The causal triangle of a block of rows is cut into rectangles of rows i ≥ m and keys j ≤ m.
2. In each, exp(G_i − G_m) goes into the queries and exp(G_m − G_j) into the keys: no exponent is above 0.
3. One matrix product over channels and n gives the rectangle; channels come in runs that fit a few MB.

Reads per block: strength and log decay of the keys once, log2(rows) times where the rows are; writes 4 bytes per query
row, head and key. float32, G in float64; tested to 5e-6 of float64, relative to the sum of the channels' weights.

Reference:
    Ali et al. 2024, The Hidden Attention of Mamba Models, eq. 11: the patterns of the channels of Mamba-1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.kernels.linear.signed_rows import RowMaker
from workbench.kernels.tiles import Scratch

# Numbers of the queries and keys that are made at once.
_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class ChannelDecayRows:
    """The rows of `n_heads` runs of channels, each the mean over its channels of P_c.

    `log_decay` is per token and channel, at most 0; `rates` multiply it, at least 0. `read` and `skip` are absent where
    they are 1 and 0. With `sees_itself` False the weight of j < i has G_{i−1} in place of G_i, and that of j = i is the
    skip alone. `valid` is False on padding, whose keys have no weight.
    """

    n_heads: int
    q: Float[Tensor, "b t n"]
    k: Float[Tensor, "b t n"]
    log_decay: Float[Tensor, "b t c"]
    rates: Float[Tensor, "c n"]
    strength: Float[Tensor, "b t c"]
    read: Float[Tensor, "b t c"] | None = None
    skip: Float[Tensor, "#b #t c"] | None = None
    valid: Bool[Tensor, "b t"] | None = None
    sees_itself: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.q), self.n_heads, self.q.shape[1]

    @property
    def device(self) -> torch.device:
        return self.q.device

    def by_channel(self) -> ChannelDecayRows:
        """The rows of every channel, as heads of one channel each."""
        return replace(self, n_heads=self.log_decay.shape[-1])

    def handed_on(self, v: Float[Tensor, "b n_heads t c"]) -> Float[Tensor, "b n_heads t c"]:
        """Every channel's rows times its values. T × T, some channels at a time: for a few tokens only."""
        n_sequences, _, n_tokens = self.shape
        source, values = self.by_channel(), rearrange(v.float(), "b h t p -> b (h p) t")
        step = max(1, _AT_ONCE // (n_sequences * n_tokens**2))
        rows, scratch, outs = torch.arange(n_tokens, device=self.device), Scratch(self.device), list[Tensor]()
        for first in range(0, source.n_heads, step):
            channels = slice(first, min(source.n_heads, first + step))
            pattern = source.prepare(slice(0, n_sequences), channels)(rows, scratch)
            outs.append(einsum(pattern, values[:, channels], "b c i j, b c j -> b i c"))
        return rearrange(torch.cat(outs, -1), "b t (h p) -> b h t p", h=self.n_heads)

    def prepare(self, batch: slice, heads: slice) -> RowMaker:
        width = self.log_decay.shape[-1] // self.n_heads
        channels = slice(heads.start * width, heads.stop * width)
        n_heads = heads.stop - heads.start

        def by_head(x: Tensor) -> Tensor:
            return rearrange(x[..., channels], "b t (h p) -> b t h p", h=n_heads)

        strength = by_head(self.strength[batch].float())
        if self.valid is not None:
            strength = torch.where(rearrange(self.valid[batch], "b t -> b t 1 1"), strength, 0)
        parts = _Parts(
            q=self.q[batch].float(),
            k=self.k[batch].float(),
            total=by_head(self.log_decay[batch].double().cumsum(1)),
            rates=rearrange(self.rates[channels].float(), "(h p) n -> h p n", h=n_heads),
            strength=strength,
            read=None if self.read is None else by_head(self.read[batch].float()),
        )
        skip = self._skip(batch, channels, n_heads)

        def make_rows(rows: Int[Tensor, " q"], scratch: Scratch) -> Float[Tensor, "b h q k2"]:
            n_keys, states = int(rows[-1]) + 1, rows if self.sees_itself else rows - 1
            signed = scratch.take(0, (len(parts.q), n_heads, len(rows), n_keys)).zero_()
            for span, keys in _rectangles(states.tolist()):
                parts.add_products(signed[:, :, span, keys], rows[span], states[span], keys)
            signed /= width
            if skip is not None:
                signed[:, :, torch.arange(len(rows), device=rows.device), rows] += skip[:, :, rows]
            return signed

        return make_rows

    def _skip(self, batch: slice, channels: slice, n_heads: int) -> Float[Tensor, "b h t"] | None:
        if self.skip is None:
            return None
        everywhere = self.skip.float().expand(len(self.q), self.q.shape[1], -1)[batch][..., channels]
        mean = reduce(everywhere, "b t (h p) -> b h t", "mean", h=n_heads)
        return mean if self.valid is None else mean * self.valid[batch, None]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the rows of some sequences and heads are made of; `p`: the channels of a head."""

    q: Float[Tensor, "b t n"]
    k: Float[Tensor, "b t n"]
    total: Float[Tensor, "b t h p"]
    rates: Float[Tensor, "h p n"]
    strength: Float[Tensor, "b t h p"]
    read: Float[Tensor, "b t h p"] | None

    def add_products(
        self, out: Float[Tensor, "b h q k"], rows: Int[Tensor, " q"], states: Int[Tensor, " q"], keys: slice
    ) -> None:
        """Add the sums over channels of the rows on keys that end at or before the first of the states they read."""
        n_sequences, n_heads = len(self.q), self.rates.shape[0]
        step = max(1, _AT_ONCE // (n_sequences * n_heads * self.q.shape[-1] * max(len(rows), keys.stop - keys.start)))
        for first in range(0, self.rates.shape[1], step):
            some = slice(first, first + step)
            pivot = self.total[:, keys.stop - 1, None, :, some]
            since = (self.total[:, states, :, some] - pivot).float()
            until = (pivot - self.total[:, keys, :, some]).float()
            queries = self._decayed(self.q[:, rows], since, some)
            if self.read is not None:
                queries *= self.read[:, rows, :, some, None]
            held = self._decayed(self.k[:, keys], until, some) * self.strength[:, keys, :, some, None]
            out += einsum(queries, held, "b q h p n, b k h p n -> b h q k")

    def _decayed(
        self, x: Float[Tensor, "b t n"], nats: Float[Tensor, "b t h p"], some: slice
    ) -> Float[Tensor, "b t h p n"]:
        return torch.exp(nats[..., None] * self.rates[:, some]) * rearrange(x, "b t n -> b t 1 1 n")


def _rectangles(states: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Cut the rows that see keys 0 … their state into (rows, keys) whose last key is the first row's state."""
    if states[0] >= 0:
        yield slice(0, len(states)), slice(0, states[0] + 1)
    open_spans = [(1, len(states), states[0] + 1)]
    while open_spans:
        first, stop, key = open_spans.pop()
        if first >= stop:
            continue
        middle = (first + stop) // 2
        if states[middle] >= key:
            yield slice(middle, stop), slice(key, states[middle] + 1)
        open_spans += [(first, middle, key), (middle + 1, stop, max(key, states[middle] + 1))]
