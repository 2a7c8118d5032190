"""Lightning-attention layers (MiniMax): queries, keys and decay read off the module, its rows as a signed pattern.

The layer computes o_i = Σ_{j ≤ i} (q_i · k_j) exp(−slope · (i − j)) v_j with q, k, v after the activation and with no
1/√d; a norm and a gate follow. That sum is the pattern: signed, not normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.kernels import CausalMask, Request, RowStatistics, decay_statistics


@dataclass(frozen=True, slots=True)
class LightningCall:
    """One lightning layer at the moment it attends; statistics are float32 whatever the model's dtype."""

    layer: int
    q: Float[Tensor, "b n_heads q d"]
    k: Float[Tensor, "b n_heads k d"]
    slopes: Float[Tensor, " n_heads"]
    mask: CausalMask

    def statistics(self, request: Request) -> RowStatistics:
        """The statistics of the layer's implied rows, over Σ|A|."""
        return decay_statistics(self.q, self.k, self.mask, request, slopes=self.slopes)


LightningReader = Callable[[LightningCall], None]


def lightning_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The lightning layers of a model by layer number."""
    found = [m for m in model.modules() if type(m).__name__ == "MiniMaxLightningAttention"]
    return {int(m.layer_idx): m for m in found}  # type: ignore[arg-type]


def lightning_slopes(module: nn.Module) -> Float[Tensor, " n_heads"]:
    """The decay rate of each head per token, in float32, as the checkpoint stores it.

    A bfloat16 buffer rounds slow heads to no decay at all; where it is a rounding of the architecture's own rates,
    those are used.
    """
    stored: Tensor = module.slope_rate  # type: ignore[assignment]
    own: Tensor = module.get_slope_rate(device=stored.device).float()  # type: ignore[operator]
    slopes = own if torch.equal(own.to(stored.dtype), stored) else stored.float()
    return rearrange(slopes, "h 1 1 -> h")


@contextmanager
def reading_lightning(model: PreTrainedModel, valid: Bool[Tensor, "b t"], reader: LightningReader) -> Generator[None]:
    """Call `reader` for every lightning layer of each forward pass; the layers themselves run unchanged."""

    def tap(module: nn.Module) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def read(_: nn.Module, __: tuple[Tensor], projected: Tensor) -> None:
            reader(_call(module, projected.detach(), valid))

        return read

    handles = [
        module.qkv_proj.register_forward_hook(tap(module))  # type: ignore[union-attr, arg-type]
        for module in lightning_modules(model).values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(module: nn.Module, projected: Float[Tensor, "b t three_h_d"], valid: Bool[Tensor, "b t"]) -> LightningCall:
    n_heads = int(module.num_attention_heads)  # type: ignore[arg-type]
    active = module.act_fn(projected)  # type: ignore[operator]
    q, k, _ = rearrange(active, "b t (h three d) -> three b h t d", h=n_heads, three=3)
    padding = None if bool(valid.all()) else valid
    return LightningCall(
        layer=int(module.layer_idx),  # type: ignore[arg-type]
        q=q,
        k=torch.where(rearrange(valid, "b t -> b 1 t 1"), k, 0),
        slopes=lightning_slopes(module),
        mask=CausalMask(k.shape[2], valid=padding),
    )
