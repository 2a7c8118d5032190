"""What there is to look at of a whole pattern without ever having it: block maxima, distances, the strongest far links.

One pass over a layer of one sequence, a block of rows at a time. Blocks are pooled by maximum, because a mean hides the
very links that are looked for: one probability of 0.5 in a block of 16 × 16 has a mean of 0.002. Reads a tile of
weights three times at the speed of memory; writes 4 · (tokens / block)² bytes per head. Accumulators are float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from workbench.kernels.linear.signed_rows import SignedRows
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer, check_groups, row_maxima
from workbench.kernels.softmax.tile_sums import ladder
from workbench.kernels.tiles import Cut, Scratch, within_memory


@dataclass(frozen=True, slots=True)
class Look:
    """What to keep of a pattern: `block`, in tokens, of the maxima; `far`, the distance from which a link is long.

    `n_links`: how many of the strongest long links, at most one of each row. `fine_heads`: heads whose maxima are also
    kept in blocks of `fine_block` tokens, which costs several times as much as all the rest of what is kept of a head.
    """

    block: int
    far: int
    n_links: int = 16
    fine_block: int = 1
    fine_heads: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PatternSummary:
    """One layer's patterns on one sequence, pooled; the first key is the sink.

    `peak`: the entry of largest size in each block, signed as it is, keys across. `beyond`: share of the mass on keys
    after the sink that lie 0, 1, 2, 4, … or more tokens back, mean over rows; `sink`: that on the sink. `link_row`,
    `link_key`, `link_value`: the strongest entries `far` or more tokens back, sink excluded, strongest first; value 0
    where there are fewer. `lse`: of each row, ln Σ|A| for signed rows.
    `fine`: the finer peaks of `Look.fine_heads`, in their order.
    Shares are of Σ|A| in linear layers; `peak`, `fine` and `link_value` are not normalised there.
    """

    peak: Float[Tensor, "h n n"]
    beyond: Float[Tensor, "h n_distances"]
    sink: Float[Tensor, " h"]
    link_row: Int[Tensor, "h n_links"]
    link_key: Int[Tensor, "h n_links"]
    link_value: Float[Tensor, "h n_links"]
    lse: Float[Tensor, "h t"]
    fine: Float[Tensor, "n_fine m m"]


def distances_of(n_tokens: int) -> tuple[int, ...]:
    """0 and the powers of two below a length: where `PatternSummary.beyond` is read."""
    return (0, *(1 << i for i in range((n_tokens - 1).bit_length())))


def softmax_summary(layer: SoftmaxLayer, look: Look, *, tile_bytes: int | None = None) -> PatternSummary:
    """The summary of a softmax layer on one sequence, queries and keys being the same tokens.

    Raises:
        WorkbenchError: if the query heads do not share the key/value heads evenly, or memory runs out on single rows.
    """
    check_groups(layer.q, layer.k)
    n_tokens, n_heads = layer.q.shape[2], layer.q.shape[1]
    every = torch.arange(n_tokens, device=layer.q.device)

    def compute(cut: Cut) -> PatternSummary:
        gathered, scratch = _Gathered(look, n_heads, n_tokens, every.device), Scratch(every.device, cut.largest)
        for tiles in cut.tiles(every, layer.mask):
            for tile in tiles:
                found = layer.softmax(tile, scratch)
                heads = tile.heads(layer.group)
                gathered.lse[heads, tile.span] = found.lse()[0].flatten(0, 1)
                weights, total = found.weights[0].flatten(0, 1), found.total[0].flatten(0, 1)
                gathered.read(weights, total, total, heads=heads, rows=tile.rows, first_key=tile.keys[0])
        return gathered.finish()

    return within_memory(compute, layer.shape, n_rows=n_tokens, n_keys=n_tokens, tile_bytes=tile_bytes)


def signed_summary(source: SignedRows, look: Look, *, tile_bytes: int | None = None) -> PatternSummary:
    """The summary of a linear layer's implied rows on one sequence.

    Raises:
        WorkbenchError: if memory runs out on single rows.
    """
    _, n_heads, n_tokens = source.shape
    every = torch.arange(n_tokens, device=source.device)

    def compute(cut: Cut) -> PatternSummary:
        gathered, scratch = _Gathered(look, n_heads, n_tokens, every.device), Scratch(every.device, cut.largest)
        for batch, heads in product(cut.batches, cut.kv_heads):
            make_rows = source.prepare(batch, heads)
            for span in cut.spans:
                signed = make_rows(every[span], scratch)[0]
                size = signed.abs().sum(-1)
                gathered.lse[heads, span] = size.log()
                total = torch.where(size > 0, size, torch.inf)
                gathered.read(signed, torch.ones_like(total), total, heads=heads, rows=every[span], is_signed=True)
        return gathered.finish()

    return within_memory(compute, (1, n_heads, 1), n_rows=n_tokens, n_keys=n_tokens, tile_bytes=tile_bytes)


def pooled(
    x: Float[Tensor, "h q k"], block: int, *, first_row: int = 0, first_key: int = 0
) -> Float[Tensor, "h qb kb"]:
    """The maximum of 0 and of each block of block × block cells; the grid of blocks starts at row 0 and key 0."""
    return _rows_pooled(_keys_pooled(x, block, first_key), block, first_row)


def coarser(peak: Float[Tensor, "h n n"], times: int) -> Float[Tensor, "h m m"]:
    """Peaks of blocks `times` as wide: exactly what a pass with such blocks would have found."""
    if times == 1:
        return peak
    above, below = pooled(peak, times), pooled(-peak, times)
    return torch.where(below > above, -below, above)


class _Peaks:
    """Block maxima in the making, of both signs where there are both."""

    def __init__(self, n_heads: int, n_tokens: int, block: int, device: torch.device):
        n_blocks, self._block = -(-n_tokens // block), block
        self._above = torch.zeros(n_heads, n_blocks, n_blocks, device=device)
        self._below: Tensor | None = None

    def read(self, weights: Tensor, scale: Tensor, heads: slice, at: tuple[int, int], is_signed: bool) -> None:
        """Read a tile of some heads that begins at a row and a key; entries are weights / scale."""
        self._raise(self._above, weights, scale, heads, at)
        if is_signed:
            self._below = torch.zeros_like(self._above) if self._below is None else self._below
            self._raise(self._below, -weights, scale, heads, at)

    def _raise(self, into: Tensor, weights: Tensor, scale: Tensor, heads: slice, at: tuple[int, int]) -> None:
        first, first_key = at
        across = _keys_pooled(weights, self._block, first_key) / scale[..., None]
        peaks = _rows_pooled(across, self._block, first)
        down, right = first // self._block, first_key // self._block
        here = into[heads, down : down + peaks.shape[1], right : right + peaks.shape[2]]
        torch.maximum(here, peaks, out=here)

    def finish(self) -> Tensor:
        """The entry of largest size in each block."""
        below = self._below
        return self._above if below is None else torch.where(below > self._above, -below, self._above)


class _Gathered:
    """A summary in the making."""

    def __init__(self, look: Look, n_heads: int, n_tokens: int, device: torch.device):
        self._look, self._distances = look, distances_of(n_tokens)
        self._peaks = _Peaks(n_heads, n_tokens, look.block, device)
        self._fine = _Peaks(len(look.fine_heads), n_tokens, look.fine_block, device)
        self._beyond = torch.zeros(n_heads, len(self._distances), device=device)
        self._sink = torch.zeros(n_heads, device=device)
        self._best = torch.zeros(n_heads, n_tokens, device=device)
        self._best_key = torch.zeros(n_heads, n_tokens, dtype=torch.long, device=device)
        self.lse = torch.empty(n_heads, n_tokens, device=device)

    def read(
        self,
        weights: Float[Tensor, "h q k"],
        scale: Float[Tensor, "h q"],
        total: Float[Tensor, "h q"],
        *,
        heads: slice,
        rows: Int[Tensor, " q"],
        first_key: int = 0,
        is_signed: bool = False,
    ) -> None:
        """Read rows of some heads; entries are weights / scale, shares |weights| / total. Writes on the weights."""
        at = int(rows[0]), first_key
        self._peaks.read(weights, scale, heads, at, is_signed)
        fine = [(i, h - heads.start) for i, h in enumerate(self._look.fine_heads) if heads.start <= h < heads.stop]
        for i, here in fine:
            self._fine.read(weights[here : here + 1], scale[here : here + 1], slice(i, i + 1), at, is_signed)
        signed = weights
        if is_signed:
            weights = weights.abs()
        if first_key == 0:
            self._sink[heads] += (weights[..., 0] / total).sum(-1)
        steps = ladder(rows, (first_key, first_key + weights.shape[-1]), self._distances)
        masses = torch.stack(steps.masses(weights, 1 if first_key == 0 else 0), -1)
        self._beyond[heads] += (masses / total[..., None]).sum(1)
        self._links(weights, signed, scale, heads, rows, first_key)

    def _links(
        self, weights: Tensor, signed: Tensor, scale: Tensor, heads: slice, rows: Tensor, first_key: int
    ) -> None:
        """The strongest far entry of each row."""
        first, last, far = int(rows[0]), int(rows[-1]), self._look.far
        stop = last - far + 1 - first_key
        if stop <= (first_key == 0):
            return
        reached = weights[..., :stop]
        edge = max(0, first - far + 1 - first_key)
        columns = torch.arange(edge, stop, device=rows.device) + first_key
        reached[..., edge:].masked_fill_(columns > (rows - far)[:, None], 0)
        if first_key == 0:
            reached[..., 0] = 0
        strength, column = row_maxima(reached)
        sign = signed.gather(-1, column[..., None])[..., 0].sign()
        self._best[heads, rows] = strength * sign / scale
        self._best_key[heads, rows] = column + first_key

    def finish(self) -> PatternSummary:
        """Everything that was read."""
        n_tokens = self._best.shape[1]
        n_links = min(self._look.n_links, n_tokens)
        row = self._best.abs().topk(n_links, dim=-1).indices
        return PatternSummary(
            peak=self._peaks.finish(),
            beyond=self._beyond / n_tokens,
            sink=self._sink / n_tokens,
            link_row=row,
            link_key=self._best_key.gather(-1, row),
            link_value=self._best.gather(-1, row),
            lse=self.lse,
            fine=self._fine.finish(),
        )


def _keys_pooled(x: Float[Tensor, "h q k"], block: int, first_key: int) -> Float[Tensor, "h q kb"]:
    """Maxima over runs of columns; the tile itself is not copied, and may begin and end within a block."""
    if block == 1:
        return x.clamp_min(0)
    n_keys = x.shape[-1]
    head = min(n_keys, -first_key % block)
    whole = head + (n_keys - head) // block * block
    parts = [x[..., :head].amax(-1, keepdim=True)] if head else []
    if whole > head:
        parts.append(x[..., head:whole].unflatten(-1, (-1, block)).amax(-1))
    if whole < n_keys:
        parts.append(x[..., whole:].amax(-1, keepdim=True))
    return torch.cat(parts, -1).clamp_min_(0)


def _rows_pooled(x: Float[Tensor, "h q kb"], block: int, first_row: int) -> Float[Tensor, "h qb kb"]:
    lead = first_row % block
    filled = pad(x, (0, 0, lead, -(lead + x.shape[1]) % block)) if block > 1 else x
    return filled.unflatten(1, (-1, block)).amax(2)
