"""One softmax layer, and its scores and softmax tile by tile, a block of rows at a time and in place.

Scores of tiles are in units of ln 2, the factor folded into the queries: exp2 takes a third of the time of exp on a
CPU. Hidden scores are finite: exp2 gives an exact 0 and 0 · hidden stays 0, where −inf would give NaN in the entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.heads import WorkbenchError
from workbench.kernels.key_intervals import Intervals
from workbench.kernels.masks import SelectedMask, TileMask, per_head
from workbench.kernels.tiles import Scratch, Tile

HIDDEN = -1e30
LN_2 = math.log(2)
# Columns in a run, whose maximum is taken first: an arg-max over all columns takes ten times as long.
_RUN = 32


@dataclass(frozen=True, slots=True)
class SoftmaxLayer:
    """What determines the pattern of one softmax layer: the argument of every statistics function.

    `scale` multiplies the scores before `softcap` (softcap · tanh(scores / softcap)) applies. `sinks`: a learned logit
    per head that takes part in the denominator only.

    Raises:
        WorkbenchError: if n_heads is not a multiple of n_kv_heads.
    """

    q: Float[Tensor, "b n_heads q d"]
    k: Float[Tensor, "b n_kv_heads k d"]
    mask: TileMask
    scale: float
    softcap: float | None = None
    sinks: Float[Tensor, " n_heads"] | None = None

    def __post_init__(self):
        if self.q.shape[1] % self.k.shape[1]:
            raise WorkbenchError(
                f"{self.q.shape[1]} query heads cannot share {self.k.shape[1]} key/value heads evenly; expected a "
                "multiple"
            )

    @property
    def group(self) -> int:
        """Query heads of a key/value head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sequences, key/value heads, query heads of each."""
        return len(self.q), self.k.shape[1], self.group

    @property
    def intervals(self) -> Intervals:
        """The mask as one run of keys per row, which profiles need.

        Raises:
            WorkbenchError: if the mask is of another kind.
        """
        if not isinstance(self.mask, Intervals):
            raise WorkbenchError(
                f"a {type(self.mask).__name__} was given; expected Intervals: workbench.kernels.key_intervals makes "
                "them from lengths and windows (intervals) or from a CausalMask (intervals_of)"
            )
        return self.mask

    @property
    def profile_mask(self) -> tuple[Intervals, SelectedMask | None]:
        """The run of keys that each row sees, and what is selected of it, which profiles need.

        Raises:
            WorkbenchError: if the mask is of another kind.
        """
        if not isinstance(self.mask, SelectedMask):
            return self.intervals, None
        return replace(self, mask=self.mask.base).intervals, self.mask

    def scores(self, tile: Tile, scratch: Scratch) -> Float[Tensor, "b kv g q k2"]:
        """A tile of scores, over ln 2, in the scratch's first buffer."""
        factor = self.scale / (LN_2 if self.softcap is None else self.softcap)
        keys = tile.keys_in(self.k)
        n_b, n_kv, n_keys, d = keys.shape
        queries = scratch.rows((n_b, n_kv, self.group, len(tile.rows), d))
        torch.mul(self.rows_of(self.q, tile), factor, out=queries)
        flat = scratch.take(0, (n_b * n_kv, self.group * len(tile.rows), n_keys))
        torch.bmm(queries.view(*flat.shape[:2], d), keys.flatten(0, 1).mT, out=flat)
        scores = flat.view(n_b, n_kv, self.group, -1, n_keys)
        if self.softcap is not None:
            # `soft_capped` in place, with the division folded into the queries: two passes over the tile less.
            scores.tanh_().mul_(self.softcap / LN_2)
        return hide(scores, tile)

    def softmax(self, tile: Tile, scratch: Scratch, *, keep_shifted: bool = False, find_best: bool = False) -> Softmax:
        """A tile's softmax, in the scratch's buffers until the next tile."""
        scores = self.scores(tile, scratch)
        highest, best = row_maxima(scores) if find_best else (scores.amax(-1), None)
        top = highest
        if (sink := self.sink_scores(tile.heads(self.group))) is not None:
            top = torch.maximum(highest, sink)
        shifted = scores.sub_(top[..., None])
        weights = torch.exp2(shifted, out=scratch.second(shifted) if keep_shifted else shifted)
        seen = weights.sum(-1)
        total = torch.where(highest <= HIDDEN / 2, torch.inf, seen) if sink is None else seen + torch.exp2(sink - top)
        return Softmax(weights, shifted, top, highest, best, seen, total, sink)

    def sink_scores(self, heads: slice) -> Float[Tensor, "kv g 1"] | None:
        """The learned sinks of some query heads, over ln 2."""
        return None if self.sinks is None else (self.sinks[heads].float() / LN_2).view(-1, self.group, 1)

    def weights(
        self, tile: Tile, lse: Float[Tensor, "b n_heads q"], scratch: Scratch
    ) -> Float[Tensor, "b2 kv g q2 k2"]:
        """A tile's probabilities from the rows' denominators, in the scratch's first buffer."""
        scores = self.scores(tile, scratch)
        return scores.sub_(self.rows_of(lse, tile)[..., None].clamp_min(HIDDEN / 2) / LN_2).exp2_()

    def rows_of(self, x: Float[Tensor, "b n_heads q *d"], tile: Tile) -> Float[Tensor, "b2 kv g q2 *d"]:
        """The values of a tile's rows and query heads, in float32."""
        picked = x[tile.batch, tile.heads(self.group)][:, :, tile.at].float()
        return picked.unflatten(1, (-1, self.group))


@dataclass(frozen=True, slots=True)
class Softmax:
    """A tile after its softmax.

    `weights` are 2 ** `shifted`, where `shifted` are the scores less `top`, the larger of the row's highest score and
    its learned sink; `shifted` shares memory with `weights` unless it was to be kept. `seen` are the weights' sums,
    `total` the denominators: with the sink's share, or infinite for rows that see neither key nor sink. `best`: columns
    of the highest scores.
    """

    weights: Float[Tensor, "b kv g q k"]
    shifted: Float[Tensor, "b kv g q k"]
    top: Float[Tensor, "b kv g q"]
    highest: Float[Tensor, "b kv g q"]
    best: Int[Tensor, "b kv g q"] | None
    seen: Float[Tensor, "b kv g q"]
    total: Float[Tensor, "b kv g q"]
    sink: Float[Tensor, "kv g 1"] | None

    @property
    def is_blind(self) -> Tensor:
        """Rows that see no key."""
        return self.highest <= HIDDEN / 2

    def lse(self) -> Float[Tensor, "b kv g q"]:
        """ln of the denominator, −inf where there is none."""
        return log_denominator(self.top, self.total)

    def weighted_shifts(self) -> Float[Tensor, "b kv g q"]:
        """Σ weights · shifted over the keys; reads the shifted scores, which must be kept, and overwrites them."""
        return torch.mul(self.weights, self.shifted, out=self.shifted).sum(-1)

    def entropy(self) -> Float[Tensor, "b kv g q"]:
        """In nats, the learned sink one outcome; overwrites the shifted scores, as `weighted_shifts`."""
        return entropy_of_rows(self.weighted_shifts(), self.top, self.total, self.sink)

    def output(self, v: Float[Tensor, "b kv k d"], scratch: Scratch) -> Float[Tensor, "b kv g q d"]:
        """The rows of the layer's output, in the scratch's buffer of rows until the next tile."""
        n_b, n_kv, group, n_rows, n_keys = self.weights.shape
        weights = self.weights.view(n_b * n_kv, group * n_rows, n_keys)
        sums = torch.bmm(weights, v.flatten(0, 1), out=scratch.rows((*weights.shape[:2], v.shape[-1])))
        return sums.view(n_b, n_kv, group, n_rows, -1).div_(self.total[..., None])


def log_denominator(top: Float[Tensor, "b kv g q"], total: Float[Tensor, "b kv g q"]) -> Float[Tensor, "b kv g q"]:
    """ln of the denominators of rows, −inf where there is none; arguments as of `Softmax`."""
    return torch.where(total.isinf(), -torch.inf, top * LN_2 + total.log())


def entropy_of_rows(
    weighted_shifts: Float[Tensor, "b kv g q"],
    top: Float[Tensor, "b kv g q"],
    total: Float[Tensor, "b kv g q"],
    sink: Float[Tensor, "kv g 1"] | None,
) -> Float[Tensor, "b kv g q"]:
    """Entropies of rows in nats, the learned sink one outcome, from Σ weights · shifted; arguments as of `Softmax`."""
    if sink is not None:
        below = sink - top
        weighted_shifts = weighted_shifts + torch.exp2(below) * below
    return torch.where(total.isinf(), 0, total.log() - LN_2 * weighted_shifts / total)


def hide(scores: Float[Tensor, "b kv g q k"], tile: Tile) -> Float[Tensor, "b kv g q k"]:
    """Overwrite the scores of a tile's hidden cells, whatever they are: NaN and infinity too."""
    for column, cells in tile.hidden:
        run = scores[..., column : column + cells.shape[-1]]
        if run.device.type == "cpu" and run.dtype == torch.float32:
            # masked_fill_ goes cell by cell there, and takes four times as long as clearing all bits and adding.
            run.view(torch.int32).bitwise_and_(per_head(cells.int() - 1))
            run.add_(per_head(cells * HIDDEN))
        else:
            run.masked_fill_(per_head(cells), HIDDEN)
    return scores


def soft_capped(scores: Float[Tensor, "*shape"], softcap: float | None) -> Float[Tensor, "*shape"]:
    """softcap · tanh(scores / softcap); the scores themselves where there is no cap."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def sink_share(
    sinks: Float[Tensor, " n_heads"] | None, lse: Float[Tensor, "b n_heads q"]
) -> Float[Tensor, "b n_heads q"] | None:
    """Mass on the learned sink, exp(sink − lse)."""
    return None if sinks is None else torch.exp(rearrange(sinks.to(lse.dtype), "h -> 1 h 1") - lse)


def row_maxima(scores: Float[Tensor, "*b q k"]) -> tuple[Float[Tensor, "*b q"], Int[Tensor, "*b q"]]:
    """Each row's maximum and the first column that has it: among the maxima of runs of columns, then in that run."""
    n_keys = scores.shape[-1]
    if n_keys < 2 * _RUN:
        highest, best = scores.max(-1)
        return highest, best
    whole = n_keys // _RUN * _RUN
    runs = scores[..., :whole].unflatten(-1, (-1, _RUN)).amax(-1)
    if whole < n_keys:
        runs = torch.cat([runs, scores[..., whole:].amax(-1, keepdim=True)], -1)
    highest, run = runs.max(-1)
    # The last run may be short: the columns read before it hold no score as high.
    first = (run * _RUN).clamp_max(n_keys - _RUN)
    columns = first[..., None] + torch.arange(_RUN, device=scores.device)
    return highest, first + scores.gather(-1, columns).argmax(-1)
