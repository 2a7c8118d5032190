"""Tiny random models of the families whose layers attend only to keys that an indexer selects."""

from __future__ import annotations

import transformers

from tests.families import GROUPS, HEADS, WINDOW
from tests.more_families import BASE, LATENT

SELECTED = 5
# An indexer selects single keys; it has so many heads because keys with a score of 0 in all
# of them are equal, and which of these are taken is chance.
_SELECTING = {
    **BASE,
    **LATENT,
    "num_key_value_heads": HEADS,
    "head_dim": 8,
    "index_topk": SELECTED,
    "index_head_dim": 16,
    "index_n_heads": 16,
}
# The second layer selects for itself, the third takes over what the second selected.
_TAKING_OVER = {**_SELECTING, "num_hidden_layers": 3, "indexer_types": ["full", "full", "shared"]}
_PICTURES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 8,
}

# The sizes that sliding layers have of their own.
_SLIDING = {
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": HEADS,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 12,
}

# Two blocks of four keys, the row's own block among them, for each group of heads.
BLOCKS, BLOCK = 2, 4
BLOCK_CONFIGS = {
    "minimax_m3": lambda: transformers.MiniMaxM3VLTextConfig(
        **{**BASE, "num_hidden_layers": 3},
        head_dim=16,
        rotary_dim=8,
        dense_intermediate_size=48,
        shared_intermediate_size=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        index_n_heads=GROUPS,
        index_head_dim=16,
        index_block_size=BLOCK,
        index_topk_blocks=BLOCKS,
    ),
}
# Two pools of two keys at most, and the row's own unfinished pool: five keys.
POOL, POOLS = 2, 2
_INDEXED = {**BASE, "layer_types": ["indexed_attention"] * 2}
_LINEAR_FIRST = {
    **_INDEXED,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", *["indexed_attention"] * 2],
}
_QWEN4 = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "hc_count": 2,
    "hc_lowrank": 8,
    "indexer_n_heads": 8,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": POOL * POOLS,
    "indexer_compress_ratio": POOL,
}
# Embeddings of n-grams, which only a linear layer may have.
_NGRAMS = {
    "ple_layer_ids": [1],
    "ple_embed_dim": 8,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 31,
    "split_ngram_parts": 1,
    "make_ngram_vocab_size_divisible_by": 2,
}


def _glm5_next(**sizes) -> transformers.Glm5NextConfig:
    text = {
        **LATENT,
        **sizes,
        "num_key_value_heads": HEADS,
        "qk_rope_head_dim": 0,
        "qk_nope_head_dim": 16,
        "hc_mult": 2,
        "linear_num_heads": 4,
        "linear_head_dim": 8,
        "index_topk": POOL * POOLS,
        "index_kpool": POOL,
        "index_n_heads": 8,
        "index_head_dim": 16,
    }
    pictures = {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "projection_intermediate_size": 16}
    sizes_of_pictures = {"hidden_size": 16, "intermediate_size": 16, "patch_size": 4, "image_size": 8}
    return transformers.Glm5NextConfig(text_config=text, vision_config={**pictures, **sizes_of_pictures})


# Numbers of keys from their values; a row sees the keys with the largest.
_DYNAMIC = {**BASE, "head_dim": 8, "num_key_value_heads": GROUPS, "keep_window_size": SELECTED}
BIASED_CONFIGS = {"doge": lambda: transformers.DogeConfig(**_DYNAMIC)}
POOL_CONFIGS = {
    "qwen4_exp": lambda: transformers.Qwen4ExpTextConfig(**_INDEXED, **_QWEN4),
    "qwen4_exp_with_linear": lambda: transformers.Qwen4ExpTextConfig(**_LINEAR_FIRST, **_QWEN4, **_NGRAMS),
    "glm5_next": lambda: _glm5_next(**_INDEXED, indexer_types=["full", "shared"]),
    "glm5_next_with_linear": lambda: _glm5_next(**_LINEAR_FIRST, indexer_types=["full", "full", "shared"]),
}
SELECTING_CONFIGS = {
    "deepseek_v32": lambda: transformers.DeepseekV32Config(**_SELECTING),
    "glm_moe_dsa": lambda: transformers.GlmMoeDsaConfig(**_TAKING_OVER),
    "axk2": lambda: transformers.AXK2Config(**_SELECTING),
    "hy_v4": lambda: transformers.HYV4Config(**_TAKING_OVER, hc_mult=2),
    "mistral_large4": lambda: transformers.MistralLarge4Config(
        text_config={**_TAKING_OVER, "no_rope_layers": [1, 0, 1], "kv_source_layers": [0, 1, 0]},
        vision_config={**_PICTURES, "model_type": "pixtral"},
    ),
    "dots3_note": lambda: transformers.Dots3NoteTextConfig(
        **_SELECTING,
        **_SLIDING,
        sliding_window=WINDOW,
        layer_types=["indexed_attention", "sliding_attention"],
    ),
}
