"""Open a model for recording: from a checkpoint's folder, from memory, or from a TransformerBridge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from workbench.checkpoints.hub_references import locate_checkpoint
from workbench.heads import WorkbenchError
from workbench.hooks.bridge import is_bridge, unbridged
from workbench.hooks.model import HookedModel
from workbench.loading.pretrained import load_pretrained


def open_model(
    source: str | Path | nn.Module,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    allow_pickle: bool = False,
    allow_nonfinite: bool = False,
) -> HookedModel:
    """Open a model for recording: a Hugging Face directory (strictly checked, offline), or a model already in memory.

    In memory: a transformers model, or a TransformerBridge of TransformerLens, of which a copy is opened that shares
    its weights.

    Args:
        device: default CUDA where there is one, else the CPU. A model in memory stays where it is.
        dtype: default float32 on the CPU, the checkpoint's own on CUDA. A model in memory keeps its own.
        allow_pickle: also read `.bin`, `.pt` and distributed checkpoints: only tensors, without running code in them.
        allow_nonfinite: also open a checkpoint with NaN or infinity in its weights.

    Raises:
        BadCheckpoint: if the directory is not a complete, finite, safe checkpoint.
        WorkbenchError: if a layer's attention cannot be recorded exactly, or a model in memory came with a device or
            dtype.
    """
    if isinstance(source, nn.Module):
        if device is not None or dtype is not None:
            raise WorkbenchError(
                "device and dtype are for checkpoints; a model in memory keeps its own: call .to() on it"
            )
        return _in_memory(source)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    located = locate_checkpoint(source)
    loaded = load_pretrained(
        located.folder, device=target, dtype=dtype, allow_pickle=allow_pickle, allow_nonfinite=allow_nonfinite
    )
    return HookedModel(loaded.model, tokenizer=loaded.tokenizer, name=located.name)


def _in_memory(model: Any) -> HookedModel:
    if is_bridge(model):
        return HookedModel(unbridged(model), tokenizer=model.tokenizer)
    if not isinstance(model, PreTrainedModel):
        raise WorkbenchError(
            f"cannot record a {type(model).__name__}; expected a transformers PreTrainedModel, a TransformerBridge, or "
            "the path of a checkpoint"
        )
    return HookedModel(model)
