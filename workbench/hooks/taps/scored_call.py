"""The AttentionCall of families whose scores are not queries · keys: a softmax layer given by its scores.

Older families expose no queries and keys at all (`scored_call`); others add a bias of their own to each score
(`biased_call`). A learned sink that depends on the token is a shift: a softmax does not change when every score of a
row and its sink are lowered by one number, so scores are relative to the row's sink, which is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from workbench.heads import WorkbenchError
from workbench.hooks.taps.attention_call import OWN_PROBABILITIES, AttentionCall, LazyMask
from workbench.kernels import Request, RowStatistics, TileMask
from workbench.kernels.masks import visible_tile
from workbench.kernels.softmax.blockwise import blockwise_statistics
from workbench.kernels.softmax.precomputed_scores import ScoredLayer, scored_crop, scored_layer

# One layer's scores, T × T, are in memory at a time, which limits T.
MAX_TOKENS = 4096
_ROWS = 256


@dataclass(frozen=True, slots=True)
class ScoredCall(AttentionCall):
    """One softmax layer given by its scores, every bias included; `sinks` are zeros where it has any.

    `q` holds the scores, which are queries in the basis of the keys; `k` holds the number of each key's column in them.
    Slicing rows, keys or heads of an AttentionCall therefore works on this one too.
    """

    q: Float[Tensor, "b n_heads q columns"]
    k: Float[Tensor, "b n_kv_heads k 1"]

    def output(self, mask: TileMask | None = None) -> Float[Tensor, "b q n_heads d_v"]:
        """The layer's attention output under its own mask or another; gradients flow if the inputs require them."""
        if torch.is_grad_enabled() and (self.q.requires_grad or self.v.requires_grad):
            return self._dense_output(self.mask.simplest() if mask is None else mask)
        return self.statistics(Request(), mask)[0]

    def _dense_output(self, mask: TileMask) -> Float[Tensor, "b q n_heads d_v"]:
        """All rows at once, as the model itself computes them."""
        scores, n_keys = self.key_scores(), self.k.shape[2]
        rows = torch.arange(scores.shape[2], device=scores.device)
        visible = rearrange(visible_tile(mask, slice(0, len(scores)), rows, n_keys), "b q k -> b 1 q k")
        scores = scores.float().masked_fill(~visible, torch.finfo(torch.float32).min)
        if self.sinks is not None:
            scores = pad(scores, (0, 1))
        weights = scores.softmax(-1)[..., :n_keys] * visible.any(-1, keepdim=True)
        weights = rearrange(weights, "b (kv g) q k -> b kv g q k", kv=self.v.shape[1])
        out = einsum(weights, self.v.float(), "b kv g q k, b kv k d -> b q kv g d")
        return rearrange(out, "b q kv g d -> b q (kv g) d").to(self.v.dtype)

    def key_scores(self) -> Float[Tensor, "b n_heads q k"]:
        """The scores of the keys of this call."""
        if self.k.shape[2] == self.q.shape[-1]:
            return self.q
        return self.q.index_select(-1, self.k[0, 0, :, 0].long())

    def softmax_layer(self, mask: TileMask | None = None) -> ScoredLayer:
        """The layer as the kernels take it, under its own mask or another."""
        mask = self.mask.simplest() if mask is None else mask
        return scored_layer(self.key_scores(), self.v.shape[1], mask, self.sinks)

    def statistics(
        self, request: Request, mask: TileMask | None = None
    ) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
        """The output and the statistics of the layer's rows, under its own mask or another."""
        return blockwise_statistics(self.softmax_layer(mask), self.v, request)

    def crop(self, mask: TileMask, queries: Int[Tensor, " q"], keys: Int[Tensor, " k"]) -> Float[Tensor, "q k"]:
        """The probabilities of the first head on the first sequence, on chosen queries and keys."""
        sink = None if self.sinks is None else self.sinks[0]
        return scored_crop(self.q[0, 0], mask, queries=queries, keys=keys, sink=sink)


def scored_call(
    layer: int,
    scores: Float[Tensor, "b n_heads q k"],
    v: Float[Tensor, "#b n_v_heads k d_v"],
    mask: LazyMask,
    *,
    n_kv_heads: int | None,
    name: str,
) -> ScoredCall:
    """The call of a layer with these masked scores.

    Args:
        n_kv_heads: of the configuration, for families that repeat their values before they use them.

    Raises:
        WorkbenchError: naming the layer by `name`, if the scores hide other keys than `mask` does.
    """
    _refuse_another_mask(scores, mask, floor=torch.finfo(v.dtype).min / 2, name=name)
    return _call(layer, scores, _unrepeated(v.expand(len(scores), -1, -1, -1), n_kv_heads), mask)


def biased_call(
    call: AttentionCall,
    *,
    bias: Float[Tensor, "#b #n_heads q k"] | None,
    sinks: Float[Tensor, "b n_heads q 1"] | None,
    name: str,
) -> ScoredCall:
    """The call of a layer that adds `bias` to the scaled scores of `call`, with one learned sink logit for each row.

    Raises:
        WorkbenchError: naming the layer by `name`, for more tokens than MAX_TOKENS.
    """
    if call.q.shape[2] > MAX_TOKENS:
        raise WorkbenchError(
            f"{call.q.shape[2]} tokens are too many for {name}: its scores have a bias for every query and key, a "
            f"matrix of tokens² cells per head that the model builds; pass sequences of at most {MAX_TOKENS} tokens"
        )
    scores = grouped_scores(call.q, call.k) * call.scale
    scores = scores if bias is None else scores + bias.float()
    scores = scores if sinks is None else scores - sinks.float()
    zeros = None if sinks is None else scores.new_zeros(scores.shape[1])
    return replace(_call(call.layer, scores, call.v, call.mask), sinks=zeros)


def grouped_scores(q: Float[Tensor, "b h q d"], k: Float[Tensor, "b kv k d"]) -> Float[Tensor, "b h q k"]:
    """Every query times every key of its group, in float32."""
    grouped = rearrange(q.float(), "b (kv g) q d -> b kv g q d", kv=k.shape[1])
    return rearrange(einsum(grouped, k.float(), "b kv g q d, b kv k d -> b kv g q k"), "b kv g q k -> b (kv g) q k")


def _call(
    layer: int, scores: Float[Tensor, "b n_heads q k"], v: Float[Tensor, "b n_kv_heads k d_v"], mask: LazyMask
) -> ScoredCall:
    numbers = torch.arange(scores.shape[-1], dtype=torch.float32, device=scores.device)
    return ScoredCall(
        layer=layer,
        q=scores,
        k=rearrange(numbers, "k -> 1 1 k 1").expand(len(scores), v.shape[1], -1, -1),
        v=v,
        mask=mask,
        scale=1.0,
        softcap=None,
        sinks=None,
    )


def _unrepeated(v: Float[Tensor, "b n_v_heads k d_v"], n_kv_heads: int | None) -> Float[Tensor, "b n_kv_heads k d_v"]:
    """The values once per group, where every head of a group has a copy."""
    if n_kv_heads is None or n_kv_heads >= v.shape[1] or v.shape[1] % n_kv_heads:
        return v
    group = v.shape[1] // n_kv_heads
    once = v[:, ::group]
    return once if torch.equal(repeat(once, "b kv k d -> b (kv g) k d", g=group), v) else v


def _refuse_another_mask(scores: Float[Tensor, "b h q k"], mask: LazyMask, *, floor: float, name: str) -> None:
    """Raise unless every key that the mask shows has a score, and none that it hides has weight."""
    n_queries, n_keys = scores.shape[-2:]
    for first in range(0, n_queries, _ROWS):
        rows = torch.arange(first, min(n_queries, first + _ROWS), device=scores.device)
        visible = rearrange(visible_tile(mask, slice(0, len(scores)), rows, n_keys), "b q k -> b 1 q k")
        picked = scores[:, :, rows].float()
        is_masked = (visible & (picked <= floor)).any(-1)
        top = picked.masked_fill(~visible, -torch.inf).amax(-1)
        # exp(−104) is 0 in float32: what a family hides with −1e4 has no weight either.
        is_leaking = picked.masked_fill(visible, -torch.inf).amax(-1) > top - 104
        if bool(((is_masked | is_leaking) & visible.any(-1)).any()):
            window = "the whole past" if mask.window is None else f"the last {mask.window} tokens"
            raise WorkbenchError(
                f"{name} attends to other keys than {window} without padding; expected a causal decoder and "
                "attention_mask as [batch, tokens]. Pass such a mask; leave this model out if it is refused with "
                f"one: {OWN_PROBABILITIES}"
            )
