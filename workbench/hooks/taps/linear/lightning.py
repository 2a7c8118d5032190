"""Lightning attention (MiniMax): A[i, j] = (q_i · k_j) exp(−slope · (i − j)), after the activation, without 1/√d.

Reference:
    Qin et al. 2024, Lightning Attention-2, eq. 5. MiniMax's slopes: 2^(−8 (h + 1) / H) · (1 − l / (L − 1) + 1e-5).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.heads import RoundedDecayWarning, some_of
from workbench.hooks.taps.linear.linear_layer import LinearCall, LinearLayer
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import DecayRows
from workbench.loading.lightning_decay import LIGHTNING_CLASS, lightning_modules, stored_slopes


def never_forgetting(module: nn.Module) -> list[int]:
    """The heads whose decay per token rounds to exactly 1 in the dtype that the module holds its slopes in."""
    slope: Tensor = module.slope_rate  # type: ignore[assignment]
    is_frozen = torch.exp(-slope) == 1
    return rearrange(is_frozen, "h 1 1 -> h").nonzero().flatten().tolist()


def warn_of_rounded_decay(model: PreTrainedModel) -> None:
    """Warn of the heads whose decay is rounded to 1 because the model holds its slopes in low precision."""
    frozen = {i: heads for i, m in lightning_modules(model).items() if (heads := never_forgetting(m))}
    if not frozen:
        return
    names = [f"L{i}H{h}" for i, heads in frozen.items() for h in heads]
    warnings.warn(
        f"{type(model).__name__} holds its decay rates in a dtype in which {len(names)} heads never forget "
        f"(exp(−slope) is exactly 1): {some_of(names, 8)}. Their patterns are recorded with float32 rates, which the "
        "model in memory does not use; open the checkpoint with open_model(path), which restores them",
        RoundedDecayWarning,
        stacklevel=3,
    )


def _describe(module: Any) -> LinearLayer:
    n_heads = int(module.num_attention_heads)
    return LinearLayer(
        index=int(module.layer_idx),
        mixer="lightning",
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=int(module.head_dim),
        has_conv=False,
        slopes=stored_slopes(module),
    )


@mixer(LIGHTNING_CLASS, describe=_describe, taps=("qkv_proj",), norm="norm", projection="out_proj")
def read_lightning(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read lightning attention: one projection gives queries, keys and values, before the activation."""
    active = module.act_fn(outputs["qkv_proj"])
    q, k, v = rearrange(active, "b t (h three d) -> three b h t d", h=module.num_attention_heads, three=3)
    log_decay = repeat(-stored_slopes(module), "h -> 1 h t 1", t=valid.shape[1])
    return LinearCall(
        layer=int(module.layer_idx),
        q=q,
        k=k,
        v=v,
        log_decay=log_decay,
        rows=DecayRows(q, k, log_decay[..., 0], valid=valid),
    )
