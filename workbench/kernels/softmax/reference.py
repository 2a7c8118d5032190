"""Dense float64 definitions of every statistic: the meaning that the fast forms are tested against. T × T: small T."""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from workbench.kernels.masks import TileMask, visible_tile
from workbench.kernels.softmax.statistics import Request, RowStatistics


def attention_pattern(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    mask: TileMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
) -> tuple[Float[Tensor, "b n_heads q k"], Float[Tensor, "b n_heads q"]]:
    """Attention probabilities and the log of their denominator, learned sink included in the denominator only."""
    scores = scale * einsum(q.double(), _per_query_head(k.double(), q.shape[1]), "b h q d, b h k d -> b h q k")
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    rows = torch.arange(q.shape[2], device=q.device)
    visible = visible_tile(mask, slice(0, len(q)), rows, k.shape[2])
    scores = scores.masked_fill(~rearrange(visible, "b q k -> b 1 q k"), -torch.inf)
    lse = scores.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, rearrange(sinks.double(), "h -> 1 h 1"))
    return torch.exp(scores - lse.clamp_min(torch.finfo(torch.float64).min)[..., None]), lse


def linear_pattern(
    q: Float[Tensor, "b n_kv_heads t d"],
    k: Float[Tensor, "b n_kv_heads t d"],
    log_decay: Float[Tensor, "#b n_heads t rates"],
    strength: Float[Tensor, "#b n_heads t"],
    *,
    erases: bool,
) -> Float[Tensor, "b n_heads t t"]:
    """The signed, unnormalised pattern of a linear layer whose state takes in one token after another.

    The state is S_t = M_t S_{t−1} + b_t k_t v_tᵀ and the output S_tᵀ q_t, with M_t = diag(exp(log_decay_t)), or
    (I − b_t k_t k_tᵀ) diag(exp(log_decay_t)) where the layer erases what it overwrites; b is `strength`. The weight of
    v_j in row i is read off by carrying q_i back from token i to token j.

    Reference:
        Yang et al. 2025, Gated Delta Networks, eq. 10; without erasing, Qin et al. 2024, Lightning Attention-2, eq. 5.
    """
    n_heads, n_tokens = log_decay.shape[1:3]
    q, k = _per_query_head(q.double(), n_heads), _per_query_head(k.double(), n_heads)
    decay, strength = torch.exp(log_decay.double()), strength.double().expand(len(q), -1, -1)
    pattern = q.new_zeros(len(q), n_heads, n_tokens, n_tokens)
    carried = q.clone()  # of row i, q_i carried back to the token at hand; rows before it have not started
    for j in reversed(range(n_tokens)):
        seen = strength[:, :, j, None] * einsum(carried[:, :, j:], k[:, :, j], "b h i d, b h d -> b h i")
        pattern[:, :, j:, j] = seen
        if erases:
            carried[:, :, j:] -= einsum(seen, k[:, :, j], "b h i, b h d -> b h i d")
        carried[:, :, j:] *= decay[:, :, j, None]
    return pattern


def attention_statistics(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"],
    mask: TileMask,
    request: Request,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
) -> tuple[Float[Tensor, "b q2 n_heads d_v"], RowStatistics]:
    """Softmax attention's output and the statistics of its rows."""
    pattern, lse = attention_pattern(q, k, mask, scale=scale, softcap=softcap, sinks=sinks)
    out = einsum(pattern, _per_query_head(v.double(), q.shape[1]), "b h q k, b h k d -> b q h d")
    if request.rows is not None:
        out = out[:, request.rows]
    outcomes = pattern
    if sinks is not None:
        sink_mass = torch.exp(rearrange(sinks.double(), "h -> 1 h 1") - lse)
        outcomes = torch.cat([pattern, sink_mass[..., None]], -1)
    entropy = torch.special.entr(outcomes).sum(-1)
    statistics = _statistics(pattern, pattern, lse, entropy, request)
    return out, _with_value_norms(statistics, pattern, out, v.double(), request) if request.value_norms else statistics


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


def signed_statistics(pattern: Float[Tensor, "b n_heads q k"], request: Request) -> RowStatistics:
    """The statistics of a signed, unnormalised pattern, over Σ|A|."""
    norm = pattern.abs().sum(-1)
    signed = pattern / torch.where(norm > 0, norm, 1)[..., None]
    entropy = torch.special.entr(signed.abs()).sum(-1)
    return _statistics(signed.abs(), signed, norm.log(), entropy, request)


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
    found: dict[str, Tensor] = {}
    if request.windows:
        first = torch.zeros(len(weights)) if request.first is None else request.first
        after = torch.arange(weights.shape[-1]) >= first[:, None]
        masses = [(weights * ((distance >= w) & rearrange(after, "b k -> b 1 1 k"))).sum(-1) for w in request.windows]
        found["beyond"] = torch.stack(masses, -1)[:, :, picked]
    if request.squares:
        found["squares"] = (weights**2).sum(-1)[..., picked]
    if request.features is not None:
        sums = einsum(signed, request.features.double(), "b h q k, b k f -> b h q f")
        found["features"] = sums[:, :, picked]
    if request.row_weights is not None:
        counted = request.row_weights.double()[:, picked]
        found["columns"] = einsum(weights[:, :, picked], counted, "b h q k, b q -> b h k")
    return found


def _per_query_head(x: Float[Tensor, "b n_kv_heads k d"], n_heads: int) -> Float[Tensor, "b n_heads k d"]:
    return repeat(x, "b kv k d -> b (kv g) k d", g=n_heads // x.shape[1])
