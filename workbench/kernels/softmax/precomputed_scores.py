"""Attention statistics from scores that a model has already computed: T × T of one layer, in blocks of rows.

For families that compute their scores themselves and expose no queries and keys. Per tile: the scores are copied and
masked, and everything after is the row-blocked path's. Reads 4·k bytes of scores per query row and head, and v once per
block; memory beside the scores is O(tile). Accumulators are float32; tested to 2e-6 relative of the float64 reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.kernels.masks import TileMask, visible_tile
from workbench.kernels.softmax.softmax_tiles import HIDDEN, LN_2, SoftmaxLayer, hide
from workbench.kernels.tiles import Scratch, Tile


@dataclass(frozen=True, slots=True)
class ScoredLayer(SoftmaxLayer):
    """A layer whose `q` holds scores, scaled and with every bias; of `k` only the number of heads counts."""

    def scores(self, tile: Tile, scratch: Scratch) -> Float[Tensor, "b kv g q k2"]:
        """A tile of scores, over ln 2, in the scratch's first buffer; cells that the mask hides may hold anything."""
        scores = self.rows_of(self.q[..., tile.key_index], tile)
        return hide(torch.div(scores, LN_2, out=scratch.take(0, tuple(scores.shape))), tile)


def scored_layer(
    scores: Float[Tensor, "b n_heads q k"],
    n_kv_heads: int,
    mask: TileMask,
    sinks: Float[Tensor, " n_heads"] | None = None,
) -> ScoredLayer:
    """The layer of these scores: scaled, with every bias; cells that `mask` hides may hold anything."""
    heads = scores.new_zeros(1, 1, 1, 1).expand(len(scores), n_kv_heads, 1, scores.shape[-1])
    return ScoredLayer(scores, heads, mask, scale=1.0, softcap=None, sinks=sinks)


def scored_crop(
    scores: Float[Tensor, "q k"],
    mask: TileMask,
    *,
    queries: Int[Tensor, " rows"],
    keys: Int[Tensor, " columns"],
    sink: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "rows columns"]:
    """Attention probabilities of one head on one sequence; the denominator runs over all keys the mask allows."""
    rows, order = torch.sort(queries)
    visible = visible_tile(mask, slice(0, 1), rows, scores.shape[-1])[0]
    crop = torch.empty(len(queries), len(keys), device=scores.device)
    crop[order] = _softmax(scores[rows], visible, sink)[:, keys]
    return crop


def _softmax(
    scores: Float[Tensor, "q k"], visible: Bool[Tensor, "q k"], sink: Float[Tensor, ""] | None
) -> Float[Tensor, "q k"]:
    """The probabilities, 0 where hidden and in rows that see nothing."""
    n_keys = scores.shape[-1]
    scores = scores.float().masked_fill(~visible, HIDDEN)
    if sink is not None:
        scores = torch.cat([scores, sink.float().expand(len(scores), 1)], -1)
    return scores.softmax(-1)[:, :n_keys] * visible
