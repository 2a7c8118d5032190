"""What `layer_types` change in a tiny random model of each type: `python -m tests.layer_type_families` prints all."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.causal_types import NOT_MADE, TYPES, tiny_config
from tests.families import random_tokens
from workbench import KVHead, WorkbenchError, open_model

WINDOW, TOKENS = 4, random_tokens(1, 24)


def effect_of_layer_types(model_type: str) -> str:
    """`windows`: those of layers named sliding alone; `more`: something else too; `nothing`."""
    m = open_model(_model(model_type, ["full_attention"] * 9))
    layer = [info for info in m.layers if info.mixer == "softmax" and info.kind == "full"][-1]
    kinds = ["full_attention"] * 9
    kinds[layer.index] = "sliding_attention"
    with torch.no_grad():
        plain = m.model(TOKENS, use_cache=False).logits
        named = _model(model_type, kinds)(TOKENS, use_cache=False).logits
        with m.restrict([KVHead(layer.index, h) for h in range(layer.n_kv_heads)], WINDOW):
            windowed = m.model(TOKENS, use_cache=False).logits
    if (named - plain).abs().max() < 1e-4:
        return "nothing"
    return "windows" if (named - windowed).abs().max() < 1e-4 else "more"


def _model(model_type: str, kinds: list[str]) -> Any:
    config = tiny_config(model_type)
    text = config.get_text_config(decoder=True)
    text.layer_types, text.sliding_window = kinds[: text.num_hidden_layers], WINDOW
    if hasattr(text, "use_sliding_window"):
        text.use_sliding_window = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2, generator=generator)
    return model


if __name__ == "__main__":
    for name in TYPES:
        if name not in NOT_MADE:
            try:
                print(name, effect_of_layer_types(name), flush=True)
            except (WorkbenchError, LookupError, AttributeError, RuntimeError, TypeError, ValueError) as reason:
                print(name, "cannot be tried:", type(reason).__name__, flush=True)
