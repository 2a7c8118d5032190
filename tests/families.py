"""Tiny random models of every mechanism, with queries and keys enlarged so that their patterns are far from uniform."""

from __future__ import annotations

from functools import cache

import torch
from transformers import (
    CwmConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MiniMaxConfig,
    MistralConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

VOCABULARY, WIDTH, HEADS, GROUPS, WINDOW = 97, 32, 4, 2, 8
_MIXED = ["sliding_attention", "full_attention"]
_COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    max_position_embeddings=8192,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
    tie_word_embeddings=False,
)
_GROUPED = dict(**_COMMON, num_key_value_heads=GROUPS, head_dim=16)

CONFIGS = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        n_positions=512,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON, rotary_pct=0.25),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=WINDOW),
    "gemma2": lambda: Gemma2Config(
        **_GROUPED,
        sliding_window=WINDOW,
        layer_types=_MIXED,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=5.0,
    ),
    "gpt_oss": lambda: GptOssConfig(
        **_GROUPED, sliding_window=WINDOW, layer_types=_MIXED, num_local_experts=2, num_experts_per_tok=1
    ),
    "cwm": lambda: CwmConfig(**_GROUPED, sliding_window=WINDOW, layer_types=_MIXED),
    "minimax": lambda: MiniMaxConfig(
        **_GROUPED,
        layer_types=["linear_attention", "full_attention"],
        num_local_experts=2,
        num_experts_per_tok=1,
        block_size=16,
    ),
}
SOFTMAX = [name for name in CONFIGS if name != "minimax"]


@cache
def tiny(family: str, implementation: str | None = None) -> PreTrainedModel:
    """The model of a family; the same weights whatever the attention implementation."""
    from tests.more_families import MORE_CONFIGS
    from tests.older_families import OLDER_CONFIGS
    from tests.selecting_families import BIASED_CONFIGS, BLOCK_CONFIGS, POOL_CONFIGS, SELECTING_CONFIGS

    torch.manual_seed(0)
    config = {
        **CONFIGS,
        **MORE_CONFIGS,
        **OLDER_CONFIGS,
        **SELECTING_CONFIGS,
        **BLOCK_CONFIGS,
        **POOL_CONFIGS,
        **BIASED_CONFIGS,
    }[family]()
    is_of_pictures = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    make = AutoModelForImageTextToText if is_of_pictures else AutoModelForCausalLM
    model = make.from_config(config, attn_implementation=implementation)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue  # RoFormer's table of sines and cosines
            if parameter.ndim >= 2:
                is_attention = any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key", "c_attn"))
                parameter.normal_(0, 0.4 if is_attention else 0.15, generator=generator)
            elif name.endswith("self_attn.A"):  # Doge's rates, 0 at first, which make all keys alike
                parameter.normal_(0, 0.5, generator=generator)
            elif "sinks" in name:
                parameter.normal_(0, 1, generator=generator)
    return model.eval()


def random_tokens(n_sequences: int, n_tokens: int, *, seed: int = 0, vocabulary: int = 23) -> torch.Tensor:
    """Few distinct ids, so that tokens recur."""
    return torch.randint(3, 3 + vocabulary, (n_sequences, n_tokens), generator=torch.Generator().manual_seed(seed))
