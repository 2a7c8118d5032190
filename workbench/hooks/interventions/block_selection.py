"""A softmax head that attends, row by row, to selected blocks of its keys: the selection, and the mask that it makes.

1. Keys are numbered by block, from the first token of each sequence or packed document.
2. Blocks are scored for some rows at a time: by the attention that the head itself gives them, by the mean of their
   keys, or by the bounds of their keys; summed over the query heads that share the keys.
3. The numbers of the selected blocks, n_blocks for each row, are kept; rows × keys never are.

The attention is that of the layer's own kernels under a mask, so that gradients, statistics and patterns are those of
any other mask. No gradient flows through the selection. Nothing is computed faster than by the dense head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from workbench.heads import WorkbenchError
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.explicit_masks import Scores, rows_output
from workbench.hooks.taps.scored_call import ScoredCall, grouped_scores
from workbench.kernels import Hidden, TileMask, hidden_runs
from workbench.kernels.masks import visible_run
from workbench.store.conversions import SparseAttention

# Scores that are in memory at a time, and rows that they may be of.
_CELLS, _MOST_ROWS = 1 << 22, 512
# A block that is none: of a row that has fewer blocks to select than it may.
_NONE = -1


@dataclass(frozen=True, slots=True)
class BlockMask:
    """A mask of which each row sees only the keys of the blocks that were selected for it.

    `selected`: numbers of blocks, -1 for none. `block_of`: the number of each key's block.
    """

    base: TileMask
    selected: Int[Tensor, "b q n"]
    block_of: Int[Tensor, "b k"]

    def key_range(self, rows: Int[Tensor, " q"]) -> tuple[int, int]:
        return self.base.key_range(rows)

    def hidden(self, batch: slice, rows: Int[Tensor, " q"], keys: tuple[int, int]) -> list[Hidden]:
        runs = self.base.hidden(batch, rows, keys)
        if keys[1] <= keys[0]:
            return runs
        block_of = self.block_of[batch, slice(*keys)]
        first, last = int(block_of.min()), int(block_of.max()) + 1
        number = self.selected[batch, rows].long() - first
        number = torch.where((number >= 0) & (number < last - first), number, last - first)  # one more, for all others
        is_selected = torch.zeros(*number.shape[:2], last - first + 1, dtype=torch.bool, device=rows.device)
        is_selected = is_selected.scatter_(-1, number, True)
        of_keys = repeat(block_of.long() - first, "b k -> b q k", q=len(rows))
        return runs + hidden_runs(~is_selected.gather(-1, of_keys), keys[0])


def block_mask(call: AttentionCall, to: SparseAttention, *, rows: Int[Tensor, " q"] | None = None) -> TileMask:
    """The mask of one key/value head under sparse attention; `call` has this head alone, with all its query heads.

    Args:
        rows: the only ones that the mask will be asked for; default all.

    Raises:
        WorkbenchError: for a rule that needs keys in a layer that gives scores alone, and for a selection of several
            rows together behind a cache.
    """
    base = call.mask.simplest()
    if to.per == "query_block" and call.q.shape[2] != call.k.shape[2]:
        raise WorkbenchError(
            "a selection for blocks of queries needs all queries of a block at once, and a pass behind a cache has "
            "some of them; pass per='row', or use_cache=False, and leave prefill= out"
        )
    if isinstance(call, ScoredCall) and to.rule != "oracle":
        raise WorkbenchError(
            f"the scores of layer {call.layer} are not queries · keys alone, which rule={to.rule!r} is made of; pass "
            "rule='oracle'"
        )
    blocks = _Blocks.of(call, to)
    if blocks.most <= to.n_blocks:
        return base
    with torch.no_grad():
        selected = _by_query_block(call, to, blocks) if to.per == "query_block" else _by_row(call, to, blocks, rows)
    return BlockMask(base, selected, blocks.of_key)


def sparse_output(call: AttentionCall, to: SparseAttention) -> Float[Tensor, "b q n_heads d_v"]:
    """The attention of one key/value head's query heads under sparse attention."""
    mask = block_mask(call, to)
    tensors = (call.q, call.k, call.v, call.sinks)
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    if needs_grad or type(call) is not AttentionCall or not isinstance(mask, BlockMask):
        return call.output(mask)
    outputs: list[Tensor] = []
    for rows in _row_runs(call):
        keys = (0, mask.key_range(rows)[1])
        visible = visible_run(mask, slice(0, len(call.q)), rows, keys)
        k, v = call.k[:, :, slice(*keys)], call.v[:, :, slice(*keys)]
        outputs.append(rows_output(call.q[:, :, rows], k, v, visible, Scores(call.scale, call.softcap, call.sinks)))
    return torch.cat(outputs, 1)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The blocks of the keys of a call.

    `of_key`: the number of each key's block; numbers go on from one document to the next. `own`, `first`: of each row,
    the number of the block that it stands in, and of the first block of its document. `is_regular`: whether every
    `size` columns are a block. `is_row`: whether a row is no padding.
    """

    size: int
    n: int
    of_key: Int[Tensor, "b k"]
    own: Int[Tensor, "b q"]
    first: Int[Tensor, "b q"]
    is_row: Bool[Tensor, "b q"]
    is_regular: bool

    @classmethod
    def of(cls, call: AttentionCall, to: SparseAttention) -> _Blocks:
        mask, n_keys = call.mask, call.k.shape[2]
        if mask.key_offset:
            raise WorkbenchError(f"the cache of layer {call.layer} has dropped keys, and blocks count from the first")
        column = torch.arange(n_keys, device=call.q.device)
        first_key = call.first_keys()
        local = column - first_key
        of_key = ((local % to.block == 0) & (local >= 0)).long().cumsum(-1).sub(1).clamp(min=0)
        position = torch.arange(call.q.shape[2], device=call.q.device) + mask.query_offset
        is_key = torch.ones_like(of_key, dtype=torch.bool)
        is_key = is_key if mask.valid is None else mask.valid.to(call.q.device)[:, :n_keys]
        return cls(
            to.block,
            int(of_key.max()) + 1,
            of_key,
            of_key[:, position],
            of_key.gather(1, first_key[:, position]),
            is_key[:, position],
            is_regular=not bool(first_key.any()),
        )

    @property
    def most(self) -> int:
        """The most blocks that a row has in its past, its own included."""
        return int((self.own - self.first).max()) + 1

    def sums(self, cells: Float[Tensor, "b q k"]) -> Float[Tensor, "b q n_blocks"]:
        """The sums over the keys of each block, of the first keys."""
        n_keys = cells.shape[-1]
        if self.is_regular:
            padded = pad(cells, (0, self.n * self.size - n_keys))
            return rearrange(padded, "b q (n s) -> b q n s", s=self.size).sum(-1)
        index = repeat(self.of_key[:, :n_keys], "b k -> b q k", q=cells.shape[1])
        return cells.new_zeros(*cells.shape[:2], self.n).scatter_add_(-1, index, cells)

    def top(
        self, scores: Float[Tensor, "b q n_blocks"], to: SparseAttention, rows: Int[Tensor, " q"]
    ) -> Int[Tensor, "b q n"]:
        """The numbers of the blocks that these rows select: own and sinks, and those of the highest scores."""
        number = torch.arange(self.n, device=scores.device)
        own, first = (rearrange(x[:, rows], "b q -> b q 1") for x in (self.own, self.first))
        is_forced = (number == own) | ((number >= first) & (number < first + to.sink_blocks))
        scores = scores.masked_fill(is_forced, torch.inf).masked_fill((number < first) | (number > own), -torch.inf)
        best, numbers = scores.sort(dim=-1, descending=True, stable=True)
        best, numbers = best[..., : to.n_blocks], numbers[..., : to.n_blocks]
        return numbers.masked_fill(best == -torch.inf, _NONE).int()


def _by_row(
    call: AttentionCall, to: SparseAttention, blocks: _Blocks, rows: Int[Tensor, " q"] | None
) -> Int[Tensor, "b q n"]:
    """Each row's own selection; of other rows than these, nothing."""
    scorer = _scorer(call, to, blocks)
    n_b, n_q = len(call.q), call.q.shape[2]
    selected = torch.full((n_b, n_q, min(to.n_blocks, blocks.n)), _NONE, dtype=torch.int32, device=call.q.device)
    for run in _row_runs(call, rows):
        selected[:, run] = blocks.top(scorer.of(run), to, run)
    return selected


def _by_query_block(call: AttentionCall, to: SparseAttention, blocks: _Blocks) -> Int[Tensor, "b q n"]:
    """The selection of all rows of a block, by the sum of their scores; rows of padding have no say."""
    scorer = _scorer(call, to, blocks)
    sums = call.q.new_zeros(len(call.q), blocks.n, blocks.n, dtype=torch.promote_types(call.q.dtype, torch.float32))
    for run in _row_runs(call):
        scores = scorer.of(run) * rearrange(blocks.is_row[:, run], "b q -> b q 1")
        index = repeat(blocks.own[:, run], "b q -> b q n", n=blocks.n)
        sums = sums.scatter_add(1, index, scores.to(sums.dtype))
    rows: list[Tensor] = []
    for run in _row_runs(call):
        index = repeat(blocks.own[:, run], "b q -> b q n", n=blocks.n)
        rows.append(blocks.top(sums.gather(1, index), to, run))
    return torch.cat(rows, 1)


def _row_runs(call: AttentionCall, rows: Int[Tensor, " q"] | None = None) -> tuple[Int[Tensor, " r"], ...]:
    """Rows, as many at a time as have their scores in memory."""
    n_b, n_heads, n_q = call.q.shape[:3]
    rows = torch.arange(n_q, device=call.q.device) if rows is None else rows.to(call.q.device)
    return rows.split(max(1, min(_MOST_ROWS, _CELLS // (n_b * n_heads * call.k.shape[2]))))


@dataclass(frozen=True, slots=True)
class _ByMass:
    """Scores of blocks by the dense head's own attention."""

    call: AttentionCall
    blocks: _Blocks

    def of(self, rows: Int[Tensor, " q"]) -> Float[Tensor, "b q n_blocks"]:
        call, mask = self.call, self.call.mask.simplest()
        n_seen = mask.key_range(rows)[1]
        if isinstance(call, ScoredCall):
            part = replace(call, q=call.q[:, :, rows], k=call.k[:, :, :n_seen])
            scores = part.key_scores().to(torch.promote_types(call.q.dtype, torch.float32))
        else:
            scores = _dot(call.q[:, :, rows], call.k[:, :, :n_seen]) * call.scale
            scores = scores if call.softcap is None else call.softcap * torch.tanh(scores / call.softcap)
        visible = visible_run(mask, slice(0, len(call.q)), rows, (0, n_seen))
        scores = scores.masked_fill(~rearrange(visible, "b q k -> b 1 q k"), torch.finfo(scores.dtype).min)
        if call.sinks is not None:
            sinks = repeat(call.sinks.to(scores), "h -> b h q 1", b=len(scores), q=len(rows))
            scores = torch.cat([scores, sinks], -1)
        mass = scores.softmax(-1)[..., :n_seen].sum(1) * visible
        return self.blocks.sums(mass)


@dataclass(frozen=True, slots=True)
class _ByMean:
    """Scores of blocks by the mean of their keys."""

    q: Float[Tensor, "b q d"]
    mean: Float[Tensor, "b n_blocks d"]

    def of(self, rows: Int[Tensor, " q"]) -> Float[Tensor, "b q n_blocks"]:
        return einsum(self.q[:, rows], self.mean, "b q d, b n d -> b q n")


@dataclass(frozen=True, slots=True)
class _ByBounds:
    """Scores of blocks by the most that q · k can be within the bounds of their keys."""

    q: Float[Tensor, "b h q d"]
    least: Float[Tensor, "b n_blocks d"]
    most: Float[Tensor, "b n_blocks d"]

    def of(self, rows: Int[Tensor, " q"]) -> Float[Tensor, "b q n_blocks"]:
        q = self.q[:, :, rows]
        up, down = q.clamp(min=0).sum(1), q.clamp(max=0).sum(1)
        return einsum(up, self.most, "b q d, b n d -> b q n") + einsum(down, self.least, "b q d, b n d -> b q n")


def _scorer(call: AttentionCall, to: SparseAttention, blocks: _Blocks) -> _ByMass | _ByMean | _ByBounds:
    if to.rule == "oracle":
        return _ByMass(call, blocks)
    wide = torch.promote_types(call.q.dtype, torch.float32)
    q, k = call.q.to(wide), call.k[:, 0].to(wide)
    is_key = None if call.mask.valid is None else call.mask.valid.to(k.device)[:, : k.shape[1], None]
    index = repeat(blocks.of_key, "b k -> b k d", d=k.shape[-1])
    empty = k.new_zeros(len(k), blocks.n, k.shape[-1])
    if to.rule == "mean":
        counted = torch.ones_like(k[..., :1]) if is_key is None else is_key.to(k)
        total = empty.scatter_add(1, index, k * counted)
        number = empty[..., :1].scatter_add(1, index[..., :1], counted)
        return _ByMean(q.sum(1), total / number.clamp(min=1))
    low, high = (k, k) if is_key is None else (k.masked_fill(~is_key, torch.inf), k.masked_fill(~is_key, -torch.inf))
    least = empty.scatter_reduce(1, index, low, "amin", include_self=False)
    most = empty.scatter_reduce(1, index, high, "amax", include_self=False)
    # A block of padding alone is in the past of no row; no infinity may come near a zero.
    return _ByBounds(q, least.nan_to_num(posinf=0.0, neginf=0.0), most.nan_to_num(posinf=0.0, neginf=0.0))


def _dot(q: Float[Tensor, "b h q d"], k: Float[Tensor, "b 1 k d"]) -> Float[Tensor, "b h q k"]:
    """Every query times every key, in float32 or the model's own wider numbers."""
    if q.dtype != torch.float64:
        return grouped_scores(q, k)
    return einsum(q, k[:, 0], "b h q d, b k d -> b h q k")


def coverage(
    call: AttentionCall, to: SparseAttention, numbers: tuple[int, ...]
) -> tuple[Float[Tensor, " n_numbers"], int]:
    """How much of a dense head's attention lies in the blocks that its rule selects, for some numbers of blocks.

    Of one key/value head, which `call` has alone, the mean over its query heads; on learned sinks lies no share. Each
    row selects for itself; `n_blocks` of `to` is left out of account.

    Returns:
        The sums over rows of shares in [0, 1], and the number of rows: those with more blocks than the largest number.
    """
    blocks, most = _Blocks.of(call, to), replace(to, n_blocks=max(*numbers, to.sink_blocks + 1))
    is_counted = blocks.is_row & (blocks.own - blocks.first >= max(numbers))
    columns = torch.tensor([number - 1 for number in numbers], device=call.q.device)
    total = torch.zeros(len(numbers), dtype=torch.float64, device=call.q.device)
    if not is_counted.any():
        return total, 0
    with torch.no_grad():
        scorer, by_mass = _scorer(call, to, blocks), _ByMass(call, blocks)
        for run in _row_runs(call):
            mass = by_mass.of(run)
            selected = blocks.top(mass if to.rule == "oracle" else scorer.of(run), most, run).long()
            shares = mass.gather(-1, selected.clamp(min=0)).masked_fill(selected == _NONE, 0).cumsum(-1)
            if shares.shape[-1] > int(columns.max()):  # too few columns: no row of this call has as many blocks
                total += shares[..., columns][is_counted[:, run]].sum(0) / call.q.shape[1]
    return total, int(is_counted.sum())
