"""Tables of what a model's linear layers lose with a state of fewer bits, from its configuration alone.

Only decays that do not depend on the data can be told in advance: lightning attention's slopes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.state_precision import (
    Precision,
    lightning_slopes,
    lost_decays,
    rounded_decays,
    state_error_growth,
)
from workbench.heads import WorkbenchError

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "e4m3")
_LIGHTNING = ("minimax", "minimax_text_01", "minimax_m1")
# Heads of one recurrence: what four layers of MiniMax-Text-01 have, a minute for 4,096 tokens on one core.
_HEADS = 256


def slopes_of_config(source: str | Path) -> dict[int, Float[Tensor, " n_heads"]]:
    """Decay per token of each head of each lightning layer, from a checkpoint's folder or its config.json.

    Raises:
        WorkbenchError: if there is no configuration, or the model has no layer whose decay is known without data.
    """
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise WorkbenchError(f"{source} has no config.json; expected a checkpoint's folder or its config.json")
    config: dict[str, Any] = json.loads(path.read_text())
    kind = config.get("model_type")
    if kind not in _LIGHTNING:
        raise WorkbenchError(
            f"{source} is a {kind} model, whose decay, if it has any, depends on the data; expected data-independent "
            f"decay: {', '.join(_LIGHTNING)}"
        )
    n_layers, n_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    linear = [i for i, is_linear in enumerate(_is_linear(config, n_layers)) if is_linear]
    if not linear:
        raise WorkbenchError(f"{source} is a {kind} model of {n_layers} softmax layers; expected a lightning layer")
    return {layer: lightning_slopes(layer, n_layers, n_heads) for layer in linear}


def lost_decay_table(slopes: Mapping[int, Float[Tensor, " n_heads"]]) -> pd.DataFrame:
    """Per precision the shares of all heads whose decay rounding surely undoes, undoes at most, and rounds to 1.

    Columns: precision, surely_lost, at_most_lost, never_forgets.
    """
    every = torch.cat(list(slopes.values()))
    rows = [(p, *lost_decays(every, p), rounded_decays(every, p)) for p in PRECISIONS]
    return pd.DataFrame(rows, columns=["precision", "surely_lost", "at_most_lost", "never_forgets"])


def state_precision_table(
    slopes: Mapping[int, Float[Tensor, " n_heads"]],
    *,
    tokens: int = 4096,
    every: int = 1,
    precisions: tuple[Precision, ...] = PRECISIONS,
) -> pd.DataFrame:
    """Relative error of each head's output after a quarter, a sixteenth, ... of `tokens`, and after all of them.

    Of at most four evenly spread layers where a model has more than 256 lightning heads. Random inputs, 32 channels.

    Args:
        every: the state is rounded once per so many tokens: 1 is decoding, 256 prefilling by chunks.

    Returns:
        Columns: layer, head, slope, precision, tokens, error.

    Raises:
        WorkbenchError: if `tokens` is no multiple of `every`.
    """
    layers = _spread(sorted(slopes), _HEADS // len(next(iter(slopes.values()))))
    lengths = tuple(sorted({n for n in (tokens // 64, tokens // 16, tokens // 4, tokens) if n and n % every == 0}))
    if tokens not in lengths:
        raise WorkbenchError(f"{tokens} tokens were given; expected a positive multiple of every={every}")
    together = torch.cat([slopes[layer] for layer in layers])
    heads = [(layer, head, float(s)) for layer in layers for head, s in enumerate(slopes[layer])]
    rows: list[tuple[Any, ...]] = []
    for precision in precisions:
        errors = state_error_growth(together, precision, lengths, every=every)
        for length, of_heads in zip(lengths, errors.tolist(), strict=True):
            rows += [(*head, precision, length, error) for head, error in zip(heads, of_heads, strict=True)]
    return pd.DataFrame(rows, columns=["layer", "head", "slope", "precision", "tokens", "error"])


def _is_linear(config: Mapping[str, Any], n_layers: int) -> list[bool]:
    """Which layers are lightning attention: by transformers' names, by the release's numbers, or every other one."""
    if kinds := config.get("layer_types"):
        return [kind == "linear_attention" for kind in kinds]
    if numbers := config.get("attn_type_list"):
        return [number == 0 for number in numbers]
    return [layer % 2 == 1 for layer in range(n_layers)]


def _spread(layers: list[int], n: int) -> list[int]:
    """At most n of them, at least the first and the last."""
    n = max(2, n)
    if len(layers) <= n:
        return layers
    return [layers[round(i * (len(layers) - 1) / (n - 1))] for i in range(n)]
