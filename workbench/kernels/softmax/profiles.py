"""Attention profiles: all row statistics at once, by definition in float64 and row-blocked in torch on any device.

A profile holds what detectors read: entropy, arg-max, mean distance, the mass beyond each window of a ladder, and the
mass on keys whose tag equals the query's (same token, token after the same token, needle, document, class of tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int, Integer
from torch import Tensor

from workbench.kernels.intervals import Intervals


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """Which statistics a profile holds besides lse. Absent means: not computed, not paid for.

    `windows`: tokens; the mass on keys at distance >= window is wanted for each.
    `query_tags`, `key_tags`: the mass on keys with an equal tag is wanted.
    """

    entropy: bool = False
    top: bool = False
    distance: bool = False
    windows: tuple[int, ...] = ()
    query_tags: Integer[Tensor, "#b q"] | None = None
    key_tags: Integer[Tensor, "#b k"] | None = None

    @property
    def n_statistics(self) -> int:
        """How many statistics the kernel carries."""
        return self.entropy + self.top + self.distance + bool(self.windows) + (self.query_tags is not None)


@dataclass(frozen=True, slots=True)
class AttentionProfile:
    """Output and row statistics of one attention layer; statistics are float32 (float64 by definition).

    `lse`: ln of the softmax denominator, the learned sink in it (−inf: a row without keys and sink).
    `entropy` in nats, the sink one outcome. `top_key`, `top_mass`: the likeliest key and its probability (−1 and 0 if
    there is none). `mean_distance`: Σ p · (i − j) in tokens. `beyond`: mass at distance >= each window.
    `tag_mass`: mass on keys tagged as the query. `sink_mass`: mass on the learned sink.
    """

    out: Float[Tensor, "b n_heads q d_v"] | None
    lse: Float[Tensor, "b n_heads q"]
    entropy: Float[Tensor, "b n_heads q"] | None
    top_key: Int[Tensor, "b n_heads q"] | None
    top_mass: Float[Tensor, "b n_heads q"] | None
    mean_distance: Float[Tensor, "b n_heads q"] | None
    beyond: Float[Tensor, "b n_heads q windows"] | None
    tag_mass: Float[Tensor, "b n_heads q"] | None
    sink_mass: Float[Tensor, "b n_heads q"] | None


def attention_profile(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    v: Float[Tensor, "b n_kv_heads k d_v"] | None,
    seen: Intervals,
    request: ProfileRequest,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
) -> AttentionProfile:
    """The profile as defined: dense and float64."""
    pattern, lse = _pattern(q, k, seen, scale=scale, softcap=softcap, sinks=sinks)
    n_keys = k.shape[2]
    distance = seen.position.long()[:, None] - torch.arange(n_keys, device=q.device)
    sink_mass = None if sinks is None else torch.exp(rearrange(sinks.double(), "h -> 1 h 1") - lse)
    outcomes = pattern if sink_mass is None else torch.cat([pattern, sink_mass[..., None]], -1)
    top_mass, top_key = pattern.max(-1)
    beyond = [(pattern * (distance >= window)).sum(-1) for window in request.windows]
    tag_mass = None
    if request.query_tags is not None and request.key_tags is not None:
        same = request.query_tags[:, :, None] == request.key_tags[:, None, :]
        tag_mass = (pattern * rearrange(same, "b q k -> b 1 q k")).sum(-1)
    return AttentionProfile(
        out=None if v is None else pattern @ repeat(v.double(), "b kv k d -> b (kv g) k d", g=q.shape[1] // k.shape[1]),
        lse=lse,
        entropy=torch.special.entr(outcomes).sum(-1) if request.entropy else None,
        top_key=torch.where(top_mass > 0, top_key, -1) if request.top else None,
        top_mass=top_mass if request.top else None,
        mean_distance=(pattern * distance).sum(-1) if request.distance else None,
        beyond=torch.stack(beyond, -1) if beyond else None,
        tag_mass=tag_mass,
        sink_mass=sink_mass,
    )


def column_sums(
    q: Float[Tensor, "b n_heads q d"],
    k: Float[Tensor, "b n_kv_heads k d"],
    seen: Intervals,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " n_heads"] | None = None,
) -> Float[Tensor, "b n_heads k"]:
    """What each key receives, Σ_i p_ij, as defined: dense and float64."""
    return _pattern(q, k, seen, scale=scale, softcap=softcap, sinks=sinks)[0].sum(-2)


def _pattern(
    q: Tensor, k: Tensor, seen: Intervals, *, scale: float, softcap: float | None, sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    keys = repeat(k.double(), "b kv k d -> b (kv g) k d", g=q.shape[1] // k.shape[1])
    scores = scale * einsum(q.double(), keys, "b h q d, b h k d -> b h q k")
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~rearrange(seen.visible(k.shape[2]), "b q k -> b 1 q k"), -torch.inf)
    lse = scores.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, rearrange(sinks.double(), "h -> 1 h 1"))
    return torch.exp(scores - lse.clamp_min(torch.finfo(torch.float64).min)[..., None]), lse


def sink_share(
    sinks: Float[Tensor, " n_heads"] | None, lse: Float[Tensor, "b n_heads q"]
) -> Float[Tensor, "b n_heads q"] | None:
    """Mass on the learned sink, exp(sink − lse)."""
    return None if sinks is None else torch.exp(rearrange(sinks.to(lse.dtype), "h -> 1 h 1") - lse)
