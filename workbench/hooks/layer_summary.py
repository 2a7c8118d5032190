"""The layers of a model in words and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

import pandas as pd
from transformers import PreTrainedModel

from workbench.heads import LayerInfo

# Kinds whose first letter another one has.
_LETTERS = {"sparse": "K"}


def words_of_model(model: PreTrainedModel, layers: Sequence[LayerInfo], quantisation: str) -> str:
    """Layers and kinds, heads, key/value heads, windows, context, dtype and quantisation in one line.

    The letter of a layer is the first of its kind, and K for one that selects keys.
    """
    kinds = "".join(_LETTERS.get(info.kind, info.kind[0].upper()) for info in layers)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    sizes = [(_numbers(i.n_heads for i in layers), "heads"), (_numbers(i.n_kv_heads for i in layers), "KV heads")]
    windows = _numbers(info.window for info in layers if info.window is not None)
    parts = [f"{len(layers)} layers {kinds}", *(f"{number} {noun}" for number, noun in sizes)]
    parts += [f"window {windows}"] if windows else []
    selected = _numbers(info.n_selected for info in layers if info.n_selected is not None)
    parts += [f"{selected} selected keys"] if selected else []
    parts += [] if context is None else [f"context {context}"]
    parts += [str(model.dtype).removeprefix("torch.")]
    parts += [f"weights of {quantisation}"] if quantisation else []
    return ", ".join(parts)


def table_of_layers(layers: Sequence[LayerInfo]) -> pd.DataFrame:
    """One row per token mixer; `layer` is the model's own number, `window` missing where the whole past is seen, and
    `n_selected`, the keys that a sparse layer selects for a row, where it selects none.
    """
    table = pd.DataFrame([asdict(info) for info in layers]).rename(columns={"index": "layer"})
    return table.astype({"window": "Int64", "n_selected": "Int64"})


def _numbers(values: Iterable[int]) -> str:
    """The distinct numbers, as 4 or 2/4."""
    return "/".join(str(value) for value in sorted(set(values)))
