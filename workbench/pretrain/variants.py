"""The four variants: stock Hugging Face configurations, one per kind of attention, and their initialisation.

In the demo's shape:

| variant | class | layers | parameters |
|---|---|---|---|
| full | Llama | full, full | 120,128 |
| sliding | Mistral | window of 16, window of 16 | 120,128 |
| hybrid | CWM | window of 16, full | 120,128 |
| linear | MiniMax | full, lightning, full | 186,112 |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, CwmConfig, LlamaConfig, MiniMaxConfig, MistralConfig

from workbench.pretrain.recipes import SMALL, Recipe, Shape, Variant

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WINDOW = SMALL.window
BOS = 0  # in the synthetic language and in the tokenizers of text
_SHARED_EMBEDDING = 0.5
_ZERO = ("o_proj", "out_proj", "down_proj", "lm_head")


def variant_config(variant: Variant, *, length: int = 64, shape: Shape | None = None) -> PreTrainedConfig:
    """The stock configuration of a variant for sequences of `length` tokens. `shape` as in `Recipe`."""
    dimensions = Recipe(variant, length=length, shape=shape).dimensions
    kinds: list[str] = list(dimensions.layer_kinds(variant))
    common: dict[str, Any] = {
        "vocab_size": dimensions.vocabulary,
        "hidden_size": dimensions.d_model,
        "intermediate_size": dimensions.d_ff,
        "num_hidden_layers": dimensions.n_layers,
        "num_attention_heads": dimensions.n_heads,
        "num_key_value_heads": dimensions.n_heads,
        "head_dim": dimensions.d_head,
        "max_position_embeddings": length,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": BOS,
        "pad_token_id": None,
    }
    match variant:
        case "full":
            return LlamaConfig(**common)
        case "sliding":
            return MistralConfig(sliding_window=dimensions.window, **common)
        case "hybrid":
            return CwmConfig(sliding_window=dimensions.window, layer_types=kinds, **common)
        case "linear":
            experts = {"num_local_experts": 1, "num_experts_per_tok": 1}
            return MiniMaxConfig(layer_types=kinds, block_size=64, **experts, **common)


def build_model(recipe: Recipe) -> PreTrainedModel:
    """The untrained model of a recipe, in training mode; the global random state is left as it is.

    Embeddings are N(0, 1) plus one vector of N(0, ¼) shared by all tokens. Matrices are N(0, 1/fan-in). Output
    projections into the residual stream and the unembedding are zero.
    """
    config = variant_config(recipe.variant, length=recipe.length, shape=recipe.shape)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return initialised(model, recipe.seed)


def initialised(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Draw the model's weights again, in place, as `build_model` describes; return it in training mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.removesuffix(".weight").endswith(_ZERO):
                weight.zero_()
            elif "embed_tokens" in name:
                weight.normal_(generator=generator)
                weight += _SHARED_EMBEDDING * torch.randn(weight.shape[-1], generator=generator)
            elif weight.ndim >= 2:
                weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
    return model.train()
