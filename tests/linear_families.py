"""Tiny random models with linear and recurrent layers, one for every mechanism that a linear layer can have."""

from __future__ import annotations

from functools import cache

import torch
from transformers import (
    BailingHybridConfig,
    BambaConfig,
    FalconH1Config,
    GraniteMoeHybridConfig,
    KimiLinearConfig,
    Lfm2Config,
    Lfm3Config,
    Mamba2Config,
    MiniMaxConfig,
    NemotronHConfig,
    OlmoHybridConfig,
    PreTrainedModel,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Zamba2Config,
    xLSTMConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCABULARY, WIDTH = 97, 32
_MIXED = ["linear_attention", "full_attention"]
_COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
    tie_word_embeddings=False,
)
_MOE = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)
_DELTA = dict(
    layer_types=_MIXED,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=6,
)
_MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=2, mamba_chunk_size=16)

CONFIGS = {
    "minimax": lambda: MiniMaxConfig(
        **_COMMON, head_dim=16, layer_types=_MIXED, num_local_experts=2, num_experts_per_tok=1, block_size=16
    ),
    "qwen3_next": lambda: Qwen3NextConfig(**_COMMON, **_DELTA, **_MOE, head_dim=16, shared_expert_intermediate_size=16),
    "qwen3_5": lambda: Qwen3_5TextConfig(**_COMMON, **_DELTA, head_dim=16),
    "qwen3_5_moe": lambda: Qwen3_5MoeTextConfig(
        **_COMMON, **_DELTA, **_MOE, head_dim=16, shared_expert_intermediate_size=16
    ),
    "olmo_hybrid": lambda: OlmoHybridConfig(**_COMMON, **{**_DELTA, "linear_num_key_heads": 4}),
    "kimi_linear": lambda: KimiLinearConfig(
        **{**_COMMON, "num_key_value_heads": 4},
        layer_types=_MIXED,
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        num_experts=2,
        num_experts_per_token=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        linear_attn_config=dict(
            num_heads=4, head_dim=8, short_conv_kernel_size=4, kda_layers=[1], full_attn_layers=[2]
        ),
    ),
    "bailing_hybrid": lambda: BailingHybridConfig(
        **{**_COMMON, **_MOE, "num_key_value_heads": 4},
        layer_types=_MIXED,
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        head_dim=8,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        num_mtp_layers=0,
    ),
    "bamba": lambda: BambaConfig(**_COMMON, **_MAMBA, attn_layer_indices=[1], mamba_expand=2),
    "granite": lambda: GraniteMoeHybridConfig(
        **_COMMON,
        **_MAMBA,
        layer_types=["mamba", "attention"],
        mamba_expand=2,
        num_local_experts=2,
        num_experts_per_tok=1,
        shared_intermediate_size=16,
    ),
    "falcon_h1": lambda: FalconH1Config(**_COMMON, **_MAMBA, mamba_d_ssm=64, mamba_rms_norm=True),
    "falcon_h1_plain": lambda: FalconH1Config(
        **_COMMON, **_MAMBA, mamba_d_ssm=64, mamba_rms_norm=False, ssm_multipliers=[0.5, 1.5, 0.8, 1.2, 0.7]
    ),
    "nemotron_h": lambda: NemotronHConfig(
        **{**_COMMON, "num_hidden_layers": 4},
        layers_block_type=["mamba", "mlp", "attention", "moe"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=2,
        chunk_size=16,
        head_dim=8,
        n_routed_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
    ),
    "mamba2": lambda: Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        state_size=8,
        num_heads=4,
        head_dim=16,
        expand=2,
        n_groups=2,
        chunk_size=16,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    ),
    "xlstm": lambda: xLSTMConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_heads=4,
        qk_dim_factor=2.0,  # its cache has the sizes of its layers only where they are whole numbers of 64
        v_dim_factor=2.0,
        chunk_size=16,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    ),
    # Attention blocks that two layers share, with an adapter of each layer, and another one.
    "zamba2": lambda: Zamba2Config(
        **{**_COMMON, "num_hidden_layers": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
        layers_block_type=["linear_attention", "hybrid", "hybrid", "hybrid"],
        num_mem_blocks=2,
        use_shared_attention_adapter=True,
        adapter_rank=4,
        use_mem_rope=True,
        mamba_d_state=8,
        mamba_ngroups=2,
        n_mamba_heads=4,
        chunk_size=16,
    ),
    "lfm2": lambda: Lfm2Config(**_COMMON, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "lfm3": lambda: Lfm3Config(
        **{**_COMMON, "num_hidden_layers": 3},
        layer_types=["conv", "sliding_attention", "full_attention"],
        head_dim=8,
        sliding_window=6,
    ),
}


@cache
def tiny(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a family, with queries and keys enlarged and decays of many lengths."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "dt_bias")):
                parameter.uniform_(-4, 0, generator=generator)
            elif name.endswith("igate_preact.bias"):  # of an mLSTM: −10 would leave its normaliser at its least
                parameter.uniform_(-4, 1, generator=generator)
            elif name.endswith(".D"):
                parameter.normal_(0, 0.5, generator=generator)
            elif parameter.ndim >= 2:
                parameter.normal_(0, 0.2, generator=generator)
    return model.to(dtype).eval()
