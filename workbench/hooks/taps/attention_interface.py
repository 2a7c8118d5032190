"""The attention function and the mask function that Hugging Face families call while they are recorded.

transformers looks both up by name: `attn_implementation="workbench"` sends every softmax layer here, with the queries,
keys and values as the model itself made them (rotated, normalised, not repeated over the group). The handler in force
receives the layer; without one the layer is computed and nothing is recorded.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function
from transformers.modeling_utils import AttentionInterface

from workbench.heads import WorkbenchError
from workbench.hooks.taps.attention_call import AttentionCall, Handler, LazyMask
from workbench.hooks.taps.cached_keys import layer_of_keys
from workbench.hooks.taps.evaluation_mode import warn_of_dropout
from workbench.hooks.taps.finite_values import note_attention
from workbench.hooks.taps.indexer_masks import reading_indexer_masks
from workbench.hooks.taps.key_biases import KeyBiases, reading_key_biases, with_bias_channel
from workbench.hooks.taps.layer_lists import numbered
from workbench.hooks.taps.linear.registry import MIXERS
from workbench.hooks.taps.scored_call import biased_call
from workbench.hooks.taps.shared_taps import standing_handlers

IMPLEMENTATION = "workbench"
# Tensors besides q, k and v that change no probability: those that families pass to their layers, and arguments of the
# loss, which families hand on to all that is below (Trainer, accelerate and TRL pass them). Any other may select keys.
_OF_THE_LAYERS = {"position_ids", "cache_position", "position_embeddings", "logits_to_keep"}
_OF_THE_LOSS = {"num_items_in_batch", "labels", "shift_labels", "weight", "label_smoothing", "class_weight"}
_HARMLESS_TENSORS = _OF_THE_LAYERS | _OF_THE_LOSS

# The handler of the pass that runs in this thread.
handler_of_pass: ContextVar[Handler | None] = ContextVar("workbench_attention_handler", default=None)


class OwnMask(WorkbenchError):
    """A layer attends under a mask that transformers did not make from token positions."""


@dataclass(slots=True)
class _Switched:
    """A configuration that names this implementation, its own one, and how many models that share it are tapped."""

    config: Any
    own: Any
    n_models: int = 0


_switched: dict[int, _Switched] = {}
# The layers of modules that do not know the number themselves.
_numbers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def tapping(model: PreTrainedModel) -> Generator[None]:
    """Send every softmax layer of `model` to the handler in force; afterwards its configurations are as they were."""
    # transformers looks the implementation's name up in the configuration at every call. The public setter would also
    # change later from_pretrained calls, and warn of families that ignore it.
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    with _lock:
        _numbers.update(numbered(model))
        for key, config in configs.items():
            switched = _switched.setdefault(key, _Switched(config, config._attn_implementation))  # pyright: ignore[reportPrivateUsage]
            switched.n_models += 1
            config._attn_implementation_internal = IMPLEMENTATION  # pyright: ignore[reportPrivateUsage]
    try:
        with reading_indexer_masks(model, IMPLEMENTATION, _lazy_mask), reading_key_biases(model):
            yield
    finally:
        with _lock:
            for key, config in configs.items():
                switched = _switched[key]
                switched.n_models -= 1
                if switched.n_models == 0:
                    config._attn_implementation_internal = switched.own  # pyright: ignore[reportPrivateUsage]
                    del _switched[key]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float | int = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    sinks: Tensor | None = None,
    indices: Tensor | None = None,
    block_indices: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: turn transformers' arguments into an AttentionCall.

    `s_aux`: one learned sink logit per head; `sinks`: one per head and row. `position_bias`: added to scaled scores.
    `indices`: of the keys that the layer's indexer selected for each row, which sees no others; `block_indices`: the
    same of blocks of keys, for each group of heads.
    """
    name = f"{type(module).__name__} of layer {getattr(module, 'layer_idx', None)}"
    unknown = sorted(k for k, x in others.items() if isinstance(x, Tensor) and k not in _HARMLESS_TENSORS)
    if unknown:
        raise WorkbenchError(
            f"{name} hands its attention the tensors {unknown}, which may select keys; this version cannot record it "
            "exactly, so it is refused"
        )
    biases = attention_mask if isinstance(attention_mask, KeyBiases) else None
    attention_mask = attention_mask if biases is None else biases.mask
    if not isinstance(attention_mask, LazyMask):
        raise OwnMask(
            f"{name} brings a mask of type {type(attention_mask).__name__} of its own making; expected the mask that "
            "transformers builds from token positions: pass attention_mask as [batch, tokens], and run no pass while "
            "another thread begins to record the model"
        )
    if (attention_mask.n_queries, attention_mask.n_keys) != (query.shape[2], key.shape[2]):
        raise WorkbenchError(
            f"{name} has {query.shape[2]} queries and {key.shape[2]} keys but a mask of {attention_mask.n_queries} × "
            f"{attention_mask.n_keys}; run it without a cache (use_cache=False)"
        )
    mask = attention_mask
    if indices is not None:
        _check_indices(indices, (query.shape[0], query.shape[2]), name=name, argument="indices")
        mask = mask.selecting(rearrange(indices, "b q n -> b 1 q n"))
    elif block_indices is not None:
        n_groups = block_indices.shape[1] if block_indices.ndim > 1 else 0
        shape = (query.shape[0], n_groups, query.shape[2])
        _check_indices(block_indices, shape, name=name, argument="block_indices")
        _check_groups(block_indices, key, name)
        mask = mask.selecting(block_indices, block=_block_size(module, name))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if biases is not None:
        query, key = with_bias_channel(query, key, biases.bias, scale)
    call = AttentionCall(
        layer=_layer_of(module),
        q=query,
        k=key,
        v=value,
        mask=mask,
        scale=scale,
        softcap=softcap,
        sinks=None if s_aux is None else rearrange(s_aux, "... -> (...)"),
        n_bias_channels=0 if biases is None else 1,
    )
    if type(module).__name__ in MIXERS.all():  # its pattern is read another way: here a part of it runs, as it is
        return call.output().to(query.dtype), None
    if position_bias is not None or sinks is not None:
        if softcap is not None or s_aux is not None:
            raise WorkbenchError(f"{name} has a bias or a sink for each row beside a softcap or a fixed sink")
        call = biased_call(call, bias=position_bias, sinks=sinks, name=name)
    held = layer_of_keys(key, value, call.layer)
    call = replace(call, positions=_token_positions(others.get("position_ids")), held=held)
    note_attention(call.layer, (query, key, value), None, attention_mask.valid)
    if dropout > 0:
        warn_of_dropout(name, dropout)
    # Those of the mask, not the ones in force now: a backward pass computes layers again, anywhere.
    handler = attention_mask.handler or attention_mask.standing.get(id(module))
    out = (call.output() if handler is None else handler(call)).to(query.dtype)
    note_attention(call.layer, (), out, None)
    return out, None


def _check_indices(indices: Tensor, shape: tuple[int, ...], *, name: str, argument: str) -> None:
    """Raise unless a selection has whole numbers for every row, in a last axis of their own."""
    if indices.is_floating_point() or indices.shape[:-1] != shape:
        raise WorkbenchError(
            f"{name} hands its attention the tensors ['{argument}'], which may select keys, as {indices.dtype} of "
            f"shape {tuple(indices.shape)}; expected whole numbers of shape {(*shape, 'keys')}, and another "
            "selection cannot be recorded exactly. Leave this model out"
        )


def _block_size(module: nn.Module, name: str) -> int:
    """How many keys are in a block of those that a layer's indexer selects.

    Raises:
        WorkbenchError: if the indexer does not say so.
    """
    size: Any = getattr(getattr(module, "indexer", None), "block_size", None)
    if not isinstance(size, int) or size < 1:
        raise WorkbenchError(
            f"{name} selects blocks of keys, and how many keys a block has is not known; expected an indexer with a "
            "block_size. Leave this model out"
        )
    return size


def _check_groups(indices: Tensor, key: Tensor, name: str) -> None:
    """Raise if several selections are made for one key/value head."""
    if key.shape[1] % indices.shape[1]:
        raise WorkbenchError(
            f"{name} selects blocks for {indices.shape[1]} groups of heads, which do not go into its {key.shape[1]} "
            "key/value heads evenly; expected one selection for each key/value head. Leave this model out"
        )


def _layer_of(module: nn.Module) -> int:
    """The number of the layer that an attention module is of.

    Raises:
        WorkbenchError: if it has none, as one that several layers share.
    """
    own: Any = getattr(module, "layer_idx", None)
    # A model that shares its configuration with one that is tapped comes here too, without its numbers.
    index = own if isinstance(own, int) and own >= 0 else _numbers.get(module)
    if index is None:
        raise WorkbenchError(
            f"{type(module).__name__} has no number of its layer, as one that several layers share: its heads cannot "
            "be told apart by layer; expected one attention module per layer. Leave this model out"
        )
    return index


def _token_positions(positions: Any) -> Int[Tensor, "#b q"] | None:
    """Positions of tokens; None for those of pictures and the like, which have one axis more."""
    return positions if isinstance(positions, Tensor) and positions.ndim == 2 else None


def _lazy_mask(
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    **_: Any,
) -> LazyMask:
    """The registered mask function: keep the function and the padding, build nothing."""
    valid = earlier = None
    if attention_mask is not None:
        earlier = attention_mask[:, : int(kv_offset)].bool().sum(-1)
        valid = attention_mask[:, int(kv_offset) : int(kv_offset) + kv_length].bool()
        valid = None if bool(valid.all()) else valid
    return LazyMask(
        function=mask_function,
        n_queries=int(q_length),
        n_keys=int(kv_length),
        query_offset=int(q_offset),
        key_offset=int(kv_offset),
        window=local_size,
        valid=valid,
        earlier=earlier,
        n_sequences=batch_size,
        device=device,
        handler=handler_of_pass.get(),
        standing=standing_handlers(),
    )


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _lazy_mask)
