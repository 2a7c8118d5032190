"""What a linear layer is and what is seen of it while it runs, in the same words for every family.

A linear layer's head computes o_i = Σ_{j ≤ i} A[i, j] v_j before its norm, gate and output projection. A is the implied
pattern: signed, not normalised. An `Adapter` says where in a transformers module q, k, v and the decay are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.heads import LayerInfo, Mixer
from workbench.kernels import Request, RowStatistics, SignedRows, signed_crop, signed_statistics


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """One linear token mixer of a model.

    `n_kv_heads` counts the key heads that the heads share in groups; `d_head` is the width of queries and keys.
    `has_conv`: a short convolution over the last few tokens comes before q, k and v, so that what a head does to the
    previous token is partly not in its pattern. `slopes`: decay per token in nats, in float32, where it does not depend
    on the tokens; else None.
    """

    index: int
    mixer: Mixer
    n_heads: int
    n_kv_heads: int
    d_head: int
    has_conv: bool
    slopes: Float[Tensor, " n_heads"] | None = None

    @property
    def info(self) -> LayerInfo:
        """The same as every layer is told."""
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
    `v`: so that the heads' outputs are the implied rows times v. `log_decay`: per token and head, and per key channel
    where the layer has a rate for each (KDA).
    """

    layer: int
    q: Float[Tensor, "b n_kv_heads t d"]
    k: Float[Tensor, "b n_kv_heads t d"]
    v: Float[Tensor, "b n_heads t d_v"]
    log_decay: Float[Tensor, "#b n_heads t rates"]
    rows: SignedRows

    def statistics(self, request: Request) -> RowStatistics:
        """The statistics of the layer's implied rows, over Σ|A|."""
        return signed_statistics(self.rows, request)

    def crop(
        self, head: int, queries: Int[Tensor, " q"], keys: Int[Tensor, " k"], *, sequence: int = 0
    ) -> Float[Tensor, "q k"]:
        """The implied weights of one head on one sequence, signed and not normalised, on chosen queries and keys."""
        return signed_crop(self.rows, sequence, head, queries=queries, keys=keys)


@dataclass(frozen=True, slots=True)
class Adapter:
    """How to read one class of transformers modules.

    `taps`: the submodules whose outputs are kept until the output projection, `projection`, is reached; `read` turns
    them into a call. `norm`: the submodule that takes the heads' outputs first.
    """

    describe: Callable[[Any], LinearLayer]
    taps: tuple[str, ...]
    read: Callable[[Any, Mapping[str, Tensor], Bool[Tensor, "b t"]], LinearCall]
    norm: str
    projection: str
