"""Which families of transformers read `layer_types` and `sliding_window` layer by layer. No torch.

Found by trying a tiny random model of each type of transformers 5.23: with one layer named `sliding_attention`, its
logits are those of the model with a window on that layer's heads (`python -m tests.layer_type_families`).
"""

from __future__ import annotations

# Those whose layers differ by their windows alone.
HONOURING = frozenset(
    {
        "cohere_compass_text",
        "cwm",
        "dots1",
        "gemma2",
        "gpt_oss",
        "granite_swa",
        "granitemoe_swa",
        "ministral",
        "olmo3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "smollm3",
        "vaultgemma",
    }
)
# Those whose sliding layers also have other positions, or none, than full ones, so that the weights would be misread.
CHANGING_MORE = frozenset(
    {
        "afmoe",
        "beam",
        "cohere2",
        "cohere2_moe",
        "exaone4",
        "exaone_moe",
        "flint",
        "gemma3",
        "gemma3_text",
        "gemma3n_text",
        "kolibri1",
        "laguna",
        "lfm3",
        "mellum",
        "mimo_v2_flash",
        "modernbert-decoder",
    }
)
# A type whose forward pass is that of another one, with windows by layer. Whoever relies on it compares logits.
EQUIVALENT = {"llama": "ministral", "mistral": "ministral"}


def why_ignored(model_type: str) -> str | None:
    """Why `layer_types` do not carry a plan to models of this type, and what does; None where they do."""
    if model_type in HONOURING:
        return None
    way_out = "plan.save_model(m, folder) writes a folder that transformers loads with the plan in force"
    if model_type in CHANGING_MORE:
        return f"sliding layers of {model_type} also differ from its full ones by their positions: {way_out}"
    twin = EQUIVALENT.get(model_type)
    way_out += "" if twin is None else f", as {twin}, whose forward pass is the same"
    return f"models of type {model_type} are not known to read layer_types, so that the plan would be lost: {way_out}"
