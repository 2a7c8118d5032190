"""A tiny random model of every type that transformers lists as a causal language model.

The configuration is the type's own with its sizes made small, by the names that configurations give to sizes. A type
that needs more than that has an entry in `SPECIAL`, or a configuration among the families of the tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests import linear_families, older_families

TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

_SIZES: dict[int, tuple[str, ...]] = {
    97: ("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input", "text_vocab_size", "padded_vocab_size"),
    32: (
        *("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim", "dim", "emb_dim", "dim_model"),
        *("rnn_width", "lru_width", "attention_hidden_size", "embed_dim", "projection_dim", "out_hidden_size"),
    ),
    48: (
        *("intermediate_size", "n_inner", "d_ff", "ffn_dim", "dff", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff"),
        *("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp", "ffn_hidden_size"),
        *("expert_ffn_hidden_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size"),
    ),
    2: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "depth"),
        *("num_decoder_layers", "num_encoder_layers", "num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"),
        *("num_experts_per_tok", "moe_topk", "moe_k", "eos_token_id", "pad_token_id", "patch_size"),
    ),
    4: (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
        *("encoder_attention_heads", "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
        *("num_decoder_attention_heads", "num_encoder_attention_heads", "swa_num_attention_heads", "image_size"),
    ),
    8: (
        *("head_dim", "swa_head_dim", "v_head_dim", "kv_channels", "d_kv", "dim_head", "qk_nope_head_dim"),
        *("qk_rope_head_dim", "rotary_dim", "sliding_window", "attention_window_size"),
    ),
    512: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"),
    1: ("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "bos_token_id", "decoder_start_token_id"),
    16: ("kv_lora_rank", "q_lora_rank"),
}
_SIZE_OF = {name: size for size, names in _SIZES.items() for name in names}
# Encoders that serve as decoders where their configuration says so.
ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
# Attention to latent keys and values: as many key/value heads as query heads.
_LATENT = (
    *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash"),
    *("minicpm3", "youtu"),
)
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_NOTE = {"num_key_value_heads": 4}
# What a type needs beside small sizes; a dict is of a configuration inside it.
SPECIAL: Mapping[str, dict[str, Any]] = {
    **{name: {"is_decoder": True} for name in ENCODERS},
    **{name: {"num_key_value_heads": 4} for name in _LATENT},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "bailing_hybrid": {
        "num_expert_group": 1,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_group_size": 2,
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48},
    },
    "fuyu": {"text_config": {"model_type": "persimmon"}},
    "dots3_note_text": _NOTE,
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"],  # as the checkpoint has them
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 8,
        "attention_head_size": 8,
        "hidden_size": 32,
    },
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": {"text_config": _QWEN4},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}
# Of these no small model was made, and why; a checkpoint is tried when it is opened, as any other.
NOT_MADE = {
    "dots3_note": "its configuration is of 42 layers and more; its text model, dots3_note_text, opens",
    "gemma3n": "its vision tower takes the packages timm and Pillow; its text model, gemma3n_text, opens",
    "gemma4_assistant": "it drafts from the hidden states of a larger model, and reads no token ids alone",
    "gemma4_unified_assistant": "it drafts from the hidden states of a larger model, and reads no token ids alone",
}
_FAMILIES: dict[str, Callable[[], Any]] = {**older_families.OLDER_CONFIGS, **linear_families.CONFIGS}


def tiny_config(model_type: str) -> Any:
    """The configuration of a type with all its sizes small."""
    made = _of_families().get(model_type)
    return _small(CONFIG_MAPPING[model_type], SPECIAL.get(model_type, {})) if made is None else made()


def tiny(model_type: str) -> Any:
    """A random model of a type, with matrices large enough that attention is far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and parameter.requires_grad:
                parameter.normal_(0, 0.2, generator=generator)
    return model


@cache
def _of_families() -> dict[str, Callable[[], Any]]:
    """The configurations of the families, by model type."""
    return {make().model_type: make for make in reversed(_FAMILIES.values())}


def _small(cls: Any, special: Mapping[str, Any]) -> Any:
    """A configuration of a class, small; those inside it, as of a vision model, are made small first."""
    subs = {
        name: CONFIG_MAPPING[special[name]["model_type"]] if "model_type" in special.get(name, ()) else sub
        for name, sub in (getattr(cls, "sub_configs", None) or {}).items()
    }
    subs = {name: sub for name, sub in subs.items() if getattr(sub, "model_type", "")}
    inside = {name: _small(sub, special.get(name, {})) for name, sub in subs.items()}
    special = {key: value for key, value in special.items() if key not in inside and key != "model_type"}
    default = cls()
    names = {*inspect.signature(cls.__init__).parameters, *vars(default), *getattr(cls, "__dataclass_fields__", {})}
    alias = set(getattr(cls, "attribute_map", {}))
    sizes = {name: size for name, size in _SIZE_OF.items() if name in names and name not in alias}
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or []))
    is_settable = "layer_types" not in alias and not isinstance(getattr(cls, "layer_types", None), property)
    if len(kinds) > 1 and is_settable:  # a layer of each kind that the type has
        sizes |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    return cls(**{**sizes, **inside, **special})
