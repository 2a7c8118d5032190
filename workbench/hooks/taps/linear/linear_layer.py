"""A linear layer, and what is read of it while it runs, in the same terms for every family.

A head of a linear layer computes o_i = Σ_{j ≤ i} A[i, j] v_j before its norm, gate and output projection. A is the
implied pattern: signed, not normalised. Where every channel forgets at a rate of its own (Mamba-1, RG-LRU, RWKV-4), a
head is a run of channels that each have such a pattern, and the head's is their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv1d
from transformers.activations import ACT2FN

from workbench.heads import LayerInfo, Mixer, brief
from workbench.kernels import Request, RowStatistics, SignedRows, signed_crop, signed_statistics

# The index of a layer whose module does not know it: that of the block it is in.
WITHOUT_NUMBER = -1


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """One linear token mixer of a model.

    `index`: WITHOUT_NUMBER of a module that does not know its own, which then follows from its place in the model.
    `mixer`: "lightning", "gdn", "kda", "ssm", "mamba1", "rg_lru", "rwkv4", "conv", "mlstm", "diff", or the name of a
    registered one. `n_kv_heads` counts the key heads that the heads share in groups; `d_head` is the width of queries
    and keys, or of the head where it has none. `has_conv`: a short convolution over the last few tokens, or a mixture
    with the token before, comes before q, k and v, so that what a head does to the previous token is partly not in its
    pattern.
    `slopes`: decay per token in nats, in float32, where it does not depend on the tokens; else None. `n_taps`: of a
    layer that is a short convolution and has no decay, how many tokens it sees, the own one counted; else None.
    `reads_padding`: the model does not hide padding from the layer, which reads it as tokens.
    """

    index: int
    mixer: Mixer
    n_heads: int
    n_kv_heads: int
    d_head: int
    has_conv: bool
    slopes: Float[Tensor, " n_heads"] | None = None
    n_taps: int | None = None
    reads_padding: bool = False

    def __repr__(self) -> str:
        return brief(self)

    @property
    def info(self) -> LayerInfo:
        """The layer as every layer of a model is described."""
        return LayerInfo(
            index=self.index,
            kind="linear",
            mixer=self.mixer,
            window=None,
            has_sinks=False,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_head=self.d_head,
        )


@dataclass(frozen=True, slots=True)
class LinearCall:
    """One linear layer at the moment it mixes tokens; statistics are float32 whatever the model's dtype.

    `q`, `k`: as the recurrence takes them, after convolution, activation, normalisation and scale, one per key head.
    `v`: so that the heads' outputs are the implied rows times v; where `rows` are `ChannelRows`, the outputs of every
    channel are its own rows times v. `log_decay`: per token and head, and per key channel where the layer has a rate
    for each (KDA), or per channel of v (of Mamba-1 the slowest of its states); None where it has none, as a short
    convolution. `rows`: the implied rows, `DecayRows`, `DeltaRows`, `ChannelDecayRows`, `BandRows`, `MlstmRows` or
    `DifferenceRows` of `workbench.kernels`. `gate`: by which the outputs are multiplied before they are handed on,
    where no norm comes between.
    """

    layer: int
    q: Float[Tensor, "b n_kv_heads t d"]
    k: Float[Tensor, "b n_kv_heads t d"]
    v: Float[Tensor, "b n_heads t d_v"]
    log_decay: Float[Tensor, "#b n_heads t rates"] | None
    rows: SignedRows
    gate: Float[Tensor, "b t n_heads d_v"] | None = None

    def __repr__(self) -> str:
        return brief(self)

    def statistics(self, request: Request) -> RowStatistics:
        """The statistics of the layer's implied rows, over Σ|A|."""
        return signed_statistics(self.rows, request)

    def crop(
        self, head: int, queries: Int[Tensor, " q"], keys: Int[Tensor, " k"], *, sequence: int = 0
    ) -> Float[Tensor, "q k"]:
        """The implied weights of one head on one sequence, signed and not normalised, on chosen queries and keys."""
        return signed_crop(self.rows, sequence, head, queries=queries, keys=keys)


def convolved(module: Any, mixed: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
    """The module's short causal convolution of each channel (`module.conv1d`), then its activation."""
    active = ACT2FN[module.activation](rearrange(causal_convolution(module.conv1d, mixed), "b t c -> b c t"))
    return rearrange(active.to(mixed.dtype), "b c t -> b t c")


def causal_convolution(convolution: Any, mixed: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
    """A short causal convolution of each channel, padded by the width of its kernel less one."""
    n_tokens = mixed.shape[1]
    x = rearrange(mixed, "b t c -> b c t").to(convolution.weight.dtype)
    if type(convolution) is nn.Conv1d:
        padding = convolution.kernel_size[0] - 1
        out = conv1d(x, convolution.weight, convolution.bias, padding=padding, groups=convolution.groups)
    else:  # one with an adapter has another output than its weight's
        out = convolution(x)
    return rearrange(out[..., :n_tokens], "b c t -> b t c")


def normalised(x: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h t d"]:
    """Queries or keys of length 1, in float32."""
    x = x.float()
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
