"""Dense float64 definitions of every statistic, which the other implementations are tested against. T × T: small T.

They share no arithmetic with what they define: the pattern, its softcap and its learned sink are written out here.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.kernels.key_intervals import Intervals
from workbench.kernels.masks import visible_tile
from workbench.kernels.softmax.softmax_tiles import SoftmaxLayer
from workbench.kernels.softmax.statistics_request import AttentionProfile, Request, RowStatistics


def reference_pattern(layer: SoftmaxLayer) -> tuple[Float[Tensor, "b n_heads q k"], Float[Tensor, "b n_heads q"]]:
    """Attention probabilities and the log of their denominator, learned sink included in the denominator only."""
    q, k = layer.q.double(), _per_query_head(layer.k.double(), layer.q.shape[1])
    scores = layer.scale * einsum(q, k, "b h q d, b h k d -> b h q k")
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    scores = scores.masked_fill(~rearrange(_visible(layer), "b q k -> b 1 q k"), -torch.inf)
    lse = scores.logsumexp(-1)
    if layer.sinks is not None:
        lse = torch.logaddexp(lse, rearrange(layer.sinks.double(), "h -> 1 h 1"))
    return torch.exp(scores - lse.clamp_min(torch.finfo(torch.float64).min)[..., None]), lse


def _visible(layer: SoftmaxLayer) -> Bool[Tensor, "#b q k"]:
    n_keys = layer.k.shape[2]
    if isinstance(layer.mask, Intervals):
        return layer.mask.visible(n_keys)
    rows = torch.arange(layer.q.shape[2], device=layer.q.device)
    return visible_tile(layer.mask, slice(0, len(layer.q)), rows, n_keys)


def linear_pattern(
    q: Float[Tensor, "b n_kv_heads t d"],
    k: Float[Tensor, "b n_kv_heads t d"],
    log_decay: Float[Tensor, "#b n_heads t rates"],
    strength: Float[Tensor, "#b n_heads t"],
    *,
    erases: bool,
) -> Float[Tensor, "b n_heads t t"]:
    """The signed, unnormalised pattern of a linear layer, token by token from its recurrence.

    The state is S_t = M_t S_{t−1} + b_t k_t v_tᵀ and the output S_tᵀ q_t, with M_t = diag(exp(log_decay_t)), or
    (I − b_t k_t k_tᵀ) diag(exp(log_decay_t)) where the layer erases what it overwrites; b is `strength`. The weight of
    v_j in row i follows by carrying q_i back from token i to token j.

    Reference:
        Yang et al. 2025, Gated Delta Networks, eq. 10; without erasing, Qin et al. 2024, Lightning Attention-2, eq. 5.
    """
    n_heads, n_tokens = log_decay.shape[1:3]
    q, k = _per_query_head(q.double(), n_heads), _per_query_head(k.double(), n_heads)
    decay, strength = torch.exp(log_decay.double()), strength.double().expand(len(q), -1, -1)
    pattern = q.new_zeros(len(q), n_heads, n_tokens, n_tokens)
    carried = q.clone()  # of row i, q_i carried back to the present token; rows before it have not started
    for j in reversed(range(n_tokens)):
        weights = strength[:, :, j, None] * einsum(carried[:, :, j:], k[:, :, j], "b h i d, b h d -> b h i")
        pattern[:, :, j:, j] = weights
        if erases:
            carried[:, :, j:] -= einsum(weights, k[:, :, j], "b h i, b h d -> b h i d")
        carried[:, :, j:] *= decay[:, :, j, None]
    return pattern


def reference_statistics(
    layer: SoftmaxLayer, v: Float[Tensor, "b n_kv_heads k d_v"], request: Request
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    """Softmax attention's output and the statistics of its rows."""
    pattern, lse = reference_pattern(layer)
    out = einsum(pattern, _per_query_head(v.double(), pattern.shape[1]), "b h q k, b h k d -> b q h d")
    if request.rows is not None:
        out = out[:, request.rows]
    statistics = _statistics(pattern, pattern, lse, _entropy(pattern, _sink_mass(layer, lse)), request)
    return out, _with_value_norms(statistics, pattern, out, v.double(), request) if request.value_norms else statistics


def reference_profile(
    layer: SoftmaxLayer, v: Float[Tensor, "b n_kv_heads k d_v"] | None, request: Request
) -> AttentionProfile:
    """The profile of a layer whose mask is `Intervals`, or selects of them."""
    pattern, lse = reference_pattern(layer)
    distance = layer.profile_mask[0].position.long()[:, None] - torch.arange(pattern.shape[-1], device=pattern.device)
    sink_mass = _sink_mass(layer, lse)
    top_mass, top_key = pattern.max(-1)
    beyond = [(pattern * (distance >= window)).sum(-1) for window in request.windows]
    tag_mass = None
    if request.query_tags is not None and request.key_tags is not None:
        same = request.query_tags[:, :, None] == request.key_tags[:, None, :]
        tag_mass = (pattern * rearrange(same, "b q k -> b 1 q k")).sum(-1)
    return AttentionProfile(
        out=None if v is None else pattern @ _per_query_head(v.double(), pattern.shape[1]),
        lse=lse,
        entropy=_entropy(pattern, sink_mass) if request.entropy else None,
        top_key=torch.where(top_mass > 0, top_key, -1) if request.top else None,
        top_mass=top_mass if request.top else None,
        mean_distance=(pattern * distance).sum(-1) if request.distance else None,
        beyond=torch.stack(beyond, -1) if beyond else None,
        tag_mass=tag_mass,
        sink_mass=sink_mass,
    )


def reference_column_sums(layer: SoftmaxLayer) -> Float[Tensor, "b n_heads k"]:
    """Attention received by each key, Σ_i p_ij."""
    return reference_pattern(layer)[0].sum(-2)


def reference_signed_statistics(pattern: Float[Tensor, "b n_heads q k"], request: Request) -> RowStatistics:
    """The statistics of a signed, unnormalised pattern, over Σ|A|."""
    norm = pattern.abs().sum(-1)
    signed = pattern / torch.where(norm > 0, norm, 1)[..., None]
    return _statistics(signed.abs(), signed, norm.log(), _entropy(signed.abs(), None), request)


def _sink_mass(layer: SoftmaxLayer, lse: Float[Tensor, "b n_heads q"]) -> Float[Tensor, "b n_heads q"] | None:
    return None if layer.sinks is None else torch.exp(rearrange(layer.sinks.double(), "h -> 1 h 1") - lse)


def _entropy(
    weights: Float[Tensor, "b n_heads q k"], sink_mass: Float[Tensor, "b n_heads q"] | None
) -> Float[Tensor, "b n_heads q"]:
    """In nats, the learned sink one outcome."""
    outcomes = weights if sink_mass is None else torch.cat([weights, sink_mass[..., None]], -1)
    return torch.special.entr(outcomes).sum(-1)


def _with_value_norms(
    statistics: RowStatistics,
    pattern: Float[Tensor, "b n_heads q k"],
    out: Float[Tensor, "b q2 n_heads d_v"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    request: Request,
) -> RowStatistics:
    norms = _per_query_head(v, pattern.shape[1]).norm(dim=-1)
    weighted = einsum(pattern, norms, "b h q k, b h k -> b h q")
    first = torch.zeros(len(v), dtype=torch.long) if request.first is None else request.first.long()
    return replace(
        statistics,
        value_norm=weighted if request.rows is None else weighted[..., request.rows],
        output_norm=rearrange(out.norm(dim=-1), "b q h -> b h q"),
        first_value_norm=norms[torch.arange(len(v)), :, first][..., None],
    )


def _statistics(
    weights: Float[Tensor, "b n_heads q k"],
    signed: Float[Tensor, "b n_heads q k"],
    lse: Float[Tensor, "b n_heads q"],
    entropy: Float[Tensor, "b n_heads q"],
    request: Request,
) -> RowStatistics:
    n_rows, n_keys = weights.shape[2:]
    rows = torch.arange(n_rows, device=weights.device)
    distance = rows[:, None] + (n_keys - n_rows) - torch.arange(n_keys, device=weights.device)
    far = cells = top = None
    if request.far is not None:
        first = torch.zeros(len(weights)) if request.first is None else request.first
        after_sink = torch.arange(n_keys, device=weights.device) >= first[:, None].to(weights.device) + request.far.sink
        is_far = (distance >= request.far.window) & rearrange(after_sink, "b k -> b 1 1 k")
        far = (weights * is_far).sum(-1)
    if request.cells is not None:
        cells = signed[request.cells.sequence, :, request.cells.row, request.cells.key]
    if request.top_rows is not None:
        top = weights[request.top_rows[:, 0], :, request.top_rows[:, 1]].argmax(-1)
    picked = rows if request.rows is None else request.rows
    return RowStatistics(
        lse=lse[..., picked],
        mass=weights.sum(-1)[..., picked],
        entropy=entropy[..., picked] if request.entropy else None,
        mean_distance=(weights * distance).sum(-1)[..., picked] if request.distance else None,
        far_mass=None if far is None else far[..., picked],
        cells=cells,
        top_key=top,
        **_sums(weights, signed, distance, picked, request),
    )


def _sums(
    weights: Float[Tensor, "b n_heads q k"],
    signed: Float[Tensor, "b n_heads q k"],
    distance: Int[Tensor, "q k"],
    picked: Int[Tensor, " q2"],
    request: Request,
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    if request.windows:
        first = torch.zeros(len(weights)) if request.first is None else request.first
        after = torch.arange(weights.shape[-1]) >= first[:, None]
        masses = [(weights * ((distance >= w) & rearrange(after, "b k -> b 1 1 k"))).sum(-1) for w in request.windows]
        sums["beyond"] = torch.stack(masses, -1)[:, :, picked]
    if request.squares:
        sums["squares"] = (weights**2).sum(-1)[..., picked]
    if request.features is not None:
        weighted = einsum(signed, request.features.double(), "b h q k, b k f -> b h q f")
        sums["features"] = weighted[:, :, picked]
    if request.row_weights is not None:
        row_weights = request.row_weights.double()[:, picked]
        sums["columns"] = einsum(weights[:, :, picked], row_weights, "b h q k, b q -> b h k")
    return sums


def _per_query_head(x: Float[Tensor, "b n_kv_heads k d"], n_heads: int) -> Float[Tensor, "b n_heads k d"]:
    return repeat(x, "b kv k d -> b (kv g) k d", g=n_heads // x.shape[1])
