"""The layers of a model, found and checked by short forward passes when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.heads import Kind, LayerInfo, WorkbenchError
from workbench.hooks.refused_layers import counting_runs, why_refused
from workbench.hooks.taps.attention_call import OWN_PROBABILITIES, AttentionCall, MaskTaken
from workbench.hooks.taps.attention_interface import OwnMask
from workbench.hooks.taps.eager import handling
from workbench.hooks.taps.finite_values import watching
from workbench.hooks.taps.key_selection import (
    checking_selection,
    n_selected,
    selecting_few,
    tokens_to_select,
)
from workbench.hooks.taps.linear import linear_layers
from workbench.hooks.taps.linear.lightning import warn_of_rounded_decay
from workbench.hooks.taps.linear.linear_selfcheck import checking_linear
from workbench.hooks.taps.scored_call import ScoredCall
from workbench.hooks.taps.selfcheck import is_causal, is_normalised, marker, noting_arrivals
from workbench.loading.pretrained import FAILURES, is_out_of_memory
from workbench.loading.refusals import refuse_other_models

# Names of layers that mix no tokens, in configurations.
_NO_MIXER = ("mlp", "moe")
_SELECTING = (
    "expected masks that go into the attention as transformers makes them, or an indexer that hands the attention the "
    "indices of the keys it selects, as those of DeepSeek-V3.2, GLM-5 and other families of docs/models.md do"
)
# Of layers whose keys are entries, and what still shows their attention.
_ENTRIES = (
    "{} attend, beside a window of single tokens, to entries that stand for many tokens each, whose keys and values "
    "are mixtures of theirs with other weights in every channel, so that no pattern over tokens says what they do "
    "(their weights over tokens and, in the last columns, entries are those of the model itself with "
    "attn_implementation='eager' and output_attentions=True)"
)
# What models that read more than tokens call their other inputs.
_OTHER_INPUTS = ("pixel_values", "image_embeds", "input_features", "input_values")


def layer_slots(layers: Sequence[LayerInfo]) -> dict[tuple[int, bool], int]:
    """The index into `layers` of each (layer number, whether the mixer is linear)."""
    return {(layer.index, layer.kind == "linear"): slot for slot, layer in enumerate(layers)}


def survey(model: PreTrainedModel) -> tuple[LayerInfo, ...]:
    """The token mixers of a model in order of layers, from two passes over three tokens.

    Indexers, which select keys, select two in these passes, or one block or pool: the text is then as long as one more.

    A layer with two mixers has two entries, the softmax one first; a layer without any (the MLP and MoE layers of
    Nemotron-H) has none. The first pass compares the outputs of linear layers with their implied patterns. In the
    second, a marker replaces the output of each softmax layer and must arrive behind the layer.

    Raises:
        WorkbenchError: if the model is no causal language model; or naming the layers that cannot be recorded, attend
            more than once, see later tokens, do not use their attention output, or differ from their implied pattern.

    Warns:
        RoundedDecayWarning: if the model holds decay rates in a precision in which some heads never forget.
    """
    calls: dict[int, list[AttentionCall]] = {}

    def note(call: AttentionCall) -> Tensor:
        calls.setdefault(call.layer, []).append(call)
        return call.output()

    refuse_other_models(model.config, type(model).__name__)
    config = model.config.get_text_config()
    tokens = torch.arange(tokens_to_select(model), device=model.device)[None] % int(config.vocab_size)
    valid = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad(), selecting_few(model), ExitStack() as stack:
        stack.enter_context(handling(model, note))
        runs = stack.enter_context(counting_runs(model))
        is_right = stack.enter_context(checking_linear(model, valid))
        selects_right = stack.enter_context(checking_selection(model))
        _run(model, tokens)
    with torch.no_grad(), selecting_few(model), handling(model, marker), noting_arrivals(model) as arrived:
        if calls:
            _run(model, tokens)
    sparse, keys = {i for i, c in calls.items() if c[0].mask.selected is not None}, n_selected(model)
    linear = linear_layers(model)
    without_mixer = _without_mixer(config)
    softmax = {i: c[0] for i, c in calls.items()}
    faults = {
        "no attention call reached the recorder from {}": [
            i for i in range(int(config.num_hidden_layers)) if not (i in calls or i in is_right or i in without_mixer)
        ],
        "{} attend more than once per pass": [i for i, c in calls.items() if len(c) != 1],
        "{} see later tokens": [i for i, c in softmax.items() if not is_causal(c)],
        _ENTRIES: [i for i in softmax if "compress" in _type_of(config, i)],
        "the probabilities of {} do not sum to 1": [i for i, c in softmax.items() if not is_normalised(c)],
        "{} select keys, how many is not known": [i for i in sparse if keys is None or not calls[i][0].mask.leaves_out],
        "the model's own attention to the keys that {} select is another": [
            i for i in sparse if not selects_right.get(i, False)
        ],
        "{} go on with something else than what their attention gives": [i for i in softmax if i not in arrived],
        "the output of {} is not its implied pattern times v in this version of transformers": [
            i for i in linear if not is_right.get(i, False)
        ],
    }
    if any(faults.values()):
        _refuse_nonfinite(model, tokens)  # whose faults are not those of its family
        raise WorkbenchError(why_refused(model, faults, runs))
    warn_of_rounded_decay(model)
    infos = [_softmax_layer(config, i, call, n_keys=keys) for i, call in softmax.items()]
    infos += [layer.info for layer in linear.values()]
    if not infos:
        raise WorkbenchError(f"{type(model).__name__} has no layer that mixes tokens: there is nothing to record")
    return tuple(sorted(infos, key=lambda info: info.index))


def _run(model: PreTrainedModel, tokens: Int[Tensor, "b t"]) -> None:
    """Run a forward pass, or say why the model is no language model."""
    name = type(model).__name__
    try:
        out = model(input_ids=tokens, use_cache=False)
    except MaskTaken as error:
        raise WorkbenchError(
            f"{name} cannot be recorded exactly: {_innermost(error) or 'a layer'} computes with its attention mask "
            "itself, to choose keys or to add to the scores, and the attention that follows is not that of the mask; "
            f"{_SELECTING}. Leave this model out; {OWN_PROBABILITIES}{_inner_model(model.config)}"
        ) from error
    except OwnMask as error:
        raise WorkbenchError(
            f"{name} cannot be recorded exactly: {_innermost(error) or 'a layer'} attends under a mask of its own "
            f"making, as layers do that select pools of keys; {_SELECTING}. Leave this model out"
        ) from error
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        raise WorkbenchError(_why_not_on_tokens(name, error) + _inner_model(model.config)) from error
    logits: Any = getattr(out, "logits", None)
    if logits is None:
        raise WorkbenchError(
            f"{name} gives no logits; expected a causal language model with its head, a …ForCausalLM of the same family"
        )
    n_words = int(model.config.get_text_config().vocab_size)
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape or logits.shape[2] < n_words:
        raise WorkbenchError(
            f"{name} gives logits of shape {tuple(logits.shape)} for {tokens.shape[1]} tokens of a vocabulary of "
            f"{n_words}; expected one per token and word, as of a causal language model: a …ForCausalLM of the family"
        )


def _why_not_on_tokens(name: str, error: Exception) -> str:
    """Why a model does not run on token ids alone."""
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if any(word in first_line for word in _OTHER_INPUTS):
        return f"{name} does not run without a picture or a sound beside its tokens ({first_line})"
    reason = f"{type(error).__name__}: {first_line}"
    return (
        f"{name} does not run on token ids alone: {reason}. Expected a causal language model. Where this names "
        "a setting of the model, set it and pass the model in memory to open_model; else leave this model out"
    )


def _inner_model(config: Any) -> str:
    """The next step for a model with a language model inside, as one of images and text; "" for others."""
    text = config.get_text_config()
    if text is config:
        return ""
    return (
        f"; its text configuration is of type {text.model_type!r}: load it with transformers, take the …ForCausalLM of "
        "that type inside if it has one, and pass that to open_model"
    )


def _innermost(error: BaseException) -> str:
    """The class of the innermost module that an error was raised in; "" where it was in none."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        name = type(module).__name__ if isinstance(module, nn.Module) else name
        trace = trace.tb_next
    return name


def _refuse_nonfinite(model: PreTrainedModel, tokens: Int[Tensor, "b t"]) -> None:
    """Run a pass, and refuse it if its activations are NaN or infinite."""
    valid = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad(), handling(model, lambda call: call.output()), watching(model, valid):
        _run(model, tokens)


def _without_mixer(config: Any) -> set[int]:
    layer_types = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None) or []
    return {i for i, layer_type in enumerate(layer_types) if layer_type in _NO_MIXER}


def _type_of(config: Any, index: int) -> str:
    """The type that the configuration gives a layer; "" where it gives none."""
    layer_types: Any = getattr(config, "layer_types", None)
    is_listed = isinstance(layer_types, list | tuple) and len(layer_types) > index
    return str(layer_types[index]) if is_listed else ""


def _softmax_layer(config: Any, index: int, call: AttentionCall, *, n_keys: int | None) -> LayerInfo:
    """`n_keys`: that the model's indexers select."""
    kind: Kind = "full" if call.mask.selected is None else "sparse"
    if call.mask.window is not None:
        kind = "chunked" if _type_of(config, index) == "chunked_attention" else "sliding"
    return LayerInfo(
        index=index,
        kind=kind,
        mixer="softmax",
        window=call.mask.window,
        has_sinks=call.sinks is not None,
        n_heads=call.q.shape[1],
        n_kv_heads=call.k.shape[1],
        d_head=call.v.shape[-1] if isinstance(call, ScoredCall) else call.q.shape[-1] - call.n_bias_channels,
        n_selected=n_keys if kind == "sparse" else None,
    )
