"""Tiny random models with layers whose channels each forget at a rate of their own."""

from __future__ import annotations

from functools import cache

import torch
from transformers import FalconMambaConfig, JambaConfig, MambaConfig, PreTrainedModel, RecurrentGemmaConfig, RwkvConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

_COMMON = dict(
    vocab_size=97, hidden_size=32, num_hidden_layers=2, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    tie_word_embeddings=False,
)  # fmt: skip
_ATTENTION = dict(intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)

CONFIGS = {
    "mamba": lambda: MambaConfig(**_COMMON, state_size=4, time_step_rank=3),
    "falcon_mamba": lambda: FalconMambaConfig(**_COMMON, state_size=4, time_step_rank=3),
    "jamba": lambda: JambaConfig(
        **_COMMON,
        **_ATTENTION,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        num_experts=2,
        mamba_d_state=4,
        mamba_dt_rank=3,
    ),
    "recurrent_gemma": lambda: RecurrentGemmaConfig(
        **_COMMON, **_ATTENTION, lru_width=32, block_types=["recurrent", "attention"], attention_window_size=64
    ),
    "rwkv": lambda: RwkvConfig(**_COMMON, attention_hidden_size=32, intermediate_size=48, context_length=512),
}
MIXER = {**dict.fromkeys(CONFIGS, "mamba1"), "recurrent_gemma": "rg_lru", "rwkv": "rwkv4"}
# Heads and channels of a head.
HEADS = {**dict.fromkeys(CONFIGS, (1, 64)), "recurrent_gemma": (4, 8), "rwkv": (1, 32)}


@cache
def tiny(family: str) -> PreTrainedModel:
    """The model of a family, with enlarged weights and decays of many lengths."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "dt_proj.bias")):
                parameter.uniform_(-4, 0, generator=generator)
            elif name.endswith("recurrent_param"):
                parameter.uniform_(-6, 0, generator=generator)
            elif name.endswith("time_decay"):
                parameter.uniform_(-4, 1, generator=generator)
            elif name.endswith((".D", "time_first", "gate_bias")):
                parameter.normal_(0, 0.5, generator=generator)
            elif name.endswith((".key.weight", "gate_weight")):
                parameter.normal_(0, 1, generator=generator)
            elif parameter.ndim >= 2:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()
