"""Which families of transformers read `layer_types` and `sliding_window` layer by layer. No torch.

Found by trying a tiny random model of each type: with one layer named `sliding_attention`, its logits must be those of
the model with a window on that layer's heads, and others than without (`tests/layer_type_families.py`).
"""

from __future__ import annotations

HONOURING: frozenset[str] = frozenset()
# A type whose forward pass is that of another one, with `layer_types` beside it. Whoever relies on it compares logits.
EQUIVALENT = {"llama": "ministral", "mistral": "ministral"}


def why_ignored(model_type: str) -> str | None:
    """Why `layer_types` would change nothing in a model of this type, and what to do; None where they are read."""
    if model_type in HONOURING:
        return None
    twin = EQUIVALENT.get(model_type)
    way_out = "plan.save_model(m, folder) writes a folder that transformers loads with the plan in force"
    if twin is not None:
        way_out += f", of type {twin} where its forward pass is the same"
    return f"models of type {model_type} ignore layer_types, so that the plan would change nothing: {way_out}"
