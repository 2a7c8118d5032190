"""A softmax head computed as linear attention: weights λ^(i−j) φ(q_i) · φ(k_j), normalised over the keys it sees.

The head keeps its queries, keys (rotated as the model rotates them) and values, and needs a state of d_φ · (d_v + 1)
numbers in place of its key/value cache. Outputs come from the chunked kernel, whose gradients reach q, k and v.
Statistics come from the rows that the state implies; they are exact and never T × T. The weights are positive, so that
the pattern is the normalised row.

Reference:
    Katharopoulos et al. 2020, Transformers are RNNs, section 3.2 (elu); Arora et al. 2024, Simple linear attention
    language models balance the recall-throughput tradeoff, section 4 (taylor). A decay per head as in RetNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import elu, pad

from workbench.heads import WorkbenchError
from workbench.hooks.taps.attention_call import AttentionCall
from workbench.hooks.taps.scored_call import ScoredCall
from workbench.kernels import CausalMask, DecayRows, Request, RowStatistics, TileMask, signed_crop, signed_statistics
from workbench.kernels.ops import linear_attention
from workbench.store.conversions import LinearAttention

# Added to elu features, so that no row is empty where they underflow.
_LEAST = 1e-6
_CROP_ROWS = 128


@dataclass(frozen=True, slots=True)
class LinearisedCall(AttentionCall):
    """Some heads of a softmax layer, computed as linear attention; `q` and `k` hold their features, one key per head.

    It is read like any `AttentionCall`; its pattern is the normalised rows. Learned sinks and softcaps are left out.
    """

    log_decay: Float[Tensor, " n_heads"] = field(kw_only=True)

    def output(self, mask: TileMask | None = None) -> Float[Tensor, "b q n_heads d_v"]:
        """The heads' outputs; gradients flow where autograd is enabled."""
        return self._mixed(self.v, self._valid_mask(mask))

    def statistics(
        self, request: Request, mask: TileMask | None = None
    ) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
        """The output and the statistics of the heads' normalised rows; `lse` is ln of the sum of the weights."""
        mask = self._valid_mask(mask)
        out = self._mixed(self.v, mask)
        statistics = signed_statistics(self._rows(mask), replace(request, value_norms=False))
        rows = slice(None) if request.rows is None else request.rows
        if request.value_norms:
            norms = self.v.float().norm(dim=-1, keepdim=True)
            first = torch.zeros(len(norms), dtype=torch.long) if request.first is None else request.first
            statistics = replace(
                statistics,
                value_norm=rearrange(self._mixed(norms, mask), "b q h 1 -> b h q")[..., rows],
                output_norm=rearrange(out.float().norm(dim=-1), "b q h -> b h q")[..., rows],
                first_value_norm=norms[torch.arange(len(norms)), :, first.to(norms.device)],
            )
        return out[:, rows], statistics

    def crop(self, mask: TileMask, queries: Int[Tensor, " q"], keys: Int[Tensor, " k"]) -> Float[Tensor, "q k"]:
        """The weights of the first head on the first sequence, normalised, on chosen queries and keys."""
        rows, all_keys = self._rows(self._valid_mask(mask)), torch.arange(self.k.shape[2], device=self.k.device)
        crops: list[Tensor] = []
        for block in queries.split(_CROP_ROWS):  # the sums take whole rows, a few at a time
            total = signed_crop(rows, 0, 0, queries=block, keys=all_keys).sum(-1, keepdim=True)
            weights = signed_crop(rows, 0, 0, queries=block, keys=keys)
            crops.append(torch.where(total > 0, weights / total, 0))
        return torch.cat(crops)

    def _mixed(self, v: Float[Tensor, "b n_heads k d_v"], mask: CausalMask) -> Float[Tensor, "b q n_heads d_v"]:
        """Σ_j w_ij v_j / Σ_j w_ij; the denominator is the sum over one more column of values, of ones."""
        k = _without_padding(self.k, mask.valid)
        ahead = self.k.shape[2] - self.q.shape[2]  # keys in the cache come before these queries
        q = pad(self.q, (0, 0, ahead, 0))
        summed = linear_attention(q, k, _with_ones(v), log_decay=self.log_decay).out[:, :, ahead:]
        return _normalised(summed).to(v.dtype)

    def _rows(self, mask: CausalMask) -> DecayRows:
        if self.q.shape[2] != self.k.shape[2]:
            raise WorkbenchError("patterns of heads with linear attention are of whole sequences; leave prefill= out")
        log_decay = repeat(self.log_decay, "h -> 1 h t", t=self.q.shape[2])
        return DecayRows(self.q.float(), self.k.float(), log_decay, valid=mask.valid)

    def _valid_mask(self, mask: TileMask | None) -> CausalMask:
        mask = self.mask.simplest() if mask is None else mask
        if not isinstance(mask, CausalMask) or mask.window is not None:
            raise WorkbenchError(
                f"a head of layer {self.layer} that does not see its whole past was to have linear attention; expected "
                "a causal layer without a window of its own, and one document to a sequence"
            )
        return mask


def linearised(call: AttentionCall, forms: Sequence[LinearAttention]) -> LinearisedCall:
    """The call computed as linear attention, with a form for each of its query heads; all have the same features.

    Raises:
        WorkbenchError: for a layer whose scores are more than queries · keys.
    """
    if isinstance(call, ScoredCall):
        raise WorkbenchError(f"the scores of layer {call.layer} are not queries · keys alone: no linear attention")
    n_heads = call.q.shape[1]
    k, v = (x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], 1) for x in (call.k, call.v))
    factor = rearrange(call.q.new_tensor([f.sharpness * call.scale**0.5 for f in forms]), "h -> h 1 1")
    feature_map = _FEATURE_MAPS[forms[0].features]
    unchanged: dict[str, Any] = {f.name: getattr(call, f.name) for f in fields(AttentionCall)}
    changed: dict[str, Any] = {"q": feature_map(call.q * factor), "k": feature_map(k * factor), "v": v, "sinks": None}
    log_decay = torch.tensor([f.decay for f in forms], device=call.q.device, dtype=torch.float64).log().float()
    return LinearisedCall(**{**unchanged, **changed}, log_decay=log_decay)


def continued(
    q: Float[Tensor, "b h t d"],
    k: Float[Tensor, "b h t d"],
    v: Float[Tensor, "b h t d_v"],
    to: LinearAttention,
    before: StateBefore,
) -> tuple[Float[Tensor, "b t h d_v"], Float[Tensor, "b h features d_v1"]]:
    """Outputs of one form's heads on tokens that go on from a state, and the state after them.

    `q` and `k` are rotated and not scaled; a state is Σ λ^(i−j) φ(k_j) [v_j, 1], in float32.
    """
    factor, feature_map = to.sharpness * before.scale**0.5, _FEATURE_MAPS[to.features]
    keys = _without_padding(feature_map(k * factor), before.valid)
    log_decay = torch.full(q.shape[1:2], to.decay, device=q.device, dtype=torch.float64).log().float()
    outputs = linear_attention(
        feature_map(q * factor), keys, _with_ones(v), log_decay=log_decay, initial_state=before.state
    )
    return _normalised(outputs.out).to(v.dtype), outputs.state


@dataclass(frozen=True, slots=True)
class StateBefore:
    """What tokens go on from: a state, None for none; `valid`: those of the tokens themselves that are no padding.

    `scale`: the model's own factor of q · k.
    """

    scale: float
    state: Float[Tensor, "b h features d_v1"] | None
    valid: Bool[Tensor, "b t"] | None


def _without_padding(k: Float[Tensor, "b h t features"], valid: Bool[Tensor, "b t"] | None) -> Tensor:
    return k if valid is None else k * rearrange(valid.to(k), "b k -> b 1 k 1")


def _with_ones(v: Float[Tensor, "b h t d_v"]) -> Float[Tensor, "b h t d_v1"]:
    return _wide(torch.cat([v, v.new_ones(1).expand(*v.shape[:-1], 1)], -1))


def _normalised(summed: Float[Tensor, "b h t d_v1"]) -> Float[Tensor, "b t h d_v"]:
    weight = summed[..., -1:]
    return rearrange(summed[..., :-1] / torch.where(weight > 0, weight, 1), "b h q d -> b q h d")


def _elu(x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h t d"]:
    return elu(_wide(x)) + 1 + _LEAST


def _taylor(x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h t features"]:
    """Features whose product is 1 + s + s² / 2 with s = x_q · x_k; every pair of channels stands once."""
    x = _wide(x)
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], 1, device=x.device)
    return torch.cat([torch.ones_like(x[..., :1]), x, x.square() / 2**0.5, x[..., i] * x[..., j]], -1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


_FEATURE_MAPS = {"elu": _elu, "taylor": _taylor}
