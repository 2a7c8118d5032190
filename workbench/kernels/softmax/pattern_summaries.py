"""Summaries of whole patterns, computed without building one: block maxima, distances, the strongest far links.

One pass over a layer of one sequence, a block of rows at a time. Blocks are pooled by maximum, because a mean hides the
links of interest: one probability of 0.5 in a block of 16 × 16 has a mean of 0.002. Reads a tile of weights three times
at the speed of memory; writes 4 · (tokens / block)² bytes per head. Accumulators are float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from workbench.kernels.linear.signed_rows import SignedRows
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer, row_maxima
from workbench.kernels.softmax.tile_sums import ladder
from workbench.kernels.tiles import Cut, Scratch, within_memory


@dataclass(frozen=True, slots=True)
class SummaryOptions:
    """Sizes of a summary: `block`, in tokens, of the maxima; `far`, the distance from which a link is long.

    `n_links`: the number of strongest long links, at most one of each row. `fine_heads`: heads whose maxima are also
    kept in blocks of `fine_block` tokens, which costs several times as much as the rest of a head's summary.
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
    `fine`: the finer peaks of `SummaryOptions.fine_heads`, in their order.
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
    """The distances of `PatternSummary.beyond`: 0 and the powers of two below a length."""
    return (0, *(1 << i for i in range((n_tokens - 1).bit_length())))


def softmax_summary(layer: SoftmaxLayer, options: SummaryOptions, *, tile_bytes: int | None = None) -> PatternSummary:
    """The summary of a softmax layer on one sequence, queries and keys being the same tokens.

    Raises:
        WorkbenchError: if memory runs out on single rows.
    """
    n_tokens, n_heads = layer.q.shape[2], layer.q.shape[1]
    rows = torch.arange(n_tokens, device=layer.q.device)

    def compute(cut: Cut) -> PatternSummary:
        summary, scratch = _SummaryBuilder(options, n_heads, n_tokens, rows.device), Scratch(rows.device, cut.largest)
        for tiles in cut.tiles_of_runs(rows, layer.mask):
            for tile in tiles:
                softmax = layer.softmax(tile, scratch)
                heads = tile.heads(layer.group)
                summary.lse[heads, tile.span] = softmax.lse()[0].flatten(0, 1)
                block = _PatternBlock(
                    weights=softmax.weights[0].flatten(0, 1),
                    scale=softmax.total[0].flatten(0, 1),
                    total=softmax.total[0].flatten(0, 1),
                    heads=heads,
                    rows=tile.rows,
                    first_key=tile.keys[0],
                )
                summary.read(block)
        return summary.finish()

    return within_memory(compute, layer.shape, n_rows=n_tokens, n_keys=n_tokens, tile_bytes=tile_bytes)


def signed_summary(source: SignedRows, options: SummaryOptions, *, tile_bytes: int | None = None) -> PatternSummary:
    """The summary of a linear layer's implied rows on one sequence.

    Raises:
        WorkbenchError: if memory runs out on single rows.
    """
    _, n_heads, n_tokens = source.shape
    rows = torch.arange(n_tokens, device=source.device)

    def compute(cut: Cut) -> PatternSummary:
        summary, scratch = _SummaryBuilder(options, n_heads, n_tokens, rows.device), Scratch(rows.device, cut.largest)
        for batch, heads in product(cut.batches, cut.kv_heads):
            make_rows = source.prepare(batch, heads)
            for span in cut.spans:
                signed = make_rows(rows[span], scratch)[0]
                size = signed.abs().sum(-1)
                summary.lse[heads, span] = size.log()
                total = torch.where(size > 0, size, torch.inf)
                block = _PatternBlock(signed, torch.ones_like(total), total, heads, rows[span], is_signed=True)
                summary.read(block)
        return summary.finish()

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


@dataclass(frozen=True, slots=True)
class _PatternBlock:
    """Some rows of some heads, from key `first_key` on; entries are weights / scale, shares |weights| / total."""

    weights: Float[Tensor, "h q k"]
    scale: Float[Tensor, "h q"]
    total: Float[Tensor, "h q"]
    heads: slice
    rows: Int[Tensor, " q"]
    first_key: int = 0
    is_signed: bool = False

    def of_head(self, head: int, number: int) -> _PatternBlock:
        """One of the heads, by its number in the layer, as head `number`."""
        one = slice(head - self.heads.start, head - self.heads.start + 1)
        weights, scale, total = (x[one] for x in (self.weights, self.scale, self.total))
        return replace(self, weights=weights, scale=scale, total=total, heads=slice(number, number + 1))


class _Peaks:
    """Builds block maxima, of both signs where there are both."""

    def __init__(self, n_heads: int, n_tokens: int, block: int, device: torch.device):
        n_blocks, self._block = -(-n_tokens // block), block
        self._above = torch.zeros(n_heads, n_blocks, n_blocks, device=device)
        self._below: Tensor | None = None

    def read(self, block: _PatternBlock) -> None:
        """Raise the maxima by a block of rows."""
        self._raise(self._above, block, block.weights)
        if block.is_signed:
            self._below = torch.zeros_like(self._above) if self._below is None else self._below
            self._raise(self._below, block, -block.weights)

    def _raise(self, maxima: Tensor, block: _PatternBlock, weights: Tensor) -> None:
        first = int(block.rows[0])
        across = _keys_pooled(weights, self._block, block.first_key) / block.scale[..., None]
        peaks = _rows_pooled(across, self._block, first)
        down, right = first // self._block, block.first_key // self._block
        covered = maxima[block.heads, down : down + peaks.shape[1], right : right + peaks.shape[2]]
        torch.maximum(covered, peaks, out=covered)

    def finish(self) -> Tensor:
        """The entry of largest size in each block."""
        below = self._below
        return self._above if below is None else torch.where(below > self._above, -below, self._above)


class _SummaryBuilder:
    """Builds a summary from blocks of rows."""

    def __init__(self, options: SummaryOptions, n_heads: int, n_tokens: int, device: torch.device):
        self._options, self._distances = options, distances_of(n_tokens)
        self._peaks = _Peaks(n_heads, n_tokens, options.block, device)
        self._fine = _Peaks(len(options.fine_heads), n_tokens, options.fine_block, device)
        self._beyond = torch.zeros(n_heads, len(self._distances), device=device)
        self._sink = torch.zeros(n_heads, device=device)
        self._best = torch.zeros(n_heads, n_tokens, device=device)
        self._best_key = torch.zeros(n_heads, n_tokens, dtype=torch.long, device=device)
        self.lse = torch.empty(n_heads, n_tokens, device=device)

    def read(self, block: _PatternBlock) -> None:
        """Add a block of rows; overwrites its weights."""
        self._peaks.read(block)
        for number, head in enumerate(self._options.fine_heads):
            if block.heads.start <= head < block.heads.stop:
                self._fine.read(block.of_head(head, number))
        weights = block.weights.abs() if block.is_signed else block.weights
        has_sink = block.first_key == 0
        if has_sink:
            self._sink[block.heads] += (weights[..., 0] / block.total).sum(-1)
        steps = ladder(block.rows, (block.first_key, block.first_key + weights.shape[-1]), self._distances)
        masses = torch.stack(steps.masses(weights, 1 if has_sink else 0), -1)
        self._beyond[block.heads] += (masses / block.total[..., None]).sum(1)
        self._read_links(block, weights)

    def _read_links(self, block: _PatternBlock, weights: Float[Tensor, "h q k"]) -> None:
        """The strongest far entry of each row."""
        rows, first_key = block.rows, block.first_key
        first, last, far = int(rows[0]), int(rows[-1]), self._options.far
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
        sign = block.weights.gather(-1, column[..., None])[..., 0].sign()
        self._best[block.heads, rows] = strength * sign / block.scale
        self._best_key[block.heads, rows] = column + first_key

    def finish(self) -> PatternSummary:
        """The summary of every row that was read."""
        n_tokens = self._best.shape[1]
        n_links = min(self._options.n_links, n_tokens)
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
    runs = [x[..., :head].amax(-1, keepdim=True)] if head else []
    if whole > head:
        runs.append(x[..., head:whole].unflatten(-1, (-1, block)).amax(-1))
    if whole < n_keys:
        runs.append(x[..., whole:].amax(-1, keepdim=True))
    return torch.cat(runs, -1).clamp_min_(0)


def _rows_pooled(x: Float[Tensor, "h q kb"], block: int, first_row: int) -> Float[Tensor, "h qb kb"]:
    lead = first_row % block
    filled = pad(x, (0, 0, lead, -(lead + x.shape[1]) % block)) if block > 1 else x
    return filled.unflatten(1, (-1, block)).amax(2)
