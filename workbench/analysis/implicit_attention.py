"""The implied attention of any mixer that is linear in v, from its output alone.

With o_i = Σ_j A[i, j] v_j, a row of A is the gradient of one output channel with respect to v, a weighted column sum
is the gradient of a weighted sum over rows, and the mass on keys with a feature is the output where v is that feature.
Each head must apply one A to all channels of v. One backward pass gives as many rows per head as v has channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

# v "b t h d_v" → output "b t h d_v", linear in v.
Mixer = Callable[[Tensor], Tensor]


def implicit_rows(mixer: Mixer, like: Float[Tensor, "b t h d_v"], rows: Int[Tensor, " r"]) -> Float[Tensor, "b h r t"]:
    """The rows of A for some queries, by vector-Jacobian products with one-hot cotangents.

    `like`: any tensor of v's shape, dtype and device; its values do not matter.
    """
    out, v = _run(mixer, like)
    gradients: list[Tensor] = []
    for some in rows.to(out.device).split(out.shape[-1]):
        cotangent = torch.zeros_like(out)
        channels = torch.arange(len(some), device=out.device)
        cotangent[:, some, :, channels] = 1
        (gradient,) = torch.autograd.grad(out, v, cotangent, retain_graph=True)
        gradients.append(rearrange(gradient[..., : len(some)], "b t h r -> b h r t"))
    return torch.cat(gradients, 2)


def implicit_column_sums(
    mixer: Mixer, like: Float[Tensor, "b t h d_v"], weights: Float[Tensor, "b t h"] | None = None
) -> Float[Tensor, "b h t"]:
    """Σ_i w_i A[i, j] for every key j; w is 1 where absent. One backward pass, whatever the length."""
    out, v = _run(mixer, like)
    cotangent = torch.zeros_like(out)
    cotangent[..., 0] = 1 if weights is None else weights
    (gradient,) = torch.autograd.grad(out, v, cotangent)
    return rearrange(gradient[..., 0], "b t h -> b h t")


def implicit_feature_mass(mixer: Mixer, features: Float[Tensor, "b t h f"], d_v: int) -> Float[Tensor, "b h t f"]:
    """Σ_j A[i, j] f_j for every row i and feature f, by running the mixer with features in place of v.

    `d_v`: the channels that the mixer takes at once; the last pass is filled up with zeros.
    """
    masses: list[Tensor] = []
    with torch.no_grad():
        for some in features.split(d_v, -1):
            filled = torch.nn.functional.pad(some, (0, d_v - some.shape[-1]))
            masses.append(mixer(filled)[..., : some.shape[-1]])
    return rearrange(torch.cat(masses, -1), "b t h f -> b h t f")


def _run(mixer: Mixer, like: Float[Tensor, "b t h d_v"]) -> tuple[Tensor, Tensor]:
    v = torch.zeros_like(like, requires_grad=True)
    with torch.enable_grad():
        out = mixer(v)
    return out, v
