"""mLSTM layers of xLSTM: a matrix memory with exponential input gates, forget gates and a normaliser.

The output of a head is its row times v, before the norm of heads and the output gate. Its layers have no mask, so that
padding is read as tokens.

Reference:
    Beck et al. 2024, xLSTM, eq. 19 to 27; Beck et al. 2025, xLSTM 7B, for the soft cap of the gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from workbench.heads import WorkbenchError
from workbench.hooks.taps.linear.linear_layer import WITHOUT_NUMBER, LinearCall, LinearLayer
from workbench.hooks.taps.linear.registry import mixer
from workbench.kernels import MlstmRows


def _describe(module: Any) -> LinearLayer:
    dtype, n_heads = module.out_proj.weight.dtype, int(module.config.num_heads)
    if dtype not in (torch.float32, torch.float64):
        raise WorkbenchError(
            f"{type(module).__name__} has weights of {dtype}, in which transformers' own code fails on a text of a "
            "whole chunk; expected float32: open_model(path, dtype=torch.float32), or .float() of the model in memory"
        )
    return LinearLayer(
        index=WITHOUT_NUMBER,
        mixer="mlstm",
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=int(module.qk_dim) // n_heads,
        has_conv=False,
        reads_padding=True,
    )


@mixer(
    "xLSTMLayer",
    describe=_describe,
    taps=("q", "k", "v", "igate_preact", "fgate_preact", "qkv_opreact", "ifgate_preact"),
    norm="multihead_norm",
    projection="out_proj",
)
def read_mlstm(module: Any, outputs: Mapping[str, Tensor], valid: Bool[Tensor, "b t"]) -> LinearCall:
    """Read an mLSTM: queries, keys, values and two gates, each from a projection or from fused ones."""
    n_heads = int(module.config.num_heads)
    if module.config.weight_mode == "fused":
        mixed, gates = outputs["qkv_opreact"], outputs["ifgate_preact"]
        q, k, v, _ = mixed.split([module.qk_dim, module.qk_dim, module.v_dim, module.v_dim], -1)
        log_input, forget = gates.split([n_heads, n_heads], -1)
    else:
        q, k, v, log_input, forget = (outputs[x] for x in ("q", "k", "v", "igate_preact", "fgate_preact"))
    if q.shape[1] != valid.shape[1]:
        raise WorkbenchError(
            f"{type(module).__name__} ran {q.shape[1]} of {valid.shape[1]} tokens at once, in pieces of "
            "max_inference_chunksize tokens, and its pattern is not known piece by piece; pass shorter sequences, or "
            "set max_inference_chunksize of the model's configuration to their length"
        )
    q, k, v = (rearrange(x, "b t (h d) -> b h t d", h=n_heads) for x in (q, k, v))
    q = q.float() * q.shape[-1] ** -0.5
    log_input, forget = (_capped(x, module.config.gate_soft_cap) for x in (log_input, forget))
    log_forget = logsigmoid(forget)
    return LinearCall(
        layer=WITHOUT_NUMBER,
        q=q,
        k=k,
        v=v,
        log_decay=rearrange(log_forget, "b h t -> b h t 1"),
        rows=MlstmRows(q, k, log_forget, log_input, float(module.config.eps)),
    )


def _capped(gate: Float[Tensor, "b t h"], cap: float | None) -> Float[Tensor, "b h t"]:
    """A gate before its activation, softly capped, in float32."""
    gate = rearrange(gate, "b t h -> b h t").float()
    return gate if cap is None else cap * torch.tanh(gate / cap)
