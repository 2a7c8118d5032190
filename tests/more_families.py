"""Tiny random models of the further softmax families that go through transformers' AttentionInterface."""

from __future__ import annotations

import transformers

from tests.families import GROUPS, HEADS, VOCABULARY, WIDTH, WINDOW

_MIXED = ["sliding_attention", "full_attention"]
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
_WIDE = {**BASE, "head_dim": 16}
_SLIDING = {"sliding_window": WINDOW, "layer_types": _MIXED}
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
# A bias of every score by distance; in the second, a learned sink logit that depends on the token.
_BIASED = {
    **{k: v for k, v in _WIDE.items() if k not in ("intermediate_size", "tie_word_embeddings")},
    "unpadded_vocab_size": VOCABULARY,
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": GROUPS,
    "swa_head_dim": 16,
    "sliding_window_size": WINDOW,
    "layer_types": ["hybrid_sliding", "hybrid"],
    "d_rel": 4,
    "rel_extent": 12,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}

MORE_CONFIGS = {
    "qwen2": lambda: transformers.Qwen2Config(**BASE, use_sliding_window=True, **_SLIDING),
    "qwen3": lambda: transformers.Qwen3Config(**_WIDE),
    "olmo2": lambda: transformers.Olmo2Config(**BASE),
    "olmo3": lambda: transformers.Olmo3Config(**BASE, **_SLIDING),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_WIDE, **_SLIDING, query_pre_attn_scalar=16),
    "gemma4": lambda: transformers.Gemma4TextConfig(
        **_WIDE, **_SLIDING, **_PER_LAYER, global_head_dim=32, num_global_key_value_heads=1, num_kv_shared_layers=0
    ),
    "gemma4_shared": lambda: transformers.Gemma4TextConfig(
        **{**_WIDE, "num_hidden_layers": 4},
        **{**_SLIDING, "layer_types": _MIXED * 2},
        **_PER_LAYER,
        global_head_dim=32,
        num_kv_shared_layers=2,
    ),
    "cohere2": lambda: transformers.Cohere2Config(**_WIDE, **_SLIDING),
    "phi": lambda: transformers.PhiConfig(**BASE),
    "phi3": lambda: transformers.Phi3Config(**BASE, sliding_window=WINDOW),
    "starcoder2": lambda: transformers.Starcoder2Config(**BASE, sliding_window=WINDOW),
    "granite_swa": lambda: transformers.GraniteSWAConfig(**_WIDE, **_SLIDING),
    "inkling": lambda: transformers.InklingTextConfig(**_BIASED, intermediate_size=48),
    "inkling2": lambda: transformers.Inkling2TextConfig(**_BIASED, n_layers_per_attn_res_block=2),
    "mimo_v2_flash": lambda: transformers.MiMoV2FlashConfig(**_WIDE, **_SLIDING),
    "llama4": lambda: transformers.Llama4TextConfig(
        **_WIDE,
        **_EXPERTS,
        intermediate_size_mlp=48,
        attention_chunk_size=8,
        layer_types=["chunked_attention", "full_attention"],
    ),
    "minimax_m2": lambda: transformers.MiniMaxM2Config(**_WIDE, **_EXPERTS, rotary_dim=8),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**BASE, "num_key_value_heads": HEADS}, **LATENT, head_dim=8
    ),
}

# Their keys and values are mixed with those of the tokens before, which no cache of keys and values holds.
WITH_CONVOLUTIONS = ("inkling", "inkling2")
