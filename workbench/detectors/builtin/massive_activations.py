"""Massive activations: single coordinates of the residual stream that are thousands of times larger than the rest.

They stand at the tokens that heads use as sinks, and keep a number per layer, not per head.

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
from workbench.hooks.taps.eager import blocks
from workbench.probes import Probe

ABOVE = 100.0
TIMES_MEDIAN = 1000.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of one layer, by sequence: the largest magnitude, where it is, the median, how many are massive."""

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
    """What each block hands on to the next: its largest coordinate, against the median of all.

    Returns:
        layer; largest and median magnitude and n_massive, means over sequences; position (token) and channel of the
        largest of all.

    Raises:
        WorkbenchError: for tokens that do not fit the model, or blocks that hand on no residual stream.
    """
    given = sequences(tokens.tokens, tokens.attention_mask) if isinstance(tokens, Probe) else sequences(tokens)
    valid = given.valid
    seen: dict[int, _Seen] = {}

    def look(layer: int, _: nn.Module, __: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        if isinstance(hidden, Tensor) and hidden.shape[:2] == valid.shape:
            seen[layer] = _look(hidden.detach(), valid.to(hidden.device), above, times_median)

    with _watching(m, look):
        m.record(tokens, ())
    if not seen:
        raise WorkbenchError(f"the blocks of {m.name} hand on nothing of the shape {tuple(valid.shape)}, d_model")
    return pd.DataFrame([{"layer": layer, **_summary(one)} for layer, one in sorted(seen.items())])


@contextmanager
def _watching(m: HookedModel, look: Any) -> Generator[None]:
    handles = [block.register_forward_hook(partial(look, layer)) for layer, block in blocks(m.model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _look(
    hidden: Float[Tensor, "b t d"], valid: Bool[Tensor, "b t"], above: float | int, times_median: float | int
) -> _Seen:
    size = torch.where(valid[..., None], hidden.float().abs(), torch.nan)
    flat = size.flatten(1)
    largest, at = flat.nan_to_num(nan=-1).max(-1)
    median = flat.nanmedian(-1).values
    n_massive = ((flat > above) & (flat > times_median * median[:, None])).sum(-1)
    d_model = hidden.shape[-1]
    return _Seen(largest.cpu(), (at // d_model).cpu(), (at % d_model).cpu(), median.cpu(), n_massive.cpu())


def _summary(seen: _Seen) -> dict[str, float | int]:
    b = int(np.argmax(seen.largest.numpy()))
    return {
        "largest": float(seen.largest.mean()),
        "median": float(seen.median.mean()),
        "n_massive": float(seen.n_massive.double().mean()),
        "position": int(seen.position[b]),
        "channel": int(seen.channel[b]),
    }
