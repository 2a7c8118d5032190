"""Baselines of a score: the same architecture untrained, and other heads of the same layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from workbench.detectors.measuring import score
from workbench.heads import Head, LayerInfo, WorkbenchError
from workbench.hooks import HookedModel, open_model


def untrained(m: HookedModel | nn.Module, *, seed: int = 0) -> HookedModel:
    """The same architecture with newly initialised weights; the model itself does not change.

    Raises:
        WorkbenchError: if the model cannot be made from its configuration alone.
    """
    model: Any = m.model if isinstance(m, HookedModel) else open_model(m).model
    tokenizer = m.tokenizer if isinstance(m, HookedModel) else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            fresh = type(model)(model.config)
        except TypeError as error:
            raise WorkbenchError(f"{type(model).__name__} is not made from its configuration alone: {error}") from error
    return HookedModel(fresh.to(model.device, model.dtype).eval(), tokenizer=tokenizer, name="untrained")


def untrained_scores(
    m: HookedModel | nn.Module,
    detectors: Iterable[str] | None = None,
    *,
    n_models: int = 3,
    seed: int = 0,
    **arguments: Any,
) -> pd.DataFrame:
    """Scores of the same architecture untrained: per layer, head, detector and probe, over `n_models` initialisations.

    Args:
        detectors: as in `score`.
        arguments: of `score`: probes, tokens, far.

    Returns:
        layer, head, detector, probe; baseline, the mean, and highest, the largest of the models' scores.

    Raises:
        WorkbenchError: as `score` and `untrained`.
    """
    if n_models < 1:
        raise WorkbenchError(f"n_models is {n_models}; expected at least 1")
    names = detectors if detectors is None or isinstance(detectors, str) else list(detectors)
    tables = [score(untrained(m, seed=seed + i), names, **arguments) for i in range(n_models)]
    by_head = pd.concat(tables).groupby(["layer", "head", "detector", "probe"], sort=False)["score"]
    return by_head.agg(baseline="mean", highest="max").reset_index()


def layer_matched(heads: Iterable[Head], layers: Iterable[LayerInfo], *, seed: int = 0) -> list[Head]:
    """As many other heads of the same layers, drawn at random: a control that differs only in the heads.

    Raises:
        WorkbenchError: if a layer does not exist, or has too few other heads.
    """
    chosen = list(dict.fromkeys(heads))
    n_heads = {info.index: info.n_heads for info in layers}
    rng = np.random.default_rng(seed)
    controls: list[Head] = []
    for layer in sorted({head.layer for head in chosen}):
        in_layer = {head.head for head in chosen if head.layer == layer}
        others = [h for h in range(n_heads.get(layer, 0)) if h not in in_layer]
        if len(others) < len(in_layer):
            raise WorkbenchError(
                f"layer {layer} has {len(others)} other heads for {len(in_layer)} chosen; choose fewer"
            )
        controls += [Head(layer, int(h)) for h in sorted(rng.choice(others, size=len(in_layer), replace=False))]
    return controls
