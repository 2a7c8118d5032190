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
