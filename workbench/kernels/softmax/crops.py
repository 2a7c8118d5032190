"""Exact probabilities of chosen cells of a softmax layer, from the rows' denominators: exp(score − lse)."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.masks import visible_tile
from workbench.kernels.softmax.blockwise import blockwise_statistics
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer, soft_capped
from workbench.kernels.softmax.statistics_request import Cells, Request

# Rows of a crop at a time.
_ROWS = 128
# Cells whose keys are gathered at a time: 64 MiB for 32 heads of 128 channels.
_CELLS = 4096


def attention_crop(
    layer: SoftmaxLayer, *, queries: Int[Tensor, " rows"], keys: Int[Tensor, " columns"]
) -> Float[Tensor, "rows columns"]:
    """Attention probabilities of a layer of one head and one sequence, on chosen queries and keys.

    The denominator runs over all keys that the mask shows.
    """
    return attention_crops(layer, queries=queries, keys=keys)[0]


def attention_crops(
    layer: SoftmaxLayer, *, queries: Int[Tensor, " rows"], keys: Int[Tensor, " columns"]
) -> Float[Tensor, "n_heads rows columns"]:
    """Attention probabilities of every head of a layer on one sequence, on chosen queries and keys.

    The denominator runs over all keys that the mask shows.
    """
    n_heads, n_keys = layer.q.shape[1], layer.k.shape[2]
    no_values = torch.empty(1, layer.k.shape[1], n_keys, 0, device=layer.q.device)
    crop = torch.empty(n_heads, len(queries), len(keys), device=layer.q.device)
    k = layer.k[0][:, keys].float()
    for first in range(0, len(queries), _ROWS):
        rows, order = torch.sort(queries[first : first + _ROWS])
        _, statistics = blockwise_statistics(layer, no_values, Request(rows=rows))
        visible = visible_tile(layer.mask, slice(0, 1), rows, n_keys)[0][:, keys]
        for head in range(n_heads):  # one product each: the numbers of a head do not depend on which others there are
            scores = einsum(layer.q[0, head][rows].float(), k[head // layer.group], "q d, k d -> q k")
            scores = soft_capped(layer.scale * scores, layer.softcap)
            lse = rearrange(statistics.lse[0, head], "q -> q 1")
            crop[head, first + order] = torch.where(visible, torch.exp(scores - lse), 0)
    return crop


def attention_cells(layer: SoftmaxLayer, lse: Float[Tensor, "b n_heads q"], cells: Cells) -> Float[Tensor, "n n_heads"]:
    """Probabilities of cells, for a mask of `Intervals`, or that selects of them; 0 where the row does not see it."""
    seen, selection = layer.profile_mask
    probabilities = torch.empty(len(cells.row), layer.q.shape[1], device=layer.q.device)
    for first in range(0, len(probabilities), _CELLS):
        sequence, row, key = (x[first : first + _CELLS] for x in (cells.sequence, cells.row, cells.key))
        queries = rearrange(layer.q[sequence, :, row].float(), "n (kv g) d -> n kv g d", g=layer.group)
        scores = layer.scale * einsum(queries, layer.k[sequence, :, key].float(), "n kv g d, n kv d -> n kv g")
        scores = soft_capped(rearrange(scores, "n kv g -> n (kv g)"), layer.softcap)
        low, high = (x[sequence % len(x), row] for x in (seen.low, seen.high))
        is_seen = (key >= low) & (key < high)
        if selection is not None:
            is_seen &= (selection.selected[sequence, row] == key[:, None] // selection.block).any(-1)
        is_seen = rearrange(is_seen, "n -> n 1")
        probabilities[first : first + _CELLS] = torch.where(is_seen, torch.exp(scores - lse[sequence, :, row]), 0)
    return probabilities


def first_keys_mass(
    layer: SoftmaxLayer, lse: Float[Tensor, "b n_heads q"], request: Request
) -> Float[Tensor, "b n_heads q"]:
    """Mass beyond `request.far.window` on the first keys of each sequence, which far mass leaves out."""
    assert request.far is not None
    seen, total = layer.profile_mask[0], torch.zeros_like(lse)
    n_sequences, n_rows, n_keys = len(layer.q), layer.q.shape[2], layer.k.shape[2]
    row = torch.arange(n_rows, device=lse.device)
    first = torch.zeros(n_sequences, dtype=torch.long) if request.first is None else request.first.long()
    for b in range(n_sequences):
        for key in range(int(first[b]) + request.far.sink):
            is_far = seen.position - key >= request.far.window
            cells = Cells(torch.full_like(row, b), row, torch.full_like(row, min(key, n_keys - 1)))
            mass = attention_cells(layer, lse, cells)
            total[b] += torch.where(is_far, rearrange(mass, "q h -> h q"), 0)
    return total
