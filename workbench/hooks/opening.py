"""Open a model for recording: from a checkpoint's folder, from memory, or from a TransformerBridge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from workbench.heads import WorkbenchError
from workbench.hooks.bridge import is_bridge, unbridged
from workbench.hooks.model import HookedModel
from workbench.hooks.taps.finite_values import allow_nonfinite_passes
from workbench.loading.pretrained import load_pretrained
from workbench.loading.tokenizer_files import check_fit, open_tokenizer


def open_model(
    source: str | Path | nn.Module,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    tokenizer: Any = None,
    allow_pickle: bool = False,
    allow_nonfinite: bool = False,
) -> HookedModel:
    """Open a model for recording: a Hugging Face directory (strictly checked, offline), or a model already in memory.

    In memory: a transformers model, or a TransformerBridge of TransformerLens, of which a copy is opened that shares
    its weights.

    Args:
        device: default CUDA where there is one, else the CPU. A model in memory stays where it is.
        dtype: default float32 on the CPU, the checkpoint's own on CUDA. A model in memory keeps its own.
        tokenizer: for a model that has none with it: the folder of one, a tokenizer.json, a model's name in the hub's
            cache, or a tokenizer in memory. Default: the folder's own, or for a checkpoint without one that of the
            Trainer's folder above it.
        allow_pickle: also read `.bin`, `.pt` and distributed checkpoints: only tensors, without running code in them.
        allow_nonfinite: also open a checkpoint with NaN or infinity in its weights.

    Raises:
        BadCheckpoint: if the directory is not a complete, finite, safe checkpoint.
        WorkbenchError: if a layer's attention cannot be recorded exactly, a model in memory came with a device or
            dtype, or the tokenizer cannot be read or has words that the model does not have.
    """
    named = None if tokenizer is None else open_tokenizer(tokenizer)
    if isinstance(source, nn.Module):
        if device is not None or dtype is not None:
            raise WorkbenchError(
                "device and dtype are for checkpoints; a model in memory keeps its own: call .to() on it"
            )
        return _with_tokenizer(_in_memory(source), named)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded = load_pretrained(
        Path(source),
        device=target,
        dtype=dtype,
        tokenizer=named,
        allow_pickle=allow_pickle,
        allow_nonfinite=allow_nonfinite,
    )
    if allow_nonfinite:
        allow_nonfinite_passes(loaded.model)
    m = HookedModel(loaded.model, tokenizer=loaded.tokenizer, name=Path(source).name)
    m.no_tokenizer = loaded.no_tokenizer
    return _with_tokenizer(m, named)


def _with_tokenizer(m: HookedModel, tokenizer: Any) -> HookedModel:
    """The model with a tokenizer that the user named, if it fits."""
    if tokenizer is not None:
        check_fit(tokenizer, m.vocab_size, name=m.name)
        m.tokenizer = tokenizer
    return m


def _in_memory(model: Any) -> HookedModel:
    if is_bridge(model):
        return HookedModel(unbridged(model), tokenizer=model.tokenizer)
    if not isinstance(model, PreTrainedModel):
        raise WorkbenchError(
            f"cannot record a {type(model).__name__}; expected a transformers PreTrainedModel, a TransformerBridge, or "
            "the path of a checkpoint"
        )
    return HookedModel(model)
