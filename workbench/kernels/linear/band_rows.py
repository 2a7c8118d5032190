"""Implied rows of a gated short convolution: every channel of a head has a pattern, a band of a few keys.

Channel c weighs P_c[i, j] = read_i[c] · tap[c, i − j] · write_j[c] on the last keys, and the head's row is the mean
over its channels, A = mean_c P_c. A row times v is not what a channel hands on, P_c v_c, which `handed_on` gives.
Rows cost O(keys) to fill, the band itself O(taps × channels) per token. float32; tested to 1e-5 relative of float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from workbench.kernels.linear.decay_rows import of_heads
from workbench.kernels.linear.signed_rows import RowMaker
from workbench.kernels.tiles import Scratch


@dataclass(frozen=True, slots=True)
class BandRows:
    """The rows mean_c read_i[c] · tap[c, i − j] · write_j[c] on keys i − n_taps + 1 … i.

    `taps`: the weight of the own token first. `valid` is False on padding, whose keys have no weight.
    """

    reads: Float[Tensor, "b n_heads t c"]
    writes: Float[Tensor, "b n_heads t c"]
    taps: Float[Tensor, "n_heads c n_taps"]
    valid: Bool[Tensor, "b t"] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        n_sequences, n_heads, n_tokens, _ = self.reads.shape
        return n_sequences, n_heads, n_tokens

    @property
    def device(self) -> torch.device:
        return self.reads.device

    def prepare(self, batch: slice, heads: slice) -> RowMaker:
        n_heads, n_channels = self.reads.shape[1], self.reads.shape[3]
        reads, writes = (of_heads(x, batch, heads, n_heads) for x in (self.reads, self._seen_writes))
        taps = self.taps[heads].float() / n_channels
        weights = [einsum(reads, late, tap, "b h t c, b h t c, h c -> b h t") for late, tap in _lagged(writes, taps)]
        band = torch.stack(weights, -1)

        def make_rows(rows: Int[Tensor, " q"], scratch: Scratch) -> Float[Tensor, "b h q k2"]:
            signed = scratch.take(0, (*band.shape[:2], len(rows), int(rows[-1]) + 1)).zero_()
            places = torch.arange(len(rows), device=rows.device)
            for lag in range(band.shape[-1]):
                has_key = rows >= lag
                at = rows[has_key]
                signed[:, :, places[has_key], at - lag] = band[:, :, at, lag]
            return signed

        return make_rows

    def handed_on(self, v: Float[Tensor, "b n_heads t c"]) -> Float[Tensor, "b n_heads t c"]:
        """What every channel hands on: its own pattern times its values."""
        written = self._seen_writes.float() * v.float()
        terms = [late * rearrange(tap, "h c -> h 1 c") for late, tap in _lagged(written, self.taps.float())]
        return self.reads.float() * torch.stack(terms).sum(0)

    @property
    def _seen_writes(self) -> Float[Tensor, "b n_heads t c"]:
        if self.valid is None:
            return self.writes
        return torch.where(rearrange(self.valid, "b t -> b 1 t 1"), self.writes, 0)


def _lagged(
    x: Float[Tensor, "b h t c"], taps: Float[Tensor, "h c n_taps"]
) -> Iterator[tuple[Float[Tensor, "b h t c"], Float[Tensor, "h c"]]]:
    """For each lag, `x` of as many tokens ago, zero before the first, and the tap that it has."""
    for lag, tap in enumerate(taps.unbind(-1)):
        yield pad(x, (0, 0, lag, 0))[:, :, : x.shape[2]], tap
