"""What a softmax head writes, read as logits: values through W_O and the unembedding, weights as they are.

Norms are left out: those before the unembedding and behind the attention scale what arrives, and no gain is folded in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from workbench.heads import LayerInfo, WorkbenchError

# What a bridge raises where it has no weight per head.
_NOT_THERE = (AttributeError, NotImplementedError, ValueError, IndexError)


@dataclass(frozen=True, slots=True)
class Writing:
    """W_O of every head by entry of `HookedModel.layers`, None where the layer is linear, and the unembedding."""

    o: tuple[Float[Tensor, "n_heads d_value d_model"] | None, ...]
    unembed: Float[Tensor, "d_model vocab"]

    def logits(
        self, place: int, head: int, v: Float[Tensor, "keys d_value"], tokens: Int[Tensor, " r"]
    ) -> Float[Tensor, "r keys"]:
        """What a head that attends to one key alone adds to the logit of each token, u · W_O v, float32."""
        o = self.o[place]
        assert o is not None
        directions = einsum(o[head], self.unembed[:, tokens], "d m, m r -> r d")
        return einsum(directions, v.float(), "r d, keys d -> r keys")


def read_writing(bridge: Any, layers: tuple[LayerInfo, ...]) -> Writing:
    """The output weights of a model through its TransformerBridge.

    Raises:
        WorkbenchError: if TransformerLens gives no W_O per head for one of its softmax layers.
    """
    found: list[Tensor | None] = []
    with torch.no_grad():
        for info in layers:
            try:
                o = bridge.blocks[info.index].attn.W_O.detach().float() if info.mixer == "softmax" else None
            except _NOT_THERE as error:
                raise WorkbenchError(
                    f"TransformerLens gives no W_O per head for layer {info.index}: {str(error)[:200]}. Scores of "
                    "attention alone do not need it"
                ) from error
            found.append(o)
        return Writing(tuple(found), bridge.W_U.detach().float())
