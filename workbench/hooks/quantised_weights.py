"""What a model's configuration says of the quantisation that its weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from workbench.checkpoints.configs import DEQUANTISED_FROM
from workbench.heads import LayerInfo
from workbench.loading.gguf_weights import DEQUANTISED_LAYERS


def quantisation_of(config: Any) -> str:
    """The name of the quantisation: of a GGUF model that the workbench opened, or of one that transformers holds."""
    if named := getattr(config, DEQUANTISED_FROM, None):
        return str(named)
    method = getattr(getattr(config, "quantization_config", None), "quant_method", None)
    return "" if method is None else str(getattr(method, "value", method))


def with_quantisation(layers: Sequence[LayerInfo], config: Any) -> tuple[LayerInfo, ...]:
    """The layers with the types of the blocks that their weights come from, where the configuration names them."""
    types = getattr(config, DEQUANTISED_LAYERS, None) or []
    return tuple(replace(i, quantisation=types[i.index]) if i.index < len(types) else i for i in layers)
