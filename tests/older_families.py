"""Tiny random models of the families that use no AttentionInterface, and eager ones to compare them with."""

from __future__ import annotations

import torch
import transformers
from torch.nn import functional

from tests.families import HEADS, VOCABULARY, WIDTH, WINDOW, tiny

_BASE = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
_FALCON = {**_BASE, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS}
_GPT = {**_BASE, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": 512}

OLDER_CONFIGS = {
    "gptj": lambda: transformers.GPTJConfig(**_GPT, rotary_dim=4, tie_word_embeddings=False),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        **_BASE,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=HEADS,
        max_position_embeddings=512,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
    ),
    "falcon": lambda: transformers.FalconConfig(**_FALCON, alibi=False),
    "falcon_new": lambda: transformers.FalconConfig(
        **_FALCON, num_kv_heads=2, new_decoder_architecture=True, multi_query=False
    ),
    "falcon_alibi": lambda: transformers.FalconConfig(**_FALCON, alibi=True, multi_query=False),
    "bloom": lambda: transformers.BloomConfig(**_BASE, hidden_size=WIDTH, n_layer=2, n_head=HEADS),
    "mpt": lambda: transformers.MptConfig(**_BASE, d_model=WIDTH, n_layers=2, n_heads=HEADS, max_seq_len=512),
    "codegen": lambda: transformers.CodeGenConfig(**_GPT, rotary_dim=4),
    "gpt_neox_japanese": lambda: transformers.GPTNeoXJapaneseConfig(
        **_BASE, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS
    ),
    "xglm": lambda: transformers.XGLMConfig(
        **_BASE, d_model=WIDTH, num_layers=2, attention_heads=HEADS, ffn_dim=48, max_position_embeddings=512
    ),
    "trocr": lambda: transformers.TrOCRConfig(
        **_BASE,
        d_model=WIDTH,
        decoder_layers=2,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=48,
        max_position_embeddings=512,
        cross_attention_hidden_size=WIDTH,
    ),
    "roformer": lambda: transformers.RoFormerConfig(
        **_BASE,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=48,
        max_position_embeddings=512,
        is_decoder=True,
    ),
    "openai_gpt": lambda: transformers.OpenAIGPTConfig(**_GPT),
}


def eager_twin(family):
    """The model in eager attention. Falcon's adds the ALiBi bias twice there (its sdpa form once): one is taken off."""
    model = tiny(family, "eager")
    if family == "falcon_alibi":
        for block in model.transformer.h:
            if not block.self_attention._forward_pre_hooks:
                block.self_attention.register_forward_pre_hook(_without_alibi, with_kwargs=True)
    return model


def _without_alibi(_, args, kwargs):
    return args, {**kwargs, "alibi": torch.zeros_like(kwargs["alibi"])}


def edited_logits(family, tokens, edit, attention_mask=None):
    """Logits of eager attention with probabilities changed by `edit(layer, p)`, p float64 of [b, h, q, k]."""
    plain, layer = functional.softmax, iter(range(100))

    def softmax(scores, *args, **kwargs):
        p = plain(scores, *args, **kwargs)
        by_head = p.double().reshape(len(tokens), HEADS, *p.shape[-2:])
        return edit(next(layer), by_head).to(p.dtype).reshape(p.shape)

    functional.softmax = softmax
    try:
        with torch.no_grad():
            return eager_twin(family)(input_ids=tokens, attention_mask=attention_mask, use_cache=False).logits
    finally:
        functional.softmax = plain
