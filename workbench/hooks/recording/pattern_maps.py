"""Pattern maps: every head's attention on one sequence as block maxima, distances and strongest links.

They are made in one forward pass, each layer while it runs. Of a few heads finer blocks can be kept, and the queries
and keys, from which any crop of the pattern is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import count

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from workbench.heads import Head, LayerInfo, WorkbenchError
from workbench.hooks.interventions.windows import Interventions
from workbench.hooks.layers import layer_slots
from workbench.hooks.model import HookedModel
from workbench.hooks.recording.forward_pass import answers_of, batch_of
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.eager import handling
from workbench.hooks.taps.linear import LinearCall, reading_linear
from workbench.hooks.taps.scored_call import ScoredCall
from workbench.kernels.masks import TileMask, visible_tile
from workbench.kernels.softmax.pattern_summaries import (
    PatternSummary,
    SummaryOptions,
    coarser,
    distances_of,
    signed_summary,
    softmax_summary,
)
from workbench.kernels.softmax.softmax_tiles import soft_capped

# The largest number of blocks along a side: of every head, and of the heads that are kept finer.
COARSE, FINE = 64, (256, 1024)
_ROWS = 256
# The number of rows on which float16 is tried, and the largest error of a probability that is accepted.
_SAMPLED, _TOLERANCE = 128, 5e-4


@dataclass(frozen=True, slots=True)
class KeptQK:
    """Queries and keys of one head, after rotation and norms, and the rest of its pattern exp(scale · q kᵀ − lse).

    `low`: the first key each row sees; it sees all keys from there to itself.
    """

    head: Head
    q: Float[Tensor, "t d"]
    k: Float[Tensor, "t d"]
    lse: Float[Tensor, " t"]
    low: Int[Tensor, " t"]
    scale: float
    softcap: float | None


@dataclass(frozen=True, slots=True)
class PatternMaps:
    """The patterns of all heads on one sequence, on the CPU.

    `summaries`: by layer slot (index into `layers`), with peaks in blocks of `block` tokens. `fine`: by (layer slot,
    head), the same peaks in smaller blocks, by block size. `qk`: by (layer slot, head). `distances`: those of
    `PatternSummary.beyond`.
    """

    tokens: Int[Tensor, " t"]
    layers: tuple[LayerInfo, ...]
    block: int
    far: int
    distances: tuple[int, ...]
    summaries: tuple[PatternSummary, ...]
    fine: dict[tuple[int, int], dict[int, Float[Tensor, "n n"]]]
    qk: dict[tuple[int, int], KeptQK]


def blocks_of(n_tokens: int) -> tuple[int, ...]:
    """Block sizes in tokens, coarse to fine, each a multiple of the next: at most 64, 256 and 1,024 along a side."""
    sizes = [1]
    for side in sorted((COARSE, *FINE), reverse=True):
        sizes.append(sizes[-1] * max(1, -(-n_tokens // (side * sizes[-1]))))
    return tuple(dict.fromkeys(reversed(sizes[1:])))


def record_maps(
    model: HookedModel,
    tokens: Int[Tensor, " t"],
    *,
    far: int,
    fine: Iterable[Head] | None = (),
    keep_qk: bool = False,
    n_links: int = 16,
) -> PatternMaps:
    """The pooled patterns of every head on one sequence without padding, in one pass and without a T × T matrix.

    Linear layers give their implied pattern, signed and not normalised, as `HookedModel.pattern` does.

    Args:
        far: the distance in tokens from which a link counts as long.
        fine: heads to keep in finer blocks too; None: all of them.
        keep_qk: keep queries and keys of these too, in float16 if no probability changes by 5e-4 or more. Only where a
            row's keys are one run and the family gives its queries and keys; linear layers have none.

    Raises:
        WorkbenchError: for tokens the model does not take, or while interventions are in force.
    """
    if model.interventions != Interventions():
        raise WorkbenchError("maps are made of the model as it is; leave restrict, ablate and patch before making them")
    batch = batch_of(model.model, tokens)
    coarse, *finer_blocks = blocks_of(len(tokens))
    finest, layers = (finer_blocks or [coarse])[-1], model.layers
    fine_heads = None if fine is None else frozenset(fine)
    slots = layer_slots(layers)
    summaries: dict[int, PatternSummary] = {}
    finer: dict[tuple[int, int], dict[int, Tensor]] = {}
    kept_qk: dict[tuple[int, int], KeptQK] = {}

    def fine_heads_of(slot: int) -> list[int]:
        layer = layers[slot]
        return [h for h in range(layer.n_heads) if fine_heads is None or Head(layer.index, h) in fine_heads]

    def options(slot: int) -> SummaryOptions:
        return SummaryOptions(coarse, far, n_links, finest, tuple(fine_heads_of(slot)) if finer_blocks else ())

    def keep(slot: int, summary: PatternSummary) -> None:
        """Keep the coarse peaks of all heads, and the finer ones of some."""
        for h, peaks in zip(fine_heads_of(slot) if finer_blocks else [], summary.fine.split(1), strict=False):
            finer[slot, h] = {b: coarser(peaks, b // finest)[0].cpu() for b in finer_blocks}
        summaries[slot] = _on_cpu(summary)

    def attend(call: AttentionCall) -> Tensor:
        slot = slots[call.layer, False]
        mask = call.mask.simplest()
        summary = _summary_of(call, options(slot))
        keep(slot, summary)
        if keep_qk and not isinstance(call, ScoredCall) and fine_heads_of(slot) and call.mask.n_groups == 1:
            low = _first_keys(mask, len(tokens), call.q.device)
            if low is not None:
                kept_qk.update({(slot, h): _keep_qk(call, h, summary.lse[h], low) for h in fine_heads_of(slot)})
        return call.output()

    def read(call: LinearCall) -> None:
        slot = slots[call.layer, True]
        keep(slot, signed_summary(call.rows, options(slot)))

    with torch.no_grad(), handling(model.model, attend), reading_linear(model.model, batch.valid, read):
        answers_of(model.model, batch)
    return PatternMaps(
        tokens=batch.tokens[0].cpu(),
        layers=layers,
        block=coarse,
        far=far,
        distances=distances_of(len(tokens)),
        summaries=tuple(summaries[i] for i in range(len(layers))),
        fine=finer,
        qk=kept_qk,
    )


def _summary_of(call: AttentionCall, options: SummaryOptions) -> PatternSummary:
    """The summary of a softmax layer, whose groups of heads may select keys for themselves."""
    if call.mask.n_groups == 1:
        return softmax_summary(call.softmax_layer(), options)
    summaries: list[PatternSummary] = []
    for first, of_group in zip(count(step=call.q.shape[1] // call.mask.n_groups), call.of_groups(), strict=False):
        heads = range(first, first + of_group.q.shape[1])
        fine = tuple(h - first for h in options.fine_heads if h in heads)
        summaries.append(softmax_summary(of_group.softmax_layer(), replace(options, fine_heads=fine)))
    return PatternSummary(*(torch.cat([getattr(s, f.name) for s in summaries]) for f in fields(PatternSummary)))


def _on_cpu(summary: PatternSummary) -> PatternSummary:
    """The summary on the CPU, without fine peaks."""
    return PatternSummary(
        peak=summary.peak.cpu(),
        beyond=summary.beyond.cpu(),
        sink=summary.sink.cpu(),
        link_row=summary.link_row.cpu(),
        link_key=summary.link_key.cpu(),
        link_value=summary.link_value.cpu(),
        lse=summary.lse.cpu(),
        fine=summary.fine[:0].cpu(),
    )


def _first_keys(mask: TileMask, n_tokens: int, device: torch.device) -> Int[Tensor, " t"] | None:
    """The first key of each row; None where the keys of some row are not one run that ends at the row."""
    low: list[Tensor] = []
    for first in range(0, n_tokens, _ROWS):
        rows = torch.arange(first, min(n_tokens, first + _ROWS), device=device)
        visible = visible_tile(mask, slice(0, 1), rows, n_tokens)[0]
        start = visible.int().argmax(-1)
        if not bool((visible.sum(-1) == rows - start + 1).all()):
            return None
        low.append(start)
    return torch.cat(low)


def _keep_qk(call: AttentionCall, head: int, lse: Tensor, low: Tensor) -> KeptQK:
    """Queries and keys in float16, or in float32 where large scores would lose too much in float16."""
    kv_head = head // (call.q.shape[1] // call.k.shape[1])
    q, k = call.q[0, head].float(), call.k[0, kv_head].float()
    n_tokens = len(q)
    rows = torch.arange(0, n_tokens, max(1, n_tokens // _SAMPLED), device=q.device)
    keys = torch.arange(n_tokens, device=q.device)
    is_seen = (keys >= low[rows, None]) & (keys <= rows[:, None])

    def pattern(q: Float[Tensor, "t d"], k: Float[Tensor, "t d"]) -> Float[Tensor, "r t"]:
        scores = soft_capped(call.scale * einsum(q[rows], k, "r d, t d -> r t"), call.softcap)
        return torch.where(is_seen, torch.exp(scores - lse[rows, None]), 0)

    halves = q.half(), k.half()
    error = (pattern(*(x.float() for x in halves)) - pattern(q, k)).abs().max()
    q, k = halves if float(error) < _TOLERANCE else (q, k)  # an overflow of float16 gives NaN, which fails this too
    return KeptQK(Head(call.layer, head), q.cpu(), k.cpu(), lse.cpu(), low.cpu(), call.scale, call.softcap)
