"""The short causal convolution before a linear layer, and the normalisation of queries and keys, as in the model."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d
from transformers.activations import ACT2FN


def convolved(module: Any, mixed: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
    """The module's own convolution over the last few tokens of each channel, and its activation."""
    convolution, n_tokens = module.conv1d, mixed.shape[1]
    out = conv1d(
        rearrange(mixed, "b t c -> b c t").to(convolution.weight.dtype),
        convolution.weight,
        convolution.bias,
        padding=convolution.kernel_size[0] - 1,
        groups=convolution.groups,
    )
    active = ACT2FN[module.activation](out[..., :n_tokens]).to(mixed.dtype)
    return rearrange(active, "b c t -> b t c")


def normalised(x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h t d"]:
    """Queries or keys of length 1, in float32."""
    x = x.float()
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
