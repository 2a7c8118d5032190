"""Decay rates of lightning attention (MiniMax): read them in float32, and run a loaded model with float32 decay."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

LIGHTNING_CLASS = "MiniMaxLightningAttention"


def lightning_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The lightning layers of a model by layer number."""
    modules = [m for m in model.modules() if type(m).__name__ == LIGHTNING_CLASS]
    return {int(m.layer_idx): m for m in modules}  # type: ignore[arg-type]


def stored_slopes(module: nn.Module) -> Float[Tensor, " n_heads"]:
    """The decay rate of each head per token, in float32, as the checkpoint stores it.

    A bfloat16 buffer rounds slow heads to no decay at all. Where the buffer is a rounding of the architecture's default
    rates, the default rates are returned.
    """
    stored: Tensor = module.slope_rate  # type: ignore[assignment]
    default: Tensor = module.get_slope_rate(device=stored.device).float()  # type: ignore[operator]
    slopes = default if torch.equal(default.to(stored.dtype), stored) else stored.float()
    return rearrange(slopes, "h 1 1 -> h")


def restore_decay(model: PreTrainedModel) -> None:
    """Run lightning attention with float32 decay and state, between projections in the model's dtype.

    At MiniMax-Text-01's size bfloat16 rounds exp(-slope) to exactly 1 for 9 % of the heads.
    """
    for module in lightning_modules(model).values():
        slopes = stored_slopes(module)[:, None, None]
        query_decay, key_decay, diagonal_decay = module.decay_factors(slopes)  # type: ignore[operator]
        module.slope_rate = slopes
        module.query_decay = query_decay
        module.key_decay = key_decay
        module.diagonal_decay = diagonal_decay
        module.act_fn.register_forward_hook(_to_float32)  # type: ignore[union-attr, arg-type]
        module.out_proj.register_forward_pre_hook(_to_weight_dtype)  # type: ignore[union-attr, arg-type]


def _to_float32(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.float()


def _to_weight_dtype(module: nn.Linear, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].to(module.weight.dtype), *inputs[1:])
