"""Massive activations: coordinates of the residual stream that are thousands of times larger than the rest.

They occur at tokens that heads use as sinks. They are measured per layer, not per head.

Reference:
    Sun et al. 2024, Massive Activations in Large Language Models: magnitude above 100 and above 1000 times the median.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from workbench.heads import WorkbenchError
from workbench.hooks import HookedModel
from workbench.hooks.recording.cells import sequences
from workbench.hooks.taps.layer_lists import blocks
from workbench.probes import Probe

ABOVE = 100.0
TIMES_MEDIAN = 1000.0


@dataclass(frozen=True, slots=True)
class _Magnitudes:
    """Of one layer, by sequence: the largest magnitude, its position and channel, the median, the number of massive."""

    largest: Float[Tensor, " b"]
    position: Int[Tensor, " b"]
    channel: Int[Tensor, " b"]
    median: Float[Tensor, " b"]
    n_massive: Int[Tensor, " b"]


def massive_activations(
    m: HookedModel,
    tokens: Int[Tensor, "b t"] | Probe,
    *,
    above: float | int = ABOVE,
    times_median: float | int = TIMES_MEDIAN,
) -> pd.DataFrame:
    """The residual stream after each block: its largest coordinate, and the median of all.

    Returns:
        layer; largest and median magnitude and n_massive, means over sequences; position (token) and channel of the
        largest of all.

    Raises:
        WorkbenchError: for tokens that do not fit the model, or blocks that return no residual stream.
    """
    batch = sequences(tokens.tokens, tokens.attention_mask) if isinstance(tokens, Probe) else sequences(tokens)
    valid = batch.valid
    by_layer: dict[int, _Magnitudes] = {}

    def measure(layer: int, _: nn.Module, __: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        if isinstance(hidden, Tensor) and hidden.shape[:2] == valid.shape:
            by_layer[layer] = _magnitudes(hidden.detach(), valid.to(hidden.device), above, times_median)

    with _block_hooks(m, measure):
        m.record(tokens, ())
    if not by_layer:
        raise WorkbenchError(f"the blocks of {m.name} hand on nothing of the shape {tuple(valid.shape)}, d_model")
    return pd.DataFrame([{"layer": layer, **_summary(magnitudes)} for layer, magnitudes in sorted(by_layer.items())])


@contextmanager
def _block_hooks(m: HookedModel, hook: Any) -> Generator[None]:
    handles = [block.register_forward_hook(partial(hook, layer)) for layer, block in blocks(m.model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _magnitudes(
    hidden: Float[Tensor, "b t d"], valid: Bool[Tensor, "b t"], above: float | int, times_median: float | int
) -> _Magnitudes:
    size = torch.where(valid[..., None], hidden.float().abs(), torch.nan)
    flat = size.flatten(1)
    largest, index = flat.nan_to_num(nan=-1).max(-1)
    median = flat.nanmedian(-1).values
    n_massive = ((flat > above) & (flat > times_median * median[:, None])).sum(-1)
    d_model = hidden.shape[-1]
    return _Magnitudes(largest.cpu(), (index // d_model).cpu(), (index % d_model).cpu(), median.cpu(), n_massive.cpu())


def _summary(magnitudes: _Magnitudes) -> dict[str, float | int]:
    b = int(np.argmax(magnitudes.largest.numpy()))
    return {
        "largest": float(magnitudes.largest.mean()),
        "median": float(magnitudes.median.mean()),
        "n_massive": float(magnitudes.n_massive.double().mean()),
        "position": int(magnitudes.position[b]),
        "channel": int(magnitudes.channel[b]),
    }
