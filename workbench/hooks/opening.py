"""Open a model for recording: from a checkpoint's folder, from memory, or from a TransformerBridge."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from workbench.checkpoints.fetched_models import obtain_checkpoint
from workbench.heads import WorkbenchError
from workbench.hooks.model import HookedModel
from workbench.hooks.taps.finite_values import allow_nonfinite_passes
from workbench.hooks.unwrapping import is_model_like, plain_model
from workbench.loading.devices import named_device
from workbench.loading.pretrained import load_config, load_pretrained
from workbench.loading.tokenizer_files import check_fit, open_tokenizer

_KEEPS_ITS_OWN = "device and dtype are for checkpoints; a model in memory keeps its own: call .to() on it"


def open_model(
    source: str | os.PathLike[str] | nn.Module | HookedModel | Any,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    tokenizer: Any = None,
    allow_pickle: bool = False,
    allow_nonfinite: bool = False,
) -> HookedModel:
    """Open a model for recording: a Hugging Face directory (strictly checked), or a model already in memory.

    A directory may also be named by the id of a model at a hub: `org/name`, `org/name@revision`. One that is not in the
    Hugging Face cache is fetched into it; stderr says beforehand how large it is. In memory: a transformers model, also
    inside of torch.compile, data parallelism, PEFT (LoRA and other adapters in the layers), a pipeline or an nnsight
    LanguageModel; or a TransformerBridge of TransformerLens, of which a copy is opened that shares its weights.

    Args:
        device: default CUDA where there is one, else the CPU. A model in memory stays where it is.
        dtype: default float32 on the CPU, the checkpoint's own on CUDA. A model in memory keeps its own.
        tokenizer: for a model that has none with it: the folder of one, a tokenizer.json, the id of a model at a hub,
            or a tokenizer in memory. Default: the folder's own, or for a checkpoint without one that of the
            Trainer's folder above it.
        allow_pickle: also read `.bin`, `.pt` and distributed checkpoints: only tensors, without running code in them.
        allow_nonfinite: also open a checkpoint with NaN or infinity in its weights.

    Raises:
        BadCheckpoint: if the directory is not a complete, finite, safe checkpoint.
        HubError: if the hub has no such model, does not show it, or cannot be reached.
        WorkbenchError: if the device is not there, a layer's attention cannot be recorded exactly, a model in memory
            came with a device or dtype, has weights elsewhere, or computes something else than the model inside it, or
            the tokenizer cannot be read or has words that the model does not have.
    """
    named = None if tokenizer is None else open_tokenizer(tokenizer)
    if isinstance(source, str | os.PathLike):
        return _from_disk(
            source, device, dtype, tokenizer=named, allow_pickle=allow_pickle, allow_nonfinite=allow_nonfinite
        )
    if (device is not None or dtype is not None) and (isinstance(source, HookedModel) or is_model_like(source)):
        raise WorkbenchError(_KEEPS_ITS_OWN)
    if isinstance(source, HookedModel):
        return _with_tokenizer(source, named)
    plain = plain_model(source)
    return _with_tokenizer(HookedModel(plain.model, tokenizer=plain.tokenizer), named)


def _from_disk(
    reference: str | os.PathLike[str],
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    *,
    tokenizer: Any,
    allow_pickle: bool,
    allow_nonfinite: bool,
) -> HookedModel:
    target = named_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    located = obtain_checkpoint(reference, allow_pickle=allow_pickle, check=load_config)
    loaded = load_pretrained(
        located.folder,
        device=target,
        dtype=dtype,
        tokenizer=tokenizer,
        allow_pickle=allow_pickle,
        allow_nonfinite=allow_nonfinite,
    )
    if allow_nonfinite:
        allow_nonfinite_passes(loaded.model)
    m = HookedModel(loaded.model, tokenizer=loaded.tokenizer, name=located.name)
    m.no_tokenizer = loaded.no_tokenizer
    return _with_tokenizer(m, tokenizer)


def _with_tokenizer(m: HookedModel, tokenizer: Any) -> HookedModel:
    """The model with a tokenizer that the user named, if it fits."""
    if tokenizer is not None:
        check_fit(tokenizer, m.vocab_size, name=m.name)
        m.tokenizer = tokenizer
    return m
