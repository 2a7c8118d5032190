"""Multimodal models open from disk as they do in memory: their language model, given token ids alone."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BlipConfig,
    Gemma3Config,
    GitConfig,
    Llama4Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaOnevisionConfig,
    MllamaConfig,
    PaliGemmaConfig,
    Qwen2VLConfig,
)
from transformers.masking_utils import create_causal_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

import workbench as wb
from workbench.heads import WorkbenchError
from workbench.loading.tokenizers import model_words

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
LLAMA = {**SIZES, "model_type": "llama"}
SIGLIP = {**VISION, "model_type": "siglip_vision_model"}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
QWEN = {name: value for name, value in SIZES.items() if name != "head_dim"}
CONFIGS = {
    "llava": lambda: LlavaConfig(
        text_config=LLAMA, vision_config={**VISION, "model_type": "clip_vision_model"}, image_token_index=60
    ),
    "llava_onevision": lambda: LlavaOnevisionConfig(
        text_config={**QWEN, "model_type": "qwen2"}, vision_config=SIGLIP, image_token_index=60, video_token_index=61
    ),
    "gemma3": lambda: Gemma3Config(
        text_config={**SIZES, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=60,
    ),
    "qwen2_vl": lambda: Qwen2VLConfig(
        text_config={**QWEN, "rope_parameters": MROPE},
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 1},
        image_token_id=60,
        video_token_id=61,
    ),
    "mllama": lambda: MllamaConfig(
        text_config={**QWEN, "cross_attention_layers": []},
        vision_config={**VISION, "num_global_layers": 1, "attention_heads": 2, "intermediate_layers_indices": [0]},
        image_token_index=60,
    ),
    "llama4": lambda: Llama4Config(
        text_config={**SIZES, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 16},
        vision_config={**VISION, "vision_output_dim": 16, "projector_output_dim": 16, "projector_input_dim": 16},
        image_token_index=60,
    ),
}
TOKENS = torch.arange(3, 20)
# Multimodal models whose language model is not the one that was trained, or does not run by itself.
REFUSED = {
    "paligemma": (
        lambda: PaliGemmaConfig(
            text_config={**SIZES, "model_type": "gemma"},
            vision_config=SIGLIP,
            image_token_index=60,
            projection_dim=32,
            hidden_size=32,
        ),
        r"is a prefix language model \(model type 'paligemma'\).*see each other, later ones too.*Leave this model out",
    ),
    "git": (
        lambda: GitConfig(**SIZES, vision_config=VISION),
        r"is a prefix language model \(model type 'git'\).*a picture before the text, .*Leave this model out",
    ),
    "blip": (
        lambda: BlipConfig(
            text_config={**SIZES, "encoder_hidden_size": 16, "projection_dim": 16},
            vision_config={**VISION, "projection_dim": 16},
        ),
        r"without a picture or a sound .*'pixel_values'\); .*take the …ForCausalLM of that type inside",
    ),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_multimodal_model_opens_from_disk_and_its_patterns_are_those_of_eager_attention(tmp_path, family):
    torch.manual_seed(0)
    config = CONFIGS[family]()
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).eval()
    model.save_pretrained(tmp_path)
    m = wb.open_model(tmp_path)
    assert type(m.model) is type(model)
    assert (len(m.layers), m.vocab_size) == (2, 64)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = model(input_ids=TOKENS[None], output_attentions=True, use_cache=False)
        assert torch.allclose(m.model(input_ids=TOKENS[None]).logits, eager.logits, atol=1e-5)
    for layer in (0, 1):
        assert torch.allclose(m.pattern(TOKENS, layer, 3), eager.attentions[layer][0, 3], atol=1e-6)
    scores = wb.score(m, ["sink"], TOKENS).set_index(["layer", "head"])["score"]
    on_first = eager.attentions[1][0, 3, :, 0]
    assert scores[1, 3] == pytest.approx(float(on_first[on_first > 0].mean()), abs=1e-6)  # of rows that see it
    assert model_words(tmp_path).config.get_text_config().vocab_size == 64


@pytest.mark.parametrize("family", REFUSED)
def test_a_multimodal_model_that_is_refused_says_what_is_in_the_way_and_what_to_do(family):
    config, message = REFUSED[family]
    config = config()
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).eval()
    with pytest.raises(WorkbenchError, match=message):
        wb.open_model(model)


def test_a_model_that_makes_its_own_mask_is_refused_in_the_users_words():
    class Twice(LlamaForCausalLM):
        """Builds the mask, and hands it to a language model that builds it again."""

        def forward(self, input_ids, **kwargs):
            embedded = self.get_input_embeddings()(input_ids)
            positions = torch.arange(embedded.shape[1])[None]
            mask = create_causal_mask(self.config, embedded, None, None, position_ids=positions)
            return super().forward(input_ids, attention_mask=mask, **kwargs)

    model = Twice(LlamaConfig(**SIZES)).eval()
    with pytest.raises(WorkbenchError, match=r"Twice cannot .* with its attention mask itself.*Leave this model out"):
        wb.open_model(model)
